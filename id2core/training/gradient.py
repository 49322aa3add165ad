"""W by gradient descent, as in the paper: a classifier over origins on top of descriptors.

A class is an origin with its translations. The loss is CosFace, or for comparison Circle or a normalised
softmax, all of pytorch-metric-learning. Adam's rate is the same throughout an epoch: linear from 1 %, then
constant, then a cosine to zero. What is validated and returned is a moving average of W.

Interrupted and started again, a run gives the same W as an undisturbed one, on a CPU to the last bit.

Started by `torchrun --nproc-per-node N`, N processes share the rows of every step and train the same W as
one does, up to rounding. Of validation, files and progress, the first takes care.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from id2core.environment import best_dtype
from id2core.errors import GradientError, TransformError
from id2core.runs.progress import Progress, silent
from id2core.training import ranks
from id2core.training.closed_form import Trial
from id2core.training.criteria import Objective, PartialCosFace, build_loss
from id2core.training.loop import Loop
from id2core.training.pairs import Pairs
from id2core.training.ranks import Ranks
from id2core.training.recipe import LOSSES, Recipe
from id2core.training.samples import Batches
from id2core.training.scalars import Scalars
from id2core.transforms import heads
from id2core.transforms.linear import Transform

__all__ = ["LOSSES", "WEIGHTS", "GradientError", "Recipe", "fit"]

WEIGHTS = "W.safetensors"
_AT_ONCE = 1024


def fit(
    pairs: Pairs,
    recipe: Recipe,
    out: Path,
    *,
    start: Transform | None = None,
    device: str | None = None,
    checkpoint_every: int | None = None,
    progress: Progress = silent,
) -> Transform:
    """Train W, or go on where an earlier call with the same arguments was interrupted.

    Memory beside the pairs: W and the K·m numbers of the class centres four times, the logits of a batch,
    float32[batch,K], about six times, a few batches, and the latents of validation (250 MB at n = 4,096).

    Args:
        pairs: the classes.
        recipe: what to do.
        out: directory of `checkpoint.pt`, `log.jsonl`, `recipe.json` and the result, `W.safetensors`; of
            curves in `tensorboard/` too, where that package is installed. All processes must see it.
        start: W to start from, such as that of `closed_form.fit`, brought to the size of a random one;
            class centres start at its descriptors of origins. By default all starts random.
        device: a torch device; by default the first GPU, or else the CPU. Each of several processes takes
            the GPU of its number.
        checkpoint_every: steps between checkpoints; by default an epoch.
        progress: called with "training", steps done and steps in all.

    Returns:
        W, float32[n,m], or a `heads.Head` where the recipe has one: of the epoch with the best mAP on
        held-out classes, the start among them; the last where none are held out.

    Raises:
        GradientError: the recipe does not fit the pairs or the processes, or the loss is not finite.
        PairsError: the share for validation is out of range.
        ValueError: `out` holds a run with another recipe, other pairs or another start.
    """
    recipe.check()
    trainer = Trainer(pairs, recipe, out, start, ranks.join(device), progress)
    with contextlib.closing(trainer):
        trainer.run(log_every=recipe.iterations, checkpoint_every=checkpoint_every or recipe.iterations)
    found = trainer.transform()
    if trainer.writes:
        found.save(out / WEIGHTS)
    return found


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
        """For the checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(saved)


