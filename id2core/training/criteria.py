"""Losses over classes of descriptors: CosFace (arXiv 1801.09414), Circle, normalized softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from pytorch_metric_learning import losses  # type: ignore[import-untyped]
from torch import Tensor, nn

from id2core.training.config import LOSSES, LossConfig
from id2core.training.ranks import Ranks


class PartialCosFace(nn.Module):
    """CosFace in which a subset of the K classes takes part: a step costs as much as these do.

    Gradients are sparse, so that the other centers do not move.
    """

    def __init__(self, classes: int, size: int, scale: float, margin: float) -> None:
        super().__init__()
        self.centers = nn.Embedding(classes, size, sparse=True)
        self.scale, self.margin = scale, margin

    def forward(self, descriptors: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            descriptors: float32[B,m], of any length.
            labels: int64[B], classes.
            chosen: int64[S], ascending, the classes that take part, all of the labels' among them.
        """
        cosine = F.normalize(descriptors) @ F.normalize(self.centers(chosen)).T
        own = torch.searchsorted(chosen, labels)
        margins = self.margin * F.one_hot(own, len(chosen))
        return F.cross_entropy(self.scale * (cosine - margins), own)


def build_loss(config: LossConfig, classes: int, size: int, negatives: int | None = None) -> nn.Module:
    """Build a loss with its class centers: descriptors and labels in, mean loss out.

    Args:
        config: which loss, its scale and margin.
        classes: how many.
        size: numbers per descriptor.
        negatives: where given, only the centers of the classes passed to `forward` take part in a step.
    """
    scale, margin = LOSSES[config.loss]
    scale = scale if config.scale is None else config.scale
    margin = margin if config.margin is None else config.margin
    if negatives is not None:
        return PartialCosFace(classes, size, scale, margin)
    if config.loss == "cosface":
        made = losses.CosFaceLoss(classes, size, margin=margin, scale=scale)
    elif config.loss == "softmax":
        made = losses.NormalizedSoftmaxLoss(classes, size, temperature=1 / scale)
    else:
        made = losses.CircleLoss(m=margin, gamma=scale)
    assert isinstance(made, nn.Module)
    return made


class Objective(nn.Module):
    """A head and its loss as one module, which data parallelism wraps."""

    def __init__(self, head: nn.Module, criterion: nn.Module, dtype: torch.dtype, ranks: Ranks) -> None:
        """Join a head and a loss.

        Args:
            head: latents to descriptors of any length.
            criterion: as by `build_loss`.
            dtype: in which the head multiplies; the loss is float32 always.
            ranks: who else trains. A loss without centers compares the rows of a step with each other, and
                so sees those of all ranks; another sees its rank's, and the mean over ranks is the whole.
        """
        super().__init__()
        self.head, self.criterion, self.dtype, self.ranks = head, criterion, dtype, ranks
        self.compares_rows = not list(criterion.parameters())

    def forward(self, latents: Tensor, labels: Tensor, *centers: Tensor) -> Tensor:
        """Return the loss of float32[B,n] latents with int64[B] labels."""
        lower = self.dtype != torch.float32
        with torch.autocast(latents.device.type, self.dtype if lower else None, enabled=lower):
            descriptors = self.head(latents)
        descriptors = descriptors.float()
        if self.compares_rows:
            descriptors, labels = self.ranks.gather(descriptors), self.ranks.gather(labels)
        return torch.as_tensor(self.criterion(descriptors, labels, *centers))
