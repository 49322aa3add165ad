"""The best references of looks under all views at once, by float32 products in tiles.

Scores of all views of a tile are made in the cache, and only the largest of each pair is kept, so the views
cost little beside the products themselves. Each core takes some looks at a time. What float32 rounds may hide
a reference: the caller scores what is proposed exactly, and looks again where that leaves a doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from id2core import environment

# Looks and references whose scores are made at once: two such tiles stay in the cache of a core.
_LOOKS: Final = 256
_REFERENCES: Final = 2048

Scores = NDArray[np.float32]
# Columns of looks float32[L,c], of references float32[N,c], and what is subtracted from their product.
Factor = tuple[Scores, Scores, float]


def propose(factors: Sequence[Factor], depth: int) -> tuple[Scores, NDArray[np.int64]]:
    """Return the best references of each look by the best view.

    Args:
        factors: both sides of each view, of the same L looks and N references.
        depth: references of each look, at most N.

    Returns:
        Scores float32[L,depth], best first, and rows int64[L,depth].
    """
    count = len(factors[0][0])
    scores = np.empty((count, depth), np.float32)
    rows = np.empty((count, depth), np.int64)

    def fill(start: int) -> None:
        some = slice(start, start + _LOOKS)
        scores[some], rows[some] = _best([(left[some], right, cost) for left, right, cost in factors], depth)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(environment.usable_cores()) as pool:
        list(pool.map(fill, range(0, count, _LOOKS)))
    return scores, rows


def _best(factors: list[Factor], depth: int) -> tuple[Scores, NDArray[np.int64]]:
    """Return the best references of some looks, tile by tile."""
    looked, count = len(factors[0][0]), len(factors[0][1])
    best = np.full((looked, depth), -np.inf, np.float32)
    rows = np.zeros((looked, depth), np.int64)
    tiles = np.empty((2, looked, min(_REFERENCES, count)), np.float32)
    for start in range(0, count, _REFERENCES):
        some = slice(start, min(start + _REFERENCES, count))
        scores, other = tiles[:, :, : some.stop - start]
        for number, (left, right, cost) in enumerate(factors):
            made = other if number else scores
            np.matmul(left, right[some].T, out=made)
            if cost:
                made -= np.float32(cost)
            if number:
                np.maximum(scores, other, out=scores)
        _keep(best, rows, scores, start)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)


def _keep(best: Scores, rows: NDArray[np.int64], scores: Scores, start: int) -> None:
    """Take in the scores of the next references, float32[L,n], of rows from `start` on."""
    depth = best.shape[1]
    better = np.flatnonzero(scores.max(axis=1) > best.min(axis=1))
    every = np.concatenate([best[better], scores[better]], axis=1)
    kept = np.argpartition(-every, depth - 1, axis=1)[:, :depth]
    best[better] = np.take_along_axis(every, kept, 1)
    known = np.take_along_axis(rows[better], np.minimum(kept, depth - 1), 1)
    rows[better] = np.where(kept < depth, known, kept - depth + start)
