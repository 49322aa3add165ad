"""A vision backbone trained to tell origins apart: the similarity-based models of the paper's Table 3.

A class is an origin with its translations; the loss is Circle, a normalised softmax or CosFace over the
embeddings, as for W. Pictures are stretched to the backbone's square and nothing else: no
augmentation. The paper names neither the sizes nor the rates of these runs, only the losses and, by its
comparison of costs, a ViT: all numbers of `Recipe` are ours. None has ever run here with weights from a hub;
`backbones.SCRATCH` begins with random ones.

What comes out is a directory that `encoders.load` takes, so that embedding, scanning and measuring go on as
with any other encoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from id2core.encoders import backbones, images
from id2core.encoders.base import hash_tensors
from id2core.encoders.hub import locate
from id2core.environment import best_device, best_dtype
from id2core.errors import FinetuneError
from id2core.runs.progress import Progress, silent
from id2core.store import storage
from id2core.store.rejects import Reject
from id2core.training.criteria import build_loss
from id2core.training.loop import Loop
from id2core.training.recipe import LOSSES
from id2core.training.recipe import Recipe as LossRecipe
from id2core.training.samples import Batches

# Beside the trained weights: what made them.
REPORT = "finetune.json"
_DECODERS = 4
# A file (local path or gs:// object) or its bytes, and the name of its origin.
Labelled = tuple[str | Path | bytes, str]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome but the pictures.

    Attributes:
        backbone: what to start from: a short name, directory or hub id, as `encoders.load` takes them, or
            `backbones.SCRATCH` for random weights.
        loss, scale, margin: as in `training.recipe.Recipe`.
        batch, per_class: pictures of a step, and of each origin among them.
        steps, warmup: of the run, and until the rate is at its peak; it then falls to zero as a cosine.
        lr, weight_decay: of AdamW, for the backbone and the class centres alike.
        seed: of the centres, the batches, dropout, and random weights.
        init, data: set by `finetune`: the hash of the weights it starts from, and of the list of pictures.
    """

    backbone: str = "vit-b"
    loss: Literal["cosface", "circle", "softmax"] = "cosface"
    scale: float | None = None
    margin: float | None = None
    batch: int = 128
    per_class: int = 4
    steps: int = 20_000
    warmup: int = 1_000
    lr: float = 1e-4
    weight_decay: float = 1e-4
    seed: int = 1
    init: str = ""
    data: str = ""

    def check(self) -> None:
        """Raise FinetuneError where no training could follow it."""
        if self.loss not in LOSSES:
            raise FinetuneError(f"loss is {self.loss}: choose {', '.join(LOSSES)}")
        if self.per_class < 2 or self.batch % self.per_class or self.batch < 2 * self.per_class:
            raise FinetuneError(
                f"a batch of {self.batch} with {self.per_class} of each origin: choose 2 or more, of 2 or "
                "more origins"
            )
        if min(self.steps, self.warmup) < 1:
            raise FinetuneError(f"{self.steps} steps, warm-up {self.warmup}: choose 1 or more")
        if self.warmup > self.steps:
            raise FinetuneError(
                f"a warm-up of {self.warmup} in {self.steps} steps never reaches the peak rate: choose a "
                f"shorter warm-up (a twentieth would be {max(1, self.steps // 20)}), or more steps"
            )


def finetune(
    pictures: Sequence[Labelled],
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    checkpoint_every: int = 1_000,
    progress: Progress = silent,
) -> Path:
    """Train a backbone, or go on where an earlier call with the same arguments was interrupted.

    Memory: the weights four times, the activations of a batch, and six batches of pictures.

    Args:
        pictures: origins and translations, each with the name of its origin, in any order.
        recipe: what to do.
        out: directory of `checkpoint.pt`, `log.jsonl`, `recipe.json` and the result.
        device: `auto`, `cpu`, `cuda`, …
        checkpoint_every: steps between checkpoints, and between lines of the log.
        progress: called with "training", steps done and steps in all.

    Returns:
        The directory below `out` that `encoders.load` takes, named after backbone and loss. `REPORT` in it
        has the recipe, the number of pictures and origins, and the `seconds` of its steps, also of those that
        earlier calls did.

    Raises:
        FinetuneError: the recipe or the pictures do not fit, a picture cannot be read, or the loss is not
            finite.
        EncoderError: the backbone cannot be loaded.
        ValueError: `out` holds a run with another recipe or other pictures.
    """
    recipe.check()
    trainer = _Trainer(_Pictures(pictures), recipe, out, device, progress)
    try:
        trainer.run(log_every=checkpoint_every, checkpoint_every=checkpoint_every)
    finally:
        trainer.close()
    return trainer.save_backbone()


