"""The fine detail of a latent, in one bit for each of its numbers.

W keeps what survives most translations: coarse shapes and colors, which other pictures of one scene share. A
latent also holds edges, and a translation keeps many of them in place. Detail is what a blur takes away,
divided by how much of it there is around, so that a few strong edges do not outweigh all others. Of it the
signs are kept: they say nearly as much as the numbers, in 512 bytes where n is 4,096.

Detail alone is a poor search: it breaks with the smallest shift, and then it is noise. So it only adds to the
score of a candidate that W has found.

An upload that is a crop agrees with its origin nowhere as it is. `aligned` looks for its place in the origin,
after `part_detail` has shrunk it to the size that it has there. A latent shrinks nearly as the picture does.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage  # type: ignore[import-untyped]

from id2core.transforms.crop_rows import CHANNELS, side_of

_BLUR, _AROUND = 2.0, 3.0  # cells of a latent: standard deviations
_FAINT: Final = 0.05  # energy of detail that counts as none
# Of a part of a picture: a narrower blur, for shrinking takes away fine detail, too; steps of its numbers.
_PART_BLUR, _STEPS, _MOST = 1.5, 32, 127
# By how much the agreement at the best of many places is higher by chance.
_PLACES: Final = 0.01
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


def _detail(maps: NDArray[np.float32], sigma: float = _BLUR) -> NDArray[np.float32]:
    """Return the detail of maps float32[B,C,S,S], evened out over the picture."""
    side = maps.shape[-1]
    blur, around = _blur(side, sigma), _blur(side, _AROUND)
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


def part_detail(latents: NDArray[Any], share: float) -> NDArray[np.int8]:
    """Return the detail of latents at the size that they have in pictures of which they show a part.

    Args:
        latents: float[B,n], four square maps, flattened.
        share: of the area of the other pictures.

    Returns:
        int8[B,4,s,s], in steps of 1/32.
    """
    side = side_of(latents.shape[1])
    shrink = _shrinking(side, round(side * math.sqrt(share)))
    maps = latents.astype(np.float32).reshape(-1, CHANNELS, side, side)
    small = np.asarray(shrink @ maps @ shrink.T, np.float32)
    return np.clip(np.rint(_detail(small, _PART_BLUR) * _STEPS), -_MOST, _MOST).astype(np.int8)


@functools.cache
def _shrinking(side: int, small: int) -> NDArray[np.float32]:
    """Return the matrix that shrinks a line of cells by triangles, float32[small,side]."""
    scale = side / small
    centers = (np.arange(small) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1 - np.abs(np.arange(side) - centers[:, None]) / scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def aligned(parts: NDArray[np.int8], of: NDArray[np.int64], whole: Bits) -> NDArray[np.float32]:
    """Return how far the detail of parts agrees with that of wholes at the best place, more than at the mean.

    The sums at all places are whole numbers, which a Fourier transform in float64 gives without an error.

    Args:
        parts: int8[B,4,s,s], see `part_detail`.
        of: int64[P], the part of each pair.
        whole: uint8[P,n/8], the bits of the other side.

    Returns:
        float32[P], about 0 by chance.
    """
    side, small = side_of(8 * whole.shape[1]), parts.shape[-1]
    places = side - small + 1
    lengths = np.sqrt((parts.astype(np.int64) ** 2).sum(axis=(1, 2, 3)) * float(CHANNELS * small * small))
    spectra = fft.rfft2(parts.astype(np.float64), (side, side)).conj()
    made = np.empty(len(of), np.float32)
    for start in range(0, len(of), _ROWS):
        some = slice(start, start + _ROWS)
        signs = 2.0 * np.unpackbits(whole[some], axis=1).reshape(-1, CHANNELS, side, side) - 1
        products = (spectra[of[some]] * fft.rfft2(signs)).sum(axis=1)
        sums = np.rint(fft.irfft2(products, (side, side))[:, :places, :places]).reshape(-1, places * places)
        best = sums.max(axis=1) - sums.mean(axis=1)
        made[some] = best / np.maximum(lengths[of[some]], 1) - _PLACES
    return made