class Trainer(Loop):
    """Trains W; see `fit`."""

    clip = None

    def __init__(
        self,
        pairs: Pairs,
        recipe: Recipe,
        out: Path,
        start: Transform | None,
        together: Ranks,
        progress: Progress,
    ) -> None:
        self.pairs, self.progress, self.ranks = pairs, progress, together
        self.writes = together.rank == 0
        held_out = pairs.held_out(recipe.validation_share)
        self.classes = np.flatnonzero(~held_out)
        if len(self.classes) < 2:
            raise GradientError(
                f"{len(self.classes)} of {len(held_out)} origins are left to train on: translate more, or "
                f"hold out less than {recipe.validation_share}"
            )
        _check_ranks(recipe, len(self.classes), together)
        self.validates = bool(held_out.any())
        self.trial = Trial.of(pairs, held_out) if self.validates and self.writes else None
        recipe = _settled(recipe, pairs, start, together.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            head = _build_head(recipe, pairs.latents.shape[1])
            self.criterion = build_loss(recipe, len(self.classes))
        if start is not None:
            _start_from(start, head, self.criterion, pairs.latents, pairs.offsets[self.classes])
        dtype = getattr(torch, recipe.precision)
        objective = Objective(head, self.criterion, dtype, together).to(together.device)
        super().__init__(recipe, out, head)
        self.objective = together.around(objective)
        self.average = AveragedModel(
            head, avg_fn=lambda old, new, n: old.lerp(new, 1 - min(recipe.ema, (1 + int(n)) / (10 + int(n))))
        )
        self.best = Best(self._averaged())
        self.scalars = Scalars(out / "tensorboard")
        self.batches = Batches(
            pairs, self.classes, recipe.batch, recipe.per_class, recipe.negatives, recipe.seed, together.share
        )

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam with torch's defaults; sparse gradients take an Adam of their own."""
        weights, centres = list(self.model.parameters()), list(self.criterion.parameters())
        found: dict[str, torch.optim.Optimizer] = {}
        if isinstance(self.criterion, PartialCosFace):
            found["sparse"], centres = torch.optim.SparseAdam(centres, lr=self.recipe.lr), []
        decay = self.recipe.weight_decay
        found["optimizer"] = torch.optim.AdamW(
            weights + centres, lr=self.recipe.lr, weight_decay=decay, fused=True
        )
        return found

    def close(self) -> None:
        """End the threads that read ahead and write curves."""
        self.batches.close()
        self.scalars.close()

    def state(self) -> dict[str, Any]:
        """W, its average, the best so far, the class centres and the optimizers."""
        parts = {"average": self.average, "best": self.best, "criterion": self.criterion}
        return super().state() | parts

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """None around the whole: in the objective, the head alone has the recipe's precision."""
        return contextlib.nullcontext()

    def loss(self) -> Tensor:
        """The recipe's loss of this rank's rows of this step."""
        batch = self.batches.get(self.step, self.recipe.steps)
        parts = (batch.latents, batch.labels, batch.centres)
        loss = self.objective(*(x.to(self.ranks.device) for x in parts if x is not None))
        if not torch.isfinite(loss):
            raise GradientError(f"the loss of step {self.step} is {loss.item()}: choose a lower lr")
        return torch.as_tensor(loss)

    def rate(self) -> float:
        """One for each epoch."""
        return float(self.recipe.rate(self.step // self.recipe.iterations))

    def stepped(self) -> None:
        """Move the average."""
        self.average.update_parameters(self.model)
        if self.writes:
            self.progress("training", self.step, self.recipe.steps)

    def finished(self) -> bool:
        """After the last step of the recipe, or when patience ends."""
        waited = (self.step - self.best.step) // self.recipe.iterations
        patience = self.recipe.patience
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
        """To files alone: standard output is the caller's."""
        if "loss" in values:
            values["loss"] = self.ranks.mean(values["loss"])
        if not self.writes:
            return
        self._append({"step": self.step} | {k: round(v, 4) for k, v in values.items()})
        epoch = max(self.step - 1, 0) // self.recipe.iterations
        values.pop("seconds", None)
        self.scalars.add(self.step, values | {"rate": self.recipe.rate(epoch)})

    def transform(self) -> Transform:
        """The best W, with what it is from."""
        facts = {
            **self.pairs.ids,
            "method": "gradient descent",
            "recipe": asdict(self.recipe),
            "validation_map": self.best.score if self.validates else None,
            "steps": self.best.step,
            "data": self.pairs.digest,
            "origins": len(self.classes),
        }
        return self._transform(self.best.weights, facts)

    def _transform(self, weights: dict[str, Tensor], facts: dict[str, Any]) -> Transform:
        kind, m = self.recipe.head, self.recipe.dimensions
        if kind == heads.LINEAR:
            return Transform(np.ascontiguousarray(weights["weight"].T.numpy()), facts)
        architecture = heads.Architecture(kind, self.pairs.latents.shape[1], m)
        return heads.Head.of(architecture, weights, facts | {"experimental": True}, str(self.ranks.device))


def _settled(recipe: Recipe, pairs: Pairs, start: Transform | None, device: torch.device) -> Recipe:
    """With all that is left open: what a resumed run must agree in."""
    precision = recipe.precision
    if precision == "auto":
        # A CPU with matrix units gains a sixth of the time of a step: too little for another W.
        lower = device.type == "cuda" and best_dtype(device) == torch.bfloat16
        precision = "bfloat16" if lower else "float32"
    init = recipe.init if start is None else start.transform_id
    return replace(recipe, init=init, data=pairs.digest, precision=precision)


def _check_ranks(recipe: Recipe, classes: int, together: Ranks) -> None:
    rows = min(classes, recipe.batch // recipe.per_class) * recipe.per_class
    if rows % together.count:
        raise GradientError(
            f"{rows} rows of a step do not divide into {together.count} processes: choose another batch, or "
            f"a number of processes that divides {rows}"
        )
    if together.count > 1 and recipe.negatives is not None:
        raise GradientError("negatives need one process: leave them out, or start without torchrun")


def _build_head(recipe: Recipe, n: int) -> nn.Module:
    try:
        return heads.build(recipe.head, n, recipe.dimensions)
    except TransformError as error:
        raise GradientError(str(error)) from error


def _start_from(
    start: Transform,
    head: nn.Module,
    criterion: nn.Module,
    latents: NDArray[np.float16],
    origins: NDArray[np.int64],
) -> None:
    """Put W, and the centres where a loss has them, in place; `origins` are rows of latents, one a class."""
    if not isinstance(head, nn.Linear):
        raise GradientError("a start is for the linear head: leave it out")
    weights = head.weight
    wanted = (head.in_features, head.out_features)
    if start.weights is None or start.weights.shape != wanted:
        found = "the identity" if start.weights is None else f"of shape {start.weights.shape}"
        raise GradientError(f"the start is {found}; W of shape {wanted} is needed")
    given = torch.from_numpy(start.weights).T
    # The length of W does not matter to the cosine, but to how far a step of Adam turns it.
    weights.data = (given * (weights.detach().norm() / given.norm())).contiguous()
    for centres in criterion.parameters():
        rows = centres.data if isinstance(criterion, PartialCosFace) else centres.data.T
        for i in range(0, len(origins), _AT_ONCE):
            block = origins[i : i + _AT_ONCE]
            rows[i : i + _AT_ONCE] = torch.from_numpy(start.apply(latents[block]))
