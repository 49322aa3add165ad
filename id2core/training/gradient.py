"""W by gradient descent, as in the paper: a classifier over origins on top of descriptors.

A class is an origin with its translations. The loss is CosFace, or for comparison Circle or a normalized
softmax, all of pytorch-metric-learning. Adam's rate is the same throughout an epoch: linear from 1%, then
constant, then a cosine to zero. What is validated and returned is a moving average of W.

A run that was interrupted and resumed gives the same W as an undisturbed one, on a CPU to the last bit.

`torchrun --nproc-per-node N` starts N processes, which share the rows of every step and train the same W as
one does, up to rounding. The first one validates, writes files and reports progress.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from id2core.environment import best_dtype
from id2core.errors import GradientError, TransformError
from id2core.runs.progress import OnStage, silent
from id2core.training import ranks
from id2core.training.closed_form import Trial
from id2core.training.config import GradientConfig, ResolvedGradientConfig
from id2core.training.criteria import Objective, PartialCosFace, build_loss
from id2core.training.loop import Loop, Stateful
from id2core.training.pairs import Pairs
from id2core.training.ranks import Ranks
from id2core.training.samples import Batches
from id2core.training.scalars import Scalars
from id2core.transforms import heads
from id2core.transforms.linear import Transform

WEIGHTS = "W.safetensors"
BATCH_ROWS = 1024


def fit(
    pairs: Pairs,
    config: GradientConfig,
    out: Path,
    *,
    start: Transform | None = None,
    device: str | None = None,
    checkpoint_every: int | None = None,
    progress: OnStage = silent,
) -> Transform:
    """Train W, or resume where an earlier call with the same arguments was interrupted.

    Memory beside the pairs: W and the K·m numbers of the class centers four times, the logits of a batch,
    float32[batch,K], about six times, a few batches, and the latents of validation (250 MB at n = 4,096).

    Args:
        pairs: the classes.
        config: options.
        out: directory of `checkpoint.pt`, `log.jsonl`, `recipe.json` and the result, `W.safetensors`; of
            curves in `tensorboard/` too, where that package is installed. All processes must see it.
        start: W to start from, such as that of `closed_form.fit`, brought to the size of a random one;
            class centers start at its descriptors of origins. By default all starts random.
        device: a torch device; by default the first GPU, or else the CPU. Each of several processes takes
            the GPU of its number.
        checkpoint_every: steps between checkpoints; by default an epoch.
        progress: called with "training", steps done and steps in all.

    Returns:
        W, float32[n,m], or a `heads.Head` where the config has one: of the epoch with the best mAP on
        held-out classes, the start among them; the last where none are held out.

    Raises:
        GradientError: the config does not fit the pairs or the processes, or the loss is not finite.
        PairsError: the share for validation is out of range.
        TrainError: `out` holds a run with another config, other pairs or another start.
    """
    trainer = Trainer(pairs, config, out, start, ranks.join(device), progress)
    with contextlib.closing(trainer):
        trainer.run(log_every=config.iterations, checkpoint_every=checkpoint_every or config.iterations)
    transform = trainer.transform()
    if trainer.writes:
        transform.save(out / WEIGHTS)
    return transform


@dataclass
class Best:
    """The best weights so far: after which step, and with what score."""

    weights: dict[str, Tensor]
    step: int = 0
    score: float = -1.0
    separation: float = 0.0

    def offer(self, weights: dict[str, Tensor], step: int, reached: tuple[float, ...]) -> None:
        """Take the weights where they are better; the separation decides between equal scores."""
        if reached > (self.score, self.separation):
            self.weights, self.step = weights, step
            self.score, self.separation = reached

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return dict(vars(self))

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what the checkpoint kept."""
        vars(self).update(saved)


