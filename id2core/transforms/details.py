"""The fine detail of a latent, in one bit for each of its numbers.

W keeps what survives most translations: coarse shapes and colors, which other pictures of one scene share. A
latent also holds edges, and a translation keeps many of them in place. Detail is what a blur takes away,
divided by how much of it there is around, so that a few strong edges do not outweigh all others. Of it the
signs are kept: they say nearly as much as the numbers, in 512 bytes where n is 4,096.

Detail alone is a poor search: it breaks with the smallest shift, and then it is noise. So it only adds to the
score of a candidate that W has found.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from id2core.transforms.crop_rows import CHANNELS, side_of

_BLUR, _AROUND = 2.0, 3.0  # cells of a latent: standard deviations
_FAINT: Final = 0.05  # energy of detail that counts as none
# Latents whose detail is made at once: they stay in the cache.
_ROWS: Final = 64

Bits = NDArray[np.uint8]


def detail_bits(latents: NDArray[Any]) -> Bits:
    """Return the signs of the detail of latents, packed, uint8[B,n/8].

    Args:
        latents: float[B,n], four square maps, flattened.

    Raises:
        TransformError: the latents are not of four square maps.
    """
    side = side_of(latents.shape[1])
    bits = np.empty((len(latents), latents.shape[1] // 8), np.uint8)
    for start in range(0, len(latents), _ROWS):
        block = slice(start, start + _ROWS)
        maps = latents[block].astype(np.float32).reshape(-1, CHANNELS, side, side)
        bits[block] = np.packbits(_detail(maps).reshape(len(maps), -1) > 0, axis=1)
    return bits


def _detail(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the detail of maps float32[B,C,S,S], evened out over the picture."""
    side = maps.shape[-1]
    blur, around = _blur(side, _BLUR), _blur(side, _AROUND)
    fine = maps - blur @ maps @ blur.T
    return np.asarray(fine / np.sqrt(around @ (fine * fine) @ around.T + np.float32(_FAINT)))


@functools.cache
def _blur(side: int, sigma: float) -> NDArray[np.float32]:
    """Return the matrix of a Gaussian blur of a line of cells, mirrored at its ends, float32[side,side]."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0), np.float32)


def agreement(left: Bits, right: Bits) -> NDArray[np.float32]:
    """Return how far the signs of pairs agree: 1 if all do, about 0 by chance, −1 if none does.

    Args:
        left, right: uint8[P,n/8], both sides of each pair.

    Returns:
        float32[P].
    """
    differing = np.bitwise_count(left ^ right).sum(axis=1, dtype=np.int64)
    return np.asarray(1 - 2 * differing / (8 * max(1, left.shape[1])), np.float32)
