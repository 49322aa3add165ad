"""W by gradient descent, as in the paper: a classifier over origins on top of descriptors.

A class is an origin with its translations. The loss is CosFace (arXiv 1801.09414), or for comparison
Circle or a normalised softmax, all of pytorch-metric-learning. Adam's rate is the same throughout an
epoch: linear from 1 %, then constant, then a cosine to zero. What is validated and returned is a moving
average of W.

Interrupted and started again, a run gives the same W as an undisturbed one, on a CPU to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from numpy.typing import NDArray
from pytorch_metric_learning import losses  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from id2core.training.loop import Loop
from id2core.training.pairs import Pairs, Progress
from id2core.training.samples import Batches, Trial
from id2core.transform import Transform

WEIGHTS = "W.safetensors"
# Scale and margin: the paper's for CosFace; of the others it tells none, and these are the library's.
LOSSES = {"cosface": (64.0, 0.35), "circle": (80.0, 0.4), "softmax": (20.0, 0.0)}
_AT_ONCE = 1024
_FIRST_RATE = 0.01  # of the peak


class MetricError(Exception):
    """A recipe or pairs that give no W; the message says what to do."""


class _Stop(Exception):  # noqa: N818 (no error)
    """Patience has ended."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome but the pairs; the defaults are the paper's.

    Attributes:
        loss: one of `LOSSES`.
        scale, margin: s and m; γ and m of Circle. By default as in `LOSSES`; softmax has no margin.
        negatives: for CosFace over very many classes: in a step only the centres of the batch's classes
            and of that many others, drawn anew, take part and move. None: all do.
        dimensions: m, columns of W.
        batch, per_class: rows of a step, and of each class among them.
        epochs, iterations: how many epochs, and steps in each.
        lr: the peak of the learning rate.
        warmup, decay_from: until which share of the epochs the rate rises, and from which it falls.
        weight_decay: of W and of the centres, but those of `negatives`; decoupled.
        ema: decay of the moving average of W. Step k takes (1+k)/(10+k) where that is less, so that a
            short run forgets its start.
        validation_share: of the classes, held out as by `pairs.held_out`; 0 for no validation.
        patience: epochs without improvement after which training stops; None never stops it. The rate's
            fall to zero improves W late: leave some patience.
        seed: of the start and of the batches.
        init, data: set by `fit`: `random` or the transform_id of the start, and the digest of the pairs.
    """

    loss: Literal["cosface", "circle", "softmax"] = "cosface"
    scale: float | None = None
    margin: float | None = None
    negatives: int | None = None
    dimensions: int = 512
    batch: int = 512
    per_class: int = 4
    epochs: int = 25
    iterations: int = 2_000
    lr: float = 3.5e-4
    warmup: float = 0.2
    decay_from: float = 0.4
    weight_decay: float = 0.0
    ema: float = 0.9999
    validation_share: float = 0.1
    patience: int | None = 10
    seed: int = 1
    init: str = "random"
    data: str = ""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.iterations

    def rate(self, epoch: int) -> float:
        """The learning rate throughout an epoch, counted from 0."""
        rises, falls = round(self.warmup * self.epochs), round(self.decay_from * self.epochs)
        if epoch < rises:
            return self.lr * (_FIRST_RATE + (1 - _FIRST_RATE) * epoch / rises)
        if epoch < falls:
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - falls) / (self.epochs - falls)))


def fit(
    pairs: Pairs,
    recipe: Recipe,
    out: Path,
    *,
    start: Transform | None = None,
    device: str | None = None,
    checkpoint_every: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Transform:
    """Train W, or go on where an earlier call with the same arguments was interrupted.

    Memory beside the pairs: W and the K·m numbers of the class centres four times, the logits of a batch,
    float32[batch,K], about six times, a few batches, and the latents of validation (250 MB at n = 4,096).

    Args:
        pairs: the classes.
        recipe: what to do.
        out: directory of `checkpoint.pt`, `log.jsonl`, `recipe.json` and the result, `W.safetensors`.
        start: W to start from, such as that of `closed_form.fit`, brought to the size of a random one;
            class centres start at its descriptors of origins. By default all starts random.
        device: a torch device; by default the first GPU, or else the CPU.
        checkpoint_every: steps between checkpoints; by default an epoch.
        progress: called with "training", steps done and steps in all.

    Returns:
        W, float32[n,m]: of the epoch with the best mAP on held-out classes, the start among them; the last
        where none are held out.

    Raises:
        MetricError: the recipe does not fit the pairs, or the loss is not finite.
        PairsError: the share for validation is out of range.
        ValueError: `out` holds a run with another recipe, other pairs or another start.
    """
    _check(recipe)
    trainer = Trainer(pairs, recipe, out, start, device, progress)
    try:
        trainer.run(log_every=recipe.iterations, checkpoint_every=checkpoint_every or recipe.iterations)
    finally:
        trainer.close()
    found = trainer.transform()
    found.save(out / WEIGHTS)
    return found


def _check(recipe: Recipe) -> None:
    r = recipe
    wrong = [
        (r.loss not in LOSSES, f"loss is {r.loss}: choose {', '.join(LOSSES)}"),
        (
            r.per_class < 2 or r.batch % r.per_class or r.batch < 2 * r.per_class,
            f"a batch of {r.batch} with {r.per_class} of each class: choose 2 or more, of 2 or more classes",
        ),
        (
            min(r.epochs, r.iterations) < 1,
            f"{r.epochs} epochs of {r.iterations} iterations: choose 1 or more",
        ),
        (
            not 0 <= r.warmup <= r.decay_from < 1,
            f"warmup {r.warmup}, decay_from {r.decay_from}: choose 0 ≤ warmup ≤ decay_from < 1",
        ),
        (r.patience is not None and r.patience < 1, f"patience is {r.patience}: choose 1 or more, or None"),
        (
            r.negatives is not None and (r.loss != "cosface" or r.negatives < 1),
            f"negatives {r.negatives} with {r.loss}: they are for cosface, 1 or more",
        ),
    ]
    for is_wrong, message in wrong:
        if is_wrong:
            raise MetricError(message)


class PartialCosFace(nn.Module):
    """CosFace where only some of K classes take part: a step costs as much as these do.

    Gradients are sparse, so that the other centres stand still.
    """

    def __init__(self, classes: int, size: int, scale: float, margin: float) -> None:
        super().__init__()
        self.centres = nn.Embedding(classes, size, sparse=True)
        self.scale, self.margin = scale, margin

    def forward(self, descriptors: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
        """Mean loss.

        Args:
            descriptors: float32[B,m], of any length.
            labels: int64[B], classes.
            chosen: int64[S], ascending, the classes that take part, all of the labels' among them.
        """
        cosine = F.normalize(descriptors) @ F.normalize(self.centres(chosen)).T
        own = torch.searchsorted(chosen, labels)
        margins = self.margin * F.one_hot(own, len(chosen))
        return F.cross_entropy(self.scale * (cosine - margins), own)


def build_loss(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's loss over so many classes, centres included: descriptors and labels in, mean loss out."""
    scale, margin = LOSSES[recipe.loss]
    scale = scale if recipe.scale is None else recipe.scale
    margin = margin if recipe.margin is None else recipe.margin
    size = recipe.dimensions
    if recipe.negatives is not None:
        return PartialCosFace(classes, size, scale, margin)
    if recipe.loss == "cosface":
        made = losses.CosFaceLoss(classes, size, margin=margin, scale=scale)
    elif recipe.loss == "softmax":
        made = losses.NormalizedSoftmaxLoss(classes, size, temperature=1 / scale)
    else:
        made = losses.CircleLoss(m=margin, gamma=scale)
    assert isinstance(made, nn.Module)
    return made


