"""A vision backbone trained to distinguish origins: the similarity-based models of the paper's Table 3.

A class is an origin with its translations; the loss is Circle, a normalized softmax or CosFace over the
embeddings, as for W. Pictures are stretched to the backbone's square, without augmentation. The paper names
neither the sizes nor the rates of these runs, only the losses and, in its comparison of costs, a ViT: the
defaults of `FinetuneConfig` are ours. None has run here with weights from a hub; `backbones.SCRATCH` starts
from random ones.

What comes out is a directory that `load_encoder` takes, so that embedding, scanning and measuring go on as
with any other encoder.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from id2core.encoders import backbones, decoder_pool
from id2core.encoders.base import hash_tensors
from id2core.encoders.hub import locate
from id2core.environment import best_dtype, usable_device
from id2core.errors import FinetuneError
from id2core.runs.progress import OnStage, silent
from id2core.store import storage
from id2core.store.rejects import Reject
from id2core.training.config import FinetuneConfig, ResolvedFinetuneConfig
from id2core.training.criteria import build_loss
from id2core.training.loop import Loop
from id2core.training.samples import Batches

# Beside the trained weights: what made them.
REPORT = "finetune.json"
_DECODERS = 4
# A file (local path or gs:// object) or its bytes, and the name of its origin.
Labeled = tuple[str | Path | bytes, str]


class BackboneReport(BaseModel):
    """The content of `finetune.json`, beside the weights of a trained backbone.

    Attributes:
        recipe: options and inputs of the training.
        pictures, origins: what it was trained on.
        seconds: time of all steps, also of those before an interruption.
    """

    recipe: ResolvedFinetuneConfig
    pictures: int
    origins: int
    seconds: float


def finetune(
    pictures: Sequence[Labeled],
    config: FinetuneConfig,
    out: Path,
    *,
    device: str = "auto",
    checkpoint_every: int = 1_000,
    progress: OnStage = silent,
) -> Path:
    """Train a backbone, or resume where an earlier call with the same arguments was interrupted.

    Memory: the weights four times, the activations of a batch, and six batches of pictures.

    Args:
        pictures: origins and translations, each with the name of its origin, in any order.
        config: options.
        out: directory of `checkpoint.pt`, `log.jsonl`, `recipe.json` and the result.
        device: `auto`, `cpu`, `cuda`, …
        checkpoint_every: steps between checkpoints, and between lines of the log.
        progress: called with "training", steps done and steps in all.

    Returns:
        The directory below `out` that `load_encoder` takes, named after backbone and loss. `REPORT` in it
        is a `BackboneReport`.

    Raises:
        FinetuneError: the config does not fit the pictures, a picture cannot be read, or the loss is not
            finite.
        EncoderError: the backbone cannot be loaded.
        TrainError: `out` holds a run with another config or other pictures.
    """
    trainer = _Trainer(_Pictures(pictures), config, out, device, progress)
    try:
        trainer.run(log_every=checkpoint_every, checkpoint_every=checkpoint_every)
    finally:
        trainer.close()
    return trainer.save_backbone()


class _Pictures:
    """Pictures sorted by class; rows are decoded when they are asked for."""

    def __init__(self, pictures: Sequence[Labeled]) -> None:
        names, labels = np.unique([origin for _, origin in pictures], return_inverse=True)
        if len(names) < 2:
            raise FinetuneError(f"{len(names)} origins among {len(pictures)} pictures; 2 or more are needed")
        order = np.argsort(labels, kind="stable")
        self._sources = [pictures[i][0] for i in order]
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(labels))])
        self.classes = len(names)
        self.size = 0  # set when the backbone is known
        self._pool = ThreadPoolExecutor(_DECODERS, "decoders")
        lines = (f"{_digest(self._sources[i])} {names[labels[j]]}\n" for i, j in enumerate(order))
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pictures of rows int64[B], uint8[B,size,size,3]."""
        return np.stack(list(self._pool.map(self._decode, [self._sources[row] for row in rows])))

    def __len__(self) -> int:
        return len(self._sources)

    def close(self) -> None:
        """Stop the threads that decode."""
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, source: str | Path | bytes) -> NDArray[np.uint8]:
        data = source if isinstance(source, bytes) else storage.read_bytes(storage.normalize(source))
        decoded = decoder_pool.decode(data, self.size)
        if isinstance(decoded, Reject):
            name = f"{len(source)} bytes" if isinstance(source, bytes) else source
            raise FinetuneError(f"{name}: {decoded.reason} {decoded.detail}; leave it out")
        return decoded.pixels


