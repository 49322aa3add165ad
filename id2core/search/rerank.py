"""Score the best candidates again, by the fine detail of their latents.

W keeps what survives most translations: coarse shapes and colors, which other pictures of one scene share. A
latent also holds edges, and a translation keeps many of them in place. Here the detail of two latents is
compared place by place: what a blur takes away, divided by how much of it there is around, so that a few
strong edges do not outweigh all others.

Detail alone is a poor search: it breaks with the smallest shift, and then its cosines are noise. So it only
adds to the score of a candidate that W has found, and only if this candidate's detail fits better than that
of all others: the margin over the second best is added.

A candidate's stored latent is read, n numbers in float16. No picture is encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

# Candidates of each upload whose latents are read. It and what follows are chosen on validation photos.
DEPTH = 10
_BLUR, _AROUND = 2.0, 3.0  # cells of a latent: standard deviations
_FAINT = 0.05  # energy of detail that counts as none
# References whose detail is made at once: they stay in the cache.
_ROWS = 64


@dataclass(frozen=True)
class DetailReranker:
    """Adds to the score of the candidate whose detail fits best.

    Attributes:
        weight: of the margin between the best and the second-best cosine of details.
        channels: of the encoder's maps.
    """

    weight: float = 1.2
    channels: int = 4

    def rescore(
        self, uploads: NDArray[Any], scores: NDArray[np.float32], candidates: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Return the new scores of candidates: one of each upload is raised, if it has two or more.

        Args:
            uploads: float[Q,n], latents.
            scores: float32[Q,K], plain scores; −inf where there is no candidate.
            candidates: float[Q,K,n], latents of K candidates of each upload.

        Returns:
            float32[Q,K].

        Raises:
            ValueError: the latents are no square maps of so many channels.
        """
        cosines = np.full(scores.shape, -np.inf, np.float32)
        for row, own in enumerate(details(uploads, self.channels)):
            there = np.isfinite(scores[row])
            cosines[row, there] = details(candidates[row, there], self.channels) @ own
        return scores + np.float32(self.weight) * _margins(cosines)


def _margins(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return by how much the highest of each row float32[Q,K] exceeds the second; 0 for all others."""
    margins = np.zeros_like(cosines)
    if cosines.shape[1] < 2:
        return margins
    second, first = np.partition(cosines, -2, axis=1)[:, -2:].T
    two = np.isfinite(second)
    margins[two, cosines[two].argmax(axis=1)] = (first - second)[two]
    return margins


def details(latents: NDArray[Any], channels: int) -> NDArray[np.float32]:
    """Return the detail of latents, evened out over the picture.

    Args:
        latents: float[B,n], square maps, flattened.
        channels: of the maps.

    Returns:
        float32[B,n], rows of length 1, or 0 where there is no detail.

    Raises:
        ValueError: the latents are no square maps of so many channels.
    """
    side = round((latents.shape[1] / channels) ** 0.5)
    if channels * side**2 != latents.shape[1]:
        raise ValueError(f"latents of {latents.shape[1]} numbers are no square maps of {channels} channels")
    blur, around = _blur(side, _BLUR), _blur(side, _AROUND)
    out = np.empty(latents.shape, np.float32)
    for start in range(0, len(latents), _ROWS):
        block = slice(start, start + _ROWS)
        maps = latents[block].astype(np.float32).reshape(-1, channels, side, side)
        fine = maps - blur @ maps @ blur.T
        fine /= np.sqrt(around @ (fine * fine) @ around.T + np.float32(_FAINT))
        flat = fine.reshape(len(fine), -1)
        lengths = np.linalg.norm(flat, axis=1, keepdims=True)
        out[block] = np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 0)
    return out


def _blur(side: int, sigma: float) -> NDArray[np.float32]:
    """Return the matrix of a Gaussian blur of a line of cells, mirrored at its ends, float32[side,side]."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0), np.float32)