@dataclass
class Best:
    """The best W so far: after which step, and with what score."""

    weights: Tensor
    step: int = 0
    score: float = -1.0
    separation: float = 0.0

    def offer(self, weights: Tensor, step: int, reached: tuple[float, float]) -> None:
        """Take W where it is better; the separation decides between equal scores."""
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

    def __init__(
        self,
        pairs: Pairs,
        recipe: Recipe,
        out: Path,
        start: Transform | None,
        device: str | None,
        progress: Progress,
    ) -> None:
        self.pairs, self.progress = pairs, progress
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        held_out = pairs.held_out(recipe.validation_share)
        self.classes = np.flatnonzero(~held_out)
        if len(self.classes) < 2:
            raise MetricError(
                f"{len(self.classes)} of {len(held_out)} origins are left to train on: translate more, or "
                f"hold out less than {recipe.validation_share}"
            )
        self.trial = Trial(pairs, held_out) if held_out.any() else None
        init = recipe.init if start is None else start.transform_id
        recipe = replace(recipe, init=init, data=pairs.digest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            projection = nn.Linear(pairs.latents.shape[1], recipe.dimensions, bias=False)
            self.criterion = build_loss(recipe, len(self.classes))
        if start is not None:
            _start_from(start, projection, self.criterion, pairs.latents, pairs.offsets[self.classes])
        self.criterion.to(self.device)
        super().__init__(recipe, out, projection.to(self.device))
        self.optimizers = self._optimizers(recipe)
        self.average = AveragedModel(
            projection,
            avg_fn=lambda old, new, n: old.lerp(new, 1 - min(recipe.ema, (1 + int(n)) / (10 + int(n)))),
        )
        self.best = Best(self._averaged())
        self.batches = Batches(
            pairs, self.classes, recipe.batch, recipe.per_class, recipe.negatives, recipe.seed
        )

    def _optimizers(self, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
        """Adam with torch's defaults; sparse gradients take an Adam of their own."""
        weights, centres = list(self.model.parameters()), list(self.criterion.parameters())
        found: dict[str, torch.optim.Optimizer] = {}
        if isinstance(self.criterion, PartialCosFace):
            found["sparse"], centres = torch.optim.SparseAdam(centres, lr=recipe.lr), []
        decay = recipe.weight_decay
        found["optimizer"] = torch.optim.AdamW(weights + centres, lr=recipe.lr, weight_decay=decay)
        return found

    def close(self) -> None:
        """End the thread that reads ahead."""
        self.batches.close()

    def state(self) -> dict[str, Any]:
        """W, its average, the best so far, the class centres and the optimizers."""
        parts = {"average": self.average, "best": self.best, "criterion": self.criterion}
        return {"model": self.model} | parts | self.optimizers

    def loss(self) -> Tensor:
        """The recipe's loss of the batch of this step."""
        batch = self.batches.get(self.step, self.recipe.steps)
        parts = [x.to(self.device) for x in (batch.latents, batch.labels, batch.centres) if x is not None]
        return torch.as_tensor(self.criterion(self.model(parts[0]), *parts[1:]))

    def _one_step(self) -> float:
        """As the paper has it: a rate per epoch, gradients that are not clipped, float32."""
        if self._out_of_patience():
            raise _Stop
        loss = self.loss()
        if not torch.isfinite(loss):
            raise MetricError(f"the loss of step {self.step} is {loss.item()}: choose a lower lr")
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step // self.recipe.iterations)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.step += 1
        self.progress("training", self.step, self.recipe.steps)
        return float(loss.detach())

    def _out_of_patience(self) -> bool:
        waited = (self.step - self.best.step) // self.recipe.iterations
        patience = self.recipe.patience
        return self.trial is not None and patience is not None and waited >= patience

    def run(self, log_every: int = 250, checkpoint_every: int = 250) -> None:
        """Train to the last step of the recipe, or until patience ends."""
        with contextlib.suppress(_Stop):
            super().run(log_every, checkpoint_every)

    def _averaged(self) -> Tensor:
        return torch.as_tensor(self.average.module.weight).detach().T.cpu().clone()

    def measure(self) -> dict[str, float]:
        """Validate the averaged W, and keep it where it is the best."""
        weights = self._averaged()
        if self.trial is None:
            self.best = Best(weights, self.step)
            return {}
        score, separation = self.trial.score(Transform(weights.numpy()))
        self.best.offer(weights, self.step, (score, separation))
        return {"validation_map": score, "separation": separation}

    def _log(self, **values: float) -> None:
        """To the file alone: standard output is the caller's."""
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step} | {k: round(v, 4) for k, v in values.items()}) + "\n")

    def transform(self) -> Transform:
        """The best W, with what it is from."""
        facts = {
            **self.pairs.ids,
            "method": "gradient descent",
            "recipe": asdict(self.recipe),
            "validation_map": None if self.trial is None else self.best.score,
            "steps": self.best.step,
            "data": self.pairs.digest,
            "origins": len(self.classes),
        }
        return Transform(np.ascontiguousarray(self.best.weights.numpy()), facts)


def _start_from(
    start: Transform,
    projection: nn.Linear,
    criterion: nn.Module,
    latents: NDArray[np.float16],
    origins: NDArray[np.int64],
) -> None:
    """Put W, and the centres where a loss has them, in place; `origins` are rows of latents, one a class."""
    weights = projection.weight
    wanted = (projection.in_features, projection.out_features)
    if start.weights is None or start.weights.shape != wanted:
        found = "the identity" if start.weights is None else f"of shape {start.weights.shape}"
        raise MetricError(f"the start is {found}; W of shape {wanted} is needed")
    given = torch.from_numpy(start.weights).T
    # The length of W does not matter to the cosine, but to how far a step of Adam turns it.
    weights.data = (given * (weights.detach().norm() / given.norm())).contiguous()
    for centres in criterion.parameters():
        rows = centres.data if isinstance(criterion, PartialCosFace) else centres.data.T
        for i in range(0, len(origins), _AT_ONCE):
            block = origins[i : i + _AT_ONCE]
            rows[i : i + _AT_ONCE] = torch.from_numpy(start.apply(latents[block]))