def _digest(source: str | Path | bytes) -> str:
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


class _Model(nn.Module):
    """The backbone and the class centers, trained together."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: backbones.Backbone, criterion: nn.Module) -> None:
        super().__init__()
        self.backbone, self.criterion = backbone, criterion
        preprocess = backbone.preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of float32[B,size,size,3] pixels, 0–255."""
        x = (pixels.permute(0, 3, 1, 2) - self.mean) / self.std
        embeddings = self.backbone(x)
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.as_tensor(self.criterion(embeddings.float(), labels))


class _Trainer(Loop[ResolvedFinetuneConfig]):
    """One training of a backbone: batches, loss, optimizer and checkpoint of `finetune`."""

    def __init__(
        self, pictures: _Pictures, config: FinetuneConfig, out: Path, device: str, progress: OnStage
    ) -> None:
        self.device = usable_device(device)
        self.progress = progress
        self.pictures = pictures
        name, backbone = _start(config)
        self.result = out / f"{name}-{config.loss}"
        pictures.size = backbone.preprocess.size
        facts = {"init": hash_tensors(backbone.state_dict())[:12], "data": pictures.digest}
        resolved = ResolvedFinetuneConfig.model_validate(config.model_dump() | facts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            criterion = _criterion(config, backbone, pictures.classes)
        super().__init__(resolved, out, _Model(backbone, criterion).to(self.device).train())
        classes = np.arange(pictures.classes)
        self.batches = Batches(pictures, classes, config.batch, config.per_class, None, config.seed)

    def close(self) -> None:
        """Stop the threads that decode ahead."""
        self.batches.close()
        self.pictures.close()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in bfloat16 where the device has it, else in float32."""
        lower = best_dtype(self.device) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)

    def loss(self) -> Tensor:
        """Return the loss of the batch of this step."""
        batch = self.batches.get(self.step, self.config.steps)
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # of dropout, so that a run resumes
            loss = self.model(batch.latents.to(self.device), batch.labels.to(self.device))
        if not torch.isfinite(loss):
            raise FinetuneError(f"the loss of step {self.step} is {loss.item()}: choose a lower lr")
        return torch.as_tensor(loss)

    def measure(self) -> dict[str, float]:
        """Return nothing: the result is measured as an encoder, on pictures it has not seen."""
        return {}

    def stepped(self) -> None:
        """Report progress."""
        self.progress("training", self.step, self.config.steps)

    def _log(self, **values: float) -> None:
        """Write to the file alone: standard output is the caller's."""
        self._append({"step": self.step} | {k: round(float(v), 4) for k, v in values.items()})

    def save_backbone(self) -> Path:
        """Write the trained backbone and return its directory."""
        backbone = self.model.backbone
        assert isinstance(backbone, backbones.Backbone)
        backbone.eval().cpu().save(self.result)
        report = BackboneReport(
            recipe=self.config,
            pictures=len(self.pictures),
            origins=self.pictures.classes,
            seconds=round(self.seconds, 3),
        )
        (self.result / REPORT).write_text(report.model_dump_json(indent=1))
        return self.result


def _start(config: FinetuneConfig) -> tuple[str, backbones.Backbone]:
    """Return the name and weights that a training starts from."""
    if config.backbone == backbones.SCRATCH:
        return backbones.SCRATCH, backbones.from_scratch(config.seed)
    place = locate(config.backbone)
    return place.name, backbones.load(place.source, place.subfolder, place.revision)


def _criterion(config: FinetuneConfig, backbone: backbones.Backbone, classes: int) -> nn.Module:
    side = backbone.preprocess.size
    with torch.inference_mode():
        size = backbone(torch.zeros(1, 3, side, side)).shape[1]
    criterion = build_loss(config, classes, size)
    # Only their directions count. A class is seen once in a pass: from their usual length, sqrt(size), so few
    # steps would hardly turn them, and the backbone would learn random codes by heart.
    with torch.no_grad():
        for centers in criterion.parameters():
            centers.div_(size**0.5)
    return criterion
