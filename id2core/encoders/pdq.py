"""PDQ, the perceptual hash that platforms match pictures by today, as a linear map and a median.

From Meta's description (*The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm*, 2019,
`hashing/hashing.pdf` of its ThreatExchange repository): luminance; a box filter along rows and columns,
twice (Jarosz); 64 rows and columns picked; a cosine transform of which the frequencies 1–16 are kept in each
direction; a bit says whether a coefficient is above their median.

All steps before the median are linear in the pixels and work along rows and columns alike. So they are one
matrix, 16×H for the height and 16×W for the width, and a hash costs two small products.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

from id2core.encoders.base import Encoder
from id2core.encoders.hub import PDQ
from id2core.encoders.preprocess import Preprocess

BITS: Final = 256
# Names all that decides a bit beside the pixels: change it with the method.
RECIPE: Final = "pdq-v1"
# Meta recommends to shrink larger pictures to this square first. Smaller ones would be hashed as they are: of
# 256×256 pictures that were enlarged to it, 14 bits differ on average from such a hash.
SIDE: Final = 512
_GRID, _KEPT, _PASSES = 64, 16, 2
_LUMINANCE: Final = (0.299, 0.587, 0.114)
# Of a flat picture all coefficients are rounding noise around 0; a real one's are thousands of times this.
_NOISE = 1e-2


def pdq(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Compute the PDQ hashes of pictures.

    A flat picture has only zeros. A picture's hash does not depend on the others in the batch.

    Args:
        pixels: uint8[B,H,W,3] RGB, H and W at least 64.

    Returns:
        bool[B,256]; bit 16·i + j belongs to frequency i + 1 down the picture and j + 1 across it.

    Raises:
        ValueError: the pictures are not of that form.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or min(pixels.shape[1:3]) < _GRID:
        raise ValueError(
            f"pixels must be uint8[B,H,W,3] from {_GRID}×{_GRID}, not {pixels.dtype}{pixels.shape}"
        )
    height, width = pixels.shape[1:3]
    down, across = _map(height), _map_of_colors(width)
    coefficients = np.empty((len(pixels), BITS), np.float32)
    for row, picture in zip(coefficients, pixels, strict=True):
        row[:] = (down @ (picture.reshape(height, -1).astype(np.float32) @ across)).ravel()
    coefficients[np.abs(coefficients) < _NOISE] = 0
    # The 128th of 256 is the median here, not a mean of two: so says the reference.
    median = np.partition(coefficients, BITS // 2 - 1, axis=1)[:, BITS // 2 - 1]
    return np.asarray(coefficients > median[:, None])


def quality(pixels: NDArray[np.uint8]) -> int:
    """Return PDQ's quality of a picture, uint8[H,W,3] RGB: 0 to 100; below 50 a hash is not to be matched.

    The sum of the differences between neighbors of the 64×64 picked pixels, each in whole percent, over 90.
    """
    height, width = pixels.shape[:2]
    # A row that is picked is of few rows. A product of whole matrices would take the cores from each other,
    # because many threads that read come here at once.
    rows = _sparse(height) @ pixels.reshape(height, -1)
    gray = rows.reshape(_GRID, width, 3) @ np.array(_LUMINANCE)
    picked = _sparse(width) @ gray.T
    steps = sum(np.trunc(np.abs(np.diff(picked, axis=axis)) * (100 / 255)).sum() for axis in (0, 1))
    return min(int(steps / 90), 100)


def signs(bits: NDArray[np.bool_]) -> NDArray[np.float16]:
    """Bits as −1 and 1, float16[B,256]: the cosine of two is 1 − 2·(bits that differ)/256."""
    return np.where(bits, np.float16(1), np.float16(-1))


def hexadecimal(bits: NDArray[np.bool_]) -> str:
    """One hash, bool[256], as the 64 digits that hash lists are exchanged in: the last bit comes first."""
    return np.packbits(bits[::-1]).tobytes().hex()


@functools.cache
def _map(length: int) -> NDArray[np.float32]:
    """Filter, pick and transform along one side of that many pixels: float32[16,length]."""
    frequency = np.arange(1, _KEPT + 1)[:, None]
    cosines = np.cos(np.pi / 2 / _GRID * frequency * (2 * np.arange(_GRID) + 1)) * np.sqrt(2 / _GRID)
    return np.ascontiguousarray(cosines @ _picked(length), np.float32)


@functools.cache
def _picked(length: int) -> NDArray[np.float64]:
    """Filter and pick along one side of that many pixels: float64[64,length]."""
    blur = np.linalg.matrix_power(_box(length), _PASSES)
    picked: NDArray[np.float64] = blur[((np.arange(_GRID) + 0.5) * length / _GRID).astype(int)]
    return picked


@functools.cache
def _map_of_colors(width: int) -> NDArray[np.float32]:
    """`_map`, transposed, of rows of interleaved RGB, with the luminance: float32[3·width,16]."""
    across = _map(width).astype(np.float64).T
    return np.ascontiguousarray(np.kron(across, np.array(_LUMINANCE)[:, None]), np.float32)


@functools.cache
def _sparse(length: int) -> sparse.csr_array:
    return sparse.csr_array(_picked(length))


def _box(length: int) -> NDArray[np.float64]:
    """The mean over a window of 1/128 of the side, rounded up; cut off at the ends, longer on the right."""
    window = -(-length // (2 * _GRID))
    right = (window + 2) // 2 - 1
    offset = np.arange(length) - np.arange(length)[:, None]
    inside = (offset >= right + 1 - window) & (offset <= right)
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


class PdqEncoder(Encoder):
    """PDQ hashes as latents, float16[B,256] of −1 and 1: a cosine is 1 − 2·(bits that differ)/256.

    A picture is stretched to 512×512 first, as Meta recommends for larger ones. It runs in NumPy on the CPU.
    Meta advises to take up to 31 bits for a match: a score from 0.758 on.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        digest = hashlib.sha256(RECIPE.encode()).hexdigest()
        preprocess = Preprocess(SIDE)
        no_network = torch.nn.Identity()
        super().__init__(PDQ, digest, no_network, torch.device("cpu"), torch.float32, preprocess, batch_size)

    def information(self, pixels: NDArray[np.uint8]) -> float:
        """Return PDQ's quality of a picture, from 0 to 1."""
        return quality(pixels) / 100

    def _encode_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        return signs(pdq(pixels))


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Make the encoder of PDQ hashes; it takes no device and no dtype."""
    return PdqEncoder(batch_size)