class Trainer(Loop[ResolvedGradientConfig]):
    """Trains W; see `fit`."""

    clip = None

    def __init__(
        self,
        pairs: Pairs,
        config: GradientConfig,
        out: Path,
        start: Transform | None,
        together: Ranks,
        progress: OnStage,
    ) -> None:
        self.pairs, self.progress, self.ranks = pairs, progress, together
        self.writes = together.rank == 0
        held_out = pairs.held_out(config.validation_share)
        self.classes = np.flatnonzero(~held_out)
        if len(self.classes) < 2:
            raise GradientError(
                f"{len(self.classes)} of {len(held_out)} origins are left to train on: translate more, or "
                f"hold out less than {config.validation_share}"
            )
        _check_ranks(config, len(self.classes), together)
        self.validates = bool(held_out.any())
        self.trial = Trial.of(pairs, held_out) if self.validates and self.writes else None
        resolved = _resolve(config, pairs, start, together.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head = _build_head(config, pairs.latents.shape[1])
            self.criterion = build_loss(config, len(self.classes), config.dimensions, config.negatives)
        if start is not None:
            _start_from(start, head, self.criterion, pairs.latents, pairs.offsets[self.classes])
        dtype = getattr(torch, resolved.precision)
        objective = Objective(head, self.criterion, dtype, together).to(together.device)
        super().__init__(resolved, out, head)
        self.objective = together.around(objective)
        self.average = AveragedModel(
            head, avg_fn=lambda old, new, n: old.lerp(new, 1 - min(config.ema, (1 + int(n)) / (10 + int(n))))
        )
        self.best = Best(self._averaged())
        self.scalars = Scalars(out / "tensorboard")
        self.batches = Batches(
            pairs, self.classes, config.batch, config.per_class, config.negatives, config.seed, together.share
        )

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Build Adam with torch's defaults, and a second one for sparse gradients."""
        weights, centers = list(self.model.parameters()), list(self.criterion.parameters())
        optimizers: dict[str, torch.optim.Optimizer] = {}
        if isinstance(self.criterion, PartialCosFace):
            optimizers["sparse"], centers = torch.optim.SparseAdam(centers, lr=self.config.lr), []
        decay = self.config.weight_decay
        optimizers["optimizer"] = torch.optim.AdamW(
            weights + centers, lr=self.config.lr, weight_decay=decay, fused=True
        )
        return optimizers

    def close(self) -> None:
        """End the threads that read ahead and write curves."""
        self.batches.close()
        self.scalars.close()

    def state(self) -> dict[str, Stateful]:
        """Return W, its average, the best so far, the class centers and the optimizers."""
        own: dict[str, Stateful] = {"average": self.average, "best": self.best, "criterion": self.criterion}
        return super().state() | own

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that changes nothing: the objective sets the precision of the head alone."""
        return contextlib.nullcontext()

    def loss(self) -> Tensor:
        """Return the loss of this rank's rows of this step."""
        batch = self.batches.get(self.step, self.config.steps)
        parts = (batch.latents, batch.labels, batch.centers)
        loss = self.objective(*(x.to(self.ranks.device) for x in parts if x is not None))
        if not torch.isfinite(loss):
            raise GradientError(f"the loss of step {self.step} is {loss.item()}: choose a lower lr")
        return torch.as_tensor(loss)

    def rate(self) -> float:
        """Return the learning rate, which is constant within an epoch."""
        return float(self.config.rate(self.step // self.config.iterations))

    def stepped(self) -> None:
        """Update the moving average of the weights after a step."""
        self.average.update_parameters(self.model)
        if self.writes:
            self.progress("training", self.step, self.config.steps)

    def finished(self) -> bool:
        """Return whether all steps are done, or patience has ended."""
        waited = (self.step - self.best.step) // self.config.iterations
        patience = self.config.patience
        return super().finished() or (self.validates and patience is not None and waited >= patience)

    def _averaged(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.average.module.state_dict().items()}

    def measure(self) -> dict[str, float]:
        """Validate the averaged W, and keep it where it is the best."""
        weights = self._averaged()
        if not self.validates:
            self.best = Best(weights, self.step)
            return {}
        reached = (0.0, 0.0) if self.trial is None else self.trial.score(self._transform(weights, {}))
        score, separation = self.ranks.agree(*reached)
        self.best.offer(weights, self.step, (score, separation))
        return {"validation_map": score, "separation": separation}

    def _log(self, **values: float) -> None:
        """Write to files alone: standard output is the caller's."""
        if "loss" in values:
            values["loss"] = self.ranks.mean(values["loss"])
        if not self.writes:
            return
        self._append({"step": self.step} | {k: round(v, 4) for k, v in values.items()})
        epoch = max(self.step - 1, 0) // self.config.iterations
        values.pop("seconds", None)
        self.scalars.add(self.step, values | {"rate": self.config.rate(epoch)})

    def transform(self) -> Transform:
        """Return the best W, with its recipe and data as metadata."""
        facts: dict[str, JsonValue] = {
            **self.pairs.ids,
            "method": "gradient descent",
            "recipe": self.config.model_dump(),
            "validation_map": self.best.score if self.validates else None,
            "steps": self.best.step,
            "data": self.pairs.digest,
            "origins": len(self.classes),
        }
        return self._transform(self.best.weights, facts)

    def _transform(self, weights: dict[str, Tensor], facts: dict[str, JsonValue]) -> Transform:
        kind, m = self.config.head, self.config.dimensions
        if kind == heads.LINEAR:
            return Transform(np.ascontiguousarray(weights["weight"].T.numpy()), facts)
        architecture = heads.Architecture(kind, self.pairs.latents.shape[1], m)
        return heads.Head.of(architecture, weights, facts | {"experimental": True}, str(self.ranks.device))


def _resolve(
    config: GradientConfig, pairs: Pairs, start: Transform | None, device: torch.device
) -> ResolvedGradientConfig:
    """Return what a resumed run must agree in: the config with its inputs and this machine's precision."""
    precision = config.precision
    if precision == "auto":
        # A CPU with matrix units gains a sixth of the time of a step: too little for another W.
        lower = device.type == "cuda" and best_dtype(device) == torch.bfloat16
        precision = "bfloat16" if lower else "float32"
    facts = {
        "precision": precision,
        "init": "random" if start is None else start.transform_id,
        "data": pairs.digest,
    }
    return ResolvedGradientConfig.model_validate(config.model_dump() | facts)


def _check_ranks(config: GradientConfig, classes: int, together: Ranks) -> None:
    rows = min(classes, config.batch // config.per_class) * config.per_class
    if rows % together.count:
        raise GradientError(
            f"{rows} rows of a step do not divide into {together.count} processes: choose another batch, or "
            f"a number of processes that divides {rows}"
        )
    if together.count > 1 and config.negatives is not None:
        raise GradientError("negatives need one process: leave them out, or start without torchrun")


def _build_head(config: GradientConfig, n: int) -> nn.Module:
    try:
        return heads.build(config.head, n, config.dimensions)
    except TransformError as error:
        raise GradientError(str(error)) from error


def _start_from(
    start: Transform,
    head: nn.Module,
    criterion: nn.Module,
    latents: NDArray[np.float16],
    origins: NDArray[np.int64],
) -> None:
    """Put W, and the centers where a loss has them, in place; `origins` are rows of latents, one a class."""
    if not isinstance(head, nn.Linear):
        raise GradientError("a start is for the linear head: leave it out")
    weights = head.weight
    wanted = (head.in_features, head.out_features)
    if start.weights is None or start.weights.shape != wanted:
        given = "the identity" if start.weights is None else f"of shape {start.weights.shape}"
        raise GradientError(f"the start is {given}; W of shape {wanted} is needed")
    start_weights = torch.from_numpy(start.weights).T
    # The length of W does not matter to the cosine, but to how far a step of Adam turns it.
    weights.data = (start_weights * (weights.detach().norm() / start_weights.norm())).contiguous()
    for centers in criterion.parameters():
        rows = centers.data if isinstance(criterion, PartialCosFace) else centers.data.T
        for i in range(0, len(origins), BATCH_ROWS):
            block = origins[i : i + BATCH_ROWS]
            rows[i : i + BATCH_ROWS] = torch.from_numpy(start.apply(latents[block]))
