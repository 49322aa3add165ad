"""Uploads whose outer part a frame covers: the part inside of it, where it is.

A frame that is added leaves the whole picture inside. One that is painted over a picture leaves a crop, and
crops of a half of the area are hard to find. But such a crop is still in its place. So what lies outside is
taken out of the latent of the upload, and the rest meets references as the paper compares pictures, place by
place. Zeros say nothing: they add nothing to latent · W.

A copy with only a share of its picture left has a cosine of about √share. Its scores are divided by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from id2core.transforms.crop_rows import CHANNELS, side_of

# Of an upload's area: with less there is nothing to compare, and with more the whole says the same.
LEAST_SHARE: Final = 0.25
MOST_SHARE: Final = 0.95
# Cells inside of a frame's edge that show some of it.
_EDGE: Final = 0.5


@dataclass(frozen=True, eq=False)
class Covers:
    """C uploads with their frames taken out.

    Attributes:
        rows: int64[C], ascending, of the uploads.
        latents: float16[C,n], zero outside of the pictures that were seen inside.
        slopes: float64[C], that scores are multiplied by.
    """

    rows: NDArray[np.int64]
    latents: NDArray[np.float16]
    slopes: NDArray[np.float64]


def covers_of(latents: NDArray[np.float16], owners: NDArray[np.int64], boxes: NDArray[np.float64]) -> Covers:
    """Take the frames out of uploads.

    Args:
        latents: float16[Q,n] of 4 square channels, of the whole uploads.
        owners: int64[I], ascending: the upload of each picture that was seen inside one.
        boxes: float64[I,4], where it was seen: left, top, right, bottom, from 0 to 1. NaN where nobody knows.

    Raises:
        TransformError: the latents are not of 4 square channels.
    """
    side = side_of(latents.shape[1])
    rows, of = np.unique(owners, return_inverse=True)
    seen = np.zeros((len(rows), side, side), np.float32)
    shares = np.zeros(len(rows))
    left, top, right, bottom = boxes.T
    masks = _covered(top, bottom, side)[:, :, None] * _covered(left, right, side)[:, None, :]
    np.maximum.at(seen, of, masks)
    np.add.at(shares, of, (right - left) * (bottom - top))
    chosen = (shares >= LEAST_SHARE) & (shares <= MOST_SHARE)
    rows, seen, shares = rows[chosen], seen[chosen], shares[chosen]
    maps = latents[rows].astype(np.float32).reshape(len(rows), CHANNELS, side, side)
    inside = (maps * seen[:, None]).reshape(len(rows), latents.shape[1]).astype(np.float16)
    return Covers(rows, inside, 1 / np.sqrt(shares))


def _covered(low: NDArray[Any], high: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Return how much of each cell of a line lies between two places, float32[I,side]."""
    starts = low * side + _EDGE * (low > 0)
    stops = high * side - _EDGE * (high < 1)
    cells = np.arange(side)
    inside = np.minimum(cells + 1, stops[:, None]) - np.maximum(cells, starts[:, None])
    return np.asarray(np.clip(inside, 0, 1), np.float32)