class _Pictures:
    """Pictures sorted by class; rows are decoded when they are asked for."""

    def __init__(self, pictures: Sequence[Labelled]) -> None:
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
        """uint8[B,size,size,3]."""
        return np.stack(list(self._pool.map(self._decode, [self._sources[row] for row in rows])))

    def __len__(self) -> int:
        return len(self._sources)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, source: str | Path | bytes) -> NDArray[np.uint8]:
        data = source if isinstance(source, bytes) else storage.read_bytes(storage.normalize(source))
        decoded = images.decode(data, self.size)
        if isinstance(decoded, Reject):
            name = f"{len(source)} bytes" if isinstance(source, bytes) else source
            raise FinetuneError(f"{name}: {decoded.reason} {decoded.detail}; leave it out")
        return decoded.pixels


def _digest(source: str | Path | bytes) -> str:
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else str(source)


class _Model(nn.Module):
    """The backbone and the class centres, trained together."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: backbones.Backbone, criterion: nn.Module) -> None:
        super().__init__()
        self.backbone, self.criterion = backbone, criterion
        preprocess = backbone.preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of float32[B,size,size,3] pixels, 0–255."""
        x = (pixels.permute(0, 3, 1, 2) - self.mean) / self.std
        embeddings = self.backbone(x)
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.as_tensor(self.criterion(embeddings.float(), labels))


class _Trainer(Loop):
    """Trains a backbone; see `finetune`."""

    recipe: Recipe

    def __init__(self, pictures: _Pictures, plan: Recipe, out: Path, device: str, progress: Progress) -> None:
        self.device = torch.device(best_device() if device == "auto" else device)
        self.progress = progress
        self.pictures = pictures
        name, backbone = _start(plan)
        self.result = out / f"{name}-{plan.loss}"
        pictures.size = backbone.preprocess.size
        plan = replace(plan, init=hash_tensors(backbone.state_dict())[:12], data=pictures.digest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            criterion = _criterion(plan, backbone, pictures.classes)
        super().__init__(plan, out, _Model(backbone, criterion).to(self.device).train())
        classes = np.arange(pictures.classes)
        self.batches = Batches(pictures, classes, plan.batch, plan.per_class, None, plan.seed)

    def close(self) -> None:
        """End the threads that decode ahead."""
        self.batches.close()
        self.pictures.close()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 where the device multiplies it in hardware, else float32: float16 would need scaling."""
        lower = best_dtype(self.device) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)

    def loss(self) -> Tensor:
        """The recipe's loss of the batch of this step."""
        batch = self.batches.get(self.step, self.recipe.steps)
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # of dropout, so that a run resumes
            loss = self.model(batch.latents.to(self.device), batch.labels.to(self.device))
        if not torch.isfinite(loss):
            raise FinetuneError(f"the loss of step {self.step} is {loss.item()}: choose a lower lr")
        return torch.as_tensor(loss)

    def measure(self) -> dict[str, float]:
        """Nothing: the result is measured as an encoder, on pictures it has not seen."""
        return {}

    def stepped(self) -> None:
        """Tell how far it is."""
        self.progress("training", self.step, self.recipe.steps)

    def _log(self, **values: float) -> None:
        """To the file alone: standard output is the caller's."""
        self._append({"step": self.step} | {k: round(float(v), 4) for k, v in values.items()})

    def save_backbone(self) -> Path:
        """Write the trained backbone and return its directory."""
        backbone = self.model.backbone
        assert isinstance(backbone, backbones.Backbone)
        backbone.eval().cpu().save(self.result)
        facts = {
            "recipe": asdict(self.recipe),
            "pictures": len(self.pictures),
            "origins": self.pictures.classes,
            "seconds": round(self.seconds, 3),
        }
        (self.result / REPORT).write_text(json.dumps(facts, indent=1))
        return self.result


def _start(plan: Recipe) -> tuple[str, backbones.Backbone]:
    """The name and weights that a training begins with."""
    if plan.backbone == backbones.SCRATCH:
        return backbones.SCRATCH, backbones.from_scratch(plan.seed)
    place = locate(plan.backbone)
    return place.name, backbones.load(place.source, place.subfolder, place.revision)


def _criterion(plan: Recipe, backbone: backbones.Backbone, classes: int) -> nn.Module:
    side = backbone.preprocess.size
    with torch.inference_mode():
        size = backbone(torch.zeros(1, 3, side, side)).shape[1]
    asked = LossRecipe(loss=plan.loss, scale=plan.scale, margin=plan.margin, dimensions=size)
    criterion = build_loss(asked, classes)
    # Only their directions count. A class is seen once in a pass: from their usual length, sqrt(size), so few
    # steps would hardly turn them, and the backbone would learn random codes by heart.
    with torch.no_grad():
        for centres in criterion.parameters():
            centres.div_(size**0.5)
    return criterion
