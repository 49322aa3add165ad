"""What decides the outcome of training W by gradient descent, besides the pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from id2core.errors import GradientError
from id2core.transforms import heads

# Scale and margin: the paper's for CosFace; of the others it tells none, and these are the library's.
LOSSES = {"cosface": (64.0, 0.35), "circle": (80.0, 0.4), "softmax": (20.0, 0.0)}
PRECISIONS = ("auto", "float32", "bfloat16")
_FIRST_RATE = 0.01  # of the peak


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome but the pairs; the defaults are the paper's.

    Attributes:
        loss: one of `LOSSES`.
        scale, margin: s and m; γ and m of Circle. By default as in `LOSSES`; softmax has no margin.
        negatives: for CosFace over very many classes: in a step only the centres of the batch's classes
            and of that many others, drawn anew, take part and move. None: all do. In one process only.
        head: `linear` for W, or one of `heads.KINDS` (experimental; paper, Table 7 and Figure 9).
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
        precision: in which descriptors are multiplied out in training, `float32` or `bfloat16`; `auto` is
            bfloat16 on a GPU that has it, else float32. Logits, weights and validation are float32 always.
        seed: of the start and of the batches.
        init, data: set by `fit`: `random` or the transform_id of the start, and the digest of the pairs.
    """

    loss: Literal["cosface", "circle", "softmax"] = "cosface"
    scale: float | None = None
    margin: float | None = None
    negatives: int | None = None
    head: str = heads.LINEAR
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
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

    def check(self) -> None:
        """Raise GradientError where no training could follow it."""
        wrong = [
            (self.loss not in LOSSES, f"loss is {self.loss}: choose {', '.join(LOSSES)}"),
            (
                self.precision not in PRECISIONS,
                f"precision is {self.precision}: choose {', '.join(PRECISIONS)}",
            ),
            (
                self.per_class < 2 or self.batch % self.per_class or self.batch < 2 * self.per_class,
                f"a batch of {self.batch} with {self.per_class} of each class: choose 2 or more, of 2 or "
                f"more classes",
            ),
            (
                min(self.epochs, self.iterations) < 1,
                f"{self.epochs} epochs of {self.iterations} iterations: choose 1 or more",
            ),
            (
                not 0 <= self.warmup <= self.decay_from < 1,
                f"warmup {self.warmup}, decay_from {self.decay_from}: choose 0 ≤ warmup ≤ decay_from < 1",
            ),
            (
                self.patience is not None and self.patience < 1,
                f"patience is {self.patience}: choose 1 or more, or None",
            ),
            (
                self.negatives is not None and (self.loss != "cosface" or self.negatives < 1),
                f"negatives {self.negatives} with {self.loss}: they are for cosface, 1 or more",
            ),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise GradientError(message)
