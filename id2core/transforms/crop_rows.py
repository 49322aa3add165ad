"""Crops of references as rows of a few numbers, so that a cropped upload meets a reference cropped alike.

An upload that is a crop shows less than its origin, and place by place nothing agrees. No W mends that: one
that has seen crops finds few of them, and fewer of all else (docs/crops.md). But the autoencoder is nearly
equivariant: the latent of a crop is about the crop of the latent, enlarged. So the latents of references
that are kept give the descriptors of their crops, and no picture is encoded.

The columns of a W in closed form are ordered, the direction that says most about the origin first. The first
80 of 480 are enough to meet a crop, and they tolerate more of a shift than all. A row is therefore the first
columns of the descriptor of a crop, in float16. An upload needs no other descriptor: its own first columns
serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.errors import TransformError
from id2core.transforms.linear import Transform

CHANNELS = 4
COLUMNS = 80
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Crop:
    """A part of a picture, of the same proportions.

    Attributes:
        share: of the area, above 0, at most 1.
        across, down: from the center of the picture to that of the part, as a share of the picture's sides.
        handicap: is subtracted from scores with it. The smaller the part, the more parts of other pictures
            look like it.
    """

    share: float
    across: float = 0.0
    down: float = 0.0
    handicap: float = 0.0

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


def _around(share: float, offset: float, handicap: float) -> list[Crop]:
    corners = [(x, y) for y in (-offset, offset) for x in (-offset, offset)]
    return [Crop(share, x, y, handicap) for x, y in [(0.0, 0.0), *corners]]


# Chosen on translations by `mini-a` and `mini-b` of photos that nothing is measured on (docs/crops.md). With
# 80 columns in float16, eleven rows take 0.92 times the bytes of a descriptor float32[480].
CROPS = (Crop(0.9), *_around(0.75, 0.045, 0.04), *_around(0.5, 0.09, 0.07))


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
    side = math.isqrt(n // CHANNELS)
    if CHANNELS * side * side != n:
        raise TransformError(f"latents of {n} numbers are not {CHANNELS} square channels: they have no crops")
    across, down = (_enlargement(span, side) for span in crop.spans())
    maps = latents.reshape(rows, CHANNELS, side, side).astype(np.float32)
    return np.ascontiguousarray((down @ maps @ across.T).reshape(rows, n))


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
    first = descriptors[:, :columns]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    return np.asarray(np.divide(first, norms, out=np.zeros_like(first), where=norms > 0))


def crop_rows(
    latents: NDArray[Any], transform: Transform, crop: Crop, columns: int = COLUMNS
) -> NDArray[np.float16]:
    """Return the rows of references under a crop, float16[R,min(columns,m)].

    Args:
        latents: float[R,n] of 4 square channels.
        transform: a W whose columns are ordered, or the identity.
        crop: the part that uploads may show.
        columns: of the row.

    Raises:
        TransformError: as of `cropped`, or W does not fit.
    """
    batches = (latents[i : i + _BATCH_ROWS] for i in range(0, len(latents), _BATCH_ROWS))
    return np.concatenate([*_described(batches, transform, crop, columns)])


def _described(
    batches: Iterator[NDArray[Any]], transform: Transform, crop: Crop, columns: int
) -> Iterator[NDArray[np.float16]]:
    """Yield the rows of batches; only the columns that are kept are multiplied."""
    first = transform
    if transform.weights is not None:
        first = Transform(np.ascontiguousarray(transform.weights[:, :columns]), transform.metadata)
    for batch in batches:
        yield heads(first.apply(cropped(batch, crop)), columns).astype(np.float16)
