"""Crops of references as rows of a few numbers, so that a cropped upload meets a reference cropped alike.

An upload that is a crop shows less than its origin, and place by place nothing agrees. No W mends that: one
that has seen crops finds few of them, and fewer of all else (docs/crops.md). But the autoencoder is nearly
equivariant: the latent of a crop is about the crop of the latent, enlarged. So the latents of references
that are kept give the descriptors of their crops, and no picture is encoded.

The columns of a W in closed form are ordered, the direction that says most about the origin first. The first
64 of 480 are enough to meet a crop, and they tolerate more of a shift than all. A row is therefore the first
columns of the descriptor of a crop, in one byte each. An upload needs no other descriptor: the first columns
of its own serve.

Their product with a row, times `SLOPE` and less the cost of the crop, is comparable with a score of whole
pictures: the shorter the first columns of an upload's descriptor are, the less they say about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from id2core.errors import TransformError
from id2core.transforms.linear import Multiply, Transform

CHANNELS: Final = 4
COLUMNS: Final = 64
SLOPE: Final = 1.1
# Whole numbers of a row, in one byte, that stand for 1.
_STEPS: Final = 127


@dataclass(frozen=True)
class Crop:
    """A part of a picture, of the same proportions.

    Attributes:
        share: of the area, above 0, at most 1.
        across, down: from the center of the picture to that of the part, as a share of the picture's sides.
        cost: is subtracted from scores with it. The smaller the part, the more parts of other pictures
            look like it.
    """

    share: float
    across: float = 0.0
    down: float = 0.0
    cost: float = 0.0

    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return begin and end across, then down, from 0 to 1.

        Raises:
            TransformError: the part lies outside of the picture, or shows nothing.
        """
        half = math.sqrt(max(0.0, self.share)) / 2
        spans = tuple((0.5 + place - half, 0.5 + place + half) for place in (self.across, self.down))
        if not half or min(low for low, _ in spans) < 0 or max(high for _, high in spans) > 1:
            raise TransformError(f"{self} is not a part of a picture: choose one inside of it")
        return spans[0], spans[1]


def _around(share: float, offset: float, cost: float) -> list[Crop]:
    corners = [(x, y) for y in (-offset, offset) for x in (-offset, offset)]
    return [Crop(share, x, y, cost) for x, y in [(0.0, 0.0), *corners]]


# Chosen on translations by `mini-b` of photos that nothing is measured on (docs/crops.md).
CROPS: Final = (*_around(0.9, 0.017, 0.09), *_around(0.75, 0.045, 0.13), *_around(0.5, 0.09, 0.16))

# Bytes of the row of a reference under all crops.
ROW_BYTES: Final = len(CROPS) * COLUMNS


def side_of(size: int) -> int:
    """Return the side of the maps of latents of n = `size` numbers.

    Raises:
        TransformError: they are not four square maps.
    """
    side = math.isqrt(size // CHANNELS)
    if CHANNELS * side * side != size:
        raise TransformError(f"latents of {size} numbers are not {CHANNELS} square channels")
    return side


def cropped(latents: NDArray[Any], crop: Crop) -> NDArray[np.float32]:
    """Crop latents and enlarge them to the whole, bilinearly.

    Args:
        latents: float[N,n] of 4 square channels.
        crop: the part.

    Returns:
        float32[N,n].

    Raises:
        TransformError: the latents are not of 4 square channels, or the part lies outside of them.
    """
    rows, n = latents.shape
    side = side_of(n)
    across, down = (_enlargement(span, side) for span in crop.spans())
    maps = latents.reshape(rows, CHANNELS, side, side).astype(np.float32)
    return np.ascontiguousarray((down @ maps @ across.T).reshape(rows, n))


def _folded(weights: NDArray[np.float32], crop: Crop) -> NDArray[np.float32]:
    """Return the W that sees a latent cropped: latent · folded is cropped(latent) · W, float32[n,m]."""
    n, columns = weights.shape
    side = side_of(n)
    across, down = (_enlargement(span, side) for span in crop.spans())
    maps = weights.T.reshape(columns, CHANNELS, side, side)
    return np.ascontiguousarray((down.T @ maps @ across).reshape(columns, n).T)


def _enlargement(span: tuple[float, float], side: int) -> NDArray[np.float32]:
    """Return the matrix float32[side,side] that stretches a span of a row of cells to the whole row."""
    low, high = span
    places = low + (np.arange(side) + 0.5) / side * (high - low)
    cells = np.clip(places * side - 0.5, 0, side - 1)
    left = np.minimum(cells.astype(np.int64), max(0, side - 2))
    matrix = np.zeros((side, side), np.float32)
    matrix[np.arange(side), left] = 1 - (cells - left)
    matrix[np.arange(side), np.minimum(left + 1, side - 1)] += cells - left
    return matrix


def heads(descriptors: NDArray[np.float32], columns: int = COLUMNS) -> NDArray[np.float32]:
    """Return the first columns of descriptors float32[N,m], of length 1 again; a zero row stays zero."""
    return unit(descriptors[:, :columns])


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows of any numbers at length 1, float32[N,k]; a zero row stays zero."""
    wide = rows.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return np.asarray(np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0), np.float32)


class CropRows:
    """Makes the rows of references under all crops, by one product."""

    def __init__(self, transform: Transform) -> None:
        """Fold the crops into a W whose columns are ordered.

        Raises:
            TransformError: it is the identity, or not for latents of 4 square channels.
        """
        if transform.weights is None:
            raise TransformError("crops of references need a W")
        first = transform.weights[:, :COLUMNS]
        self.columns = first.shape[1]
        self._transform = Transform(np.concatenate([_folded(first, crop) for crop in CROPS], axis=1))

    def __call__(self, latents: NDArray[Any], multiply: Multiply = np.matmul) -> NDArray[np.int8]:
        """Return the rows of references, int8[R,crops·columns].

        Args:
            latents: float[R,n] of 4 square channels.
            multiply: as of `Transform.apply`.

        Raises:
            TransformError: W does not take these latents.
        """
        every = self._transform.apply(latents, multiply)
        rows = unit(every.reshape(len(every) * len(CROPS), self.columns))
        return np.rint(rows * _STEPS).astype(np.int8).reshape(len(every), -1)
