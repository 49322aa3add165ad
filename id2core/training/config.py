"""Options of the trainings; this module imports no torch.

Saved runs call a config their recipe: `recipe.json`, and the key `recipe` of checkpoints, reports and the
metadata of W.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from id2core.errors import FinetuneError, GradientError, ID2Error
from id2core.options import Options
from id2core.transforms.kinds import LINEAR, HeadKind

Loss = Literal["cosface", "circle", "softmax"]
Precision = Literal["auto", "float32", "bfloat16"]
# Scale and margin of each loss. The paper gives those of CosFace; the others are defaults of
# pytorch-metric-learning.
LOSSES: dict[Loss, tuple[float, float]] = {
    "cosface": (64.0, 0.35),
    "circle": (80.0, 0.4),
    "softmax": (20.0, 0.0),
}
FIRST_RATE = 0.01  # of the peak
_SCALES = ", ".join(f"{scale:g} for {loss}" for loss, (scale, _) in LOSSES.items())
_MARGINS = ", ".join(f"{margin:g} for {loss}" for loss, (_, margin) in LOSSES.items() if margin)

Shrinkage = Annotated[
    float | None,
    Field(
        gt=0,
        description="Shrinkage λ of the closed form, as a multiple of the mean variance of translations. "
        "0.01 is next to none. Default: the best on held-out origins.",
        examples=[0.1, 10.0],
    ),
]


class LossConfig(Options):
    """Options of the loss over origins."""

    loss: Loss = Field(
        default="cosface",
        description="Loss over origins: cosface (the paper's), circle, or softmax with normalized weights.",
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        description=f"Scale of the cosines in the loss (γ of circle). Default: {_SCALES}.",
        examples=[32.0],
    )
    margin: float | None = Field(
        default=None,
        ge=0,
        description=f"Margin of the loss. Default: {_MARGINS}. softmax has none.",
        examples=[0.2],
    )


class GradientConfig(LossConfig):
    """Options of training W by gradient descent; the defaults are the paper's."""

    error: ClassVar[type[ID2Error]] = GradientError

    negatives: int | None = Field(
        default=None,
        ge=1,
        description="Number of other origins whose class centers take part in a step, drawn anew for each. "
        "For cosface over very many origins, in one process. Default: all.",
        examples=[65536],
    )
    head: HeadKind = Field(
        default=LINEAR,
        description="Shape of the transform: linear (W), or an experimental network (paper, Table 7 and "
        "Figure 9).",
        examples=["mlp-2"],
    )
    dimensions: int = Field(default=512, ge=1, description="Numbers per descriptor: columns of W.")
    batch: int = Field(default=512, ge=4, description="Latents per step.")
    per_class: int = Field(default=4, ge=2, description="Latents of one origin in a step.")
    epochs: int = Field(default=25, ge=1, description="Number of epochs. W is validated after each.")
    iterations: int = Field(default=2_000, ge=1, description="Steps per epoch.")
    lr: float = Field(default=3.5e-4, gt=0, description="Peak learning rate of Adam.", examples=[1e-3])
    warmup: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the epochs in which the learning rate rises."
    )
    decay_from: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="Share of the epochs after which the learning rate falls to zero, as a cosine.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Decoupled weight decay of W and the class centers. With `negatives`, of W only.",
    )
    ema: float = Field(
        default=0.9999,
        ge=0,
        le=1,
        description="EMA decay of the weights. At step k it is at most (1 + k) / (10 + k), so that a short "
        "run forgets its start.",
    )
    validation_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the origins held out for validation. 0 turns validation off.",
    )
    patience: int | None = Field(
        default=10,
        ge=1,
        description="Epochs without a better validation score after which training stops. W still improves "
        "late, when the learning rate falls, so do not set it low.",
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of latent · W in training. auto is bfloat16 on a GPU that has it, else "
        "float32. Logits, weights and validation are always float32.",
    )
    seed: int = Field(default=1, ge=0, description="Random seed of the initial weights and the batches.")

    @property
    def steps(self) -> int:
        """Return the number of steps in all epochs."""
        return self.epochs * self.iterations

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        rises, falls = round(self.warmup * self.epochs), round(self.decay_from * self.epochs)
        if epoch < rises:
            return self.lr * (FIRST_RATE + (1 - FIRST_RATE) * epoch / rises)
        if epoch < falls:
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - falls) / (self.epochs - falls)))

    def check_together(self) -> None:
        """Raise `error` where batch, schedule or loss do not fit one another."""
        _check_batch(self)
        if self.warmup > self.decay_from:
            raise self.error(
                f"warmup {self.warmup}, decay_from {self.decay_from}: choose 0 ≤ warmup ≤ decay_from < 1"
            )
        if self.negatives is not None and self.loss != "cosface":
            raise self.error(f"negatives {self.negatives} with {self.loss}: they are for cosface")


class ResolvedGradientConfig(GradientConfig):
    """The options of a run, without `auto`, and the names of its inputs.

    Attributes:
        init: transform_id of the W it started from, or `random`.
        data: digest of the pairs.
    """

    init: str
    data: str


class FinetuneConfig(LossConfig):
    """Options of training a vision backbone. All defaults are ours: the paper names only the losses."""

    error: ClassVar[type[ID2Error]] = FinetuneError

    backbone: str = Field(
        default="vit-b",
        description="Vision backbone to start from: a short name, directory or hub id that --encoder takes, "
        "or resnet-scratch (a small ResNet with random weights).",
        examples=["dinov2", "resnet-scratch"],
    )
    batch: int = Field(default=128, ge=4, description="Images per step.")
    per_class: int = Field(default=4, ge=2, description="Images of one origin in a step.")
    steps: int = Field(default=20_000, ge=1, description="Training steps.")
    warmup: int = Field(
        default=1_000,
        ge=1,
        description="Steps until the learning rate peaks. It then falls to zero as a cosine.",
    )
    lr: float = Field(default=1e-4, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="Decoupled weight decay of the backbone and the class centers."
    )
    seed: int = Field(
        default=1,
        ge=0,
        description="Random seed of the class centers, the batches, dropout, and random initial weights.",
    )

    def check_together(self) -> None:
        """Raise `error` where batch, schedule or loss do not fit one another."""
        _check_batch(self)
        if self.warmup > self.steps:
            raise self.error(
                f"a warm-up of {self.warmup} in {self.steps} steps never reaches the peak rate: choose a "
                f"shorter warm-up (a twentieth would be {max(1, self.steps // 20)}), or more steps"
            )


class ResolvedFinetuneConfig(FinetuneConfig):
    """The options of a run, and the names of its inputs.

    Attributes:
        init: first 12 hex of the hash of the weights it started from.
        data: first 12 hex of the hash of the list of images.
    """

    init: str
    data: str


def _check_batch(config: GradientConfig | FinetuneConfig) -> None:
    batch, per_class = config.batch, config.per_class
    if batch % per_class or batch < 2 * per_class:
        raise config.error(
            f"a batch of {batch} with {per_class} of each class: choose a multiple of {per_class}, enough "
            "for 2 or more classes"
        )
