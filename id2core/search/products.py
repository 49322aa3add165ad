"""The best references of looks under all views at once, by float32 products in tiles.

Scores of all views of a tile are made in the cache, and only the largest of each pair is kept, so the views
cost little beside the products themselves. Each core takes some looks at a time. What float32 rounds may hide
a reference: the caller scores what is proposed exactly, and looks again where that leaves a doubt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from id2core import environment

# Looks, at most, and references whose scores are made at once: many looks share what a product prepares.
_LOOKS: Final = 512
_REFERENCES: Final = 1024
# Looks whose pairs are scored at once: rows of their references stay in the cache.
_PAIRED: Final = 16
# References that are met first.
_FIRST: Final = 256

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

    cores = environment.usable_cores()
    block = min(_LOOKS, math.ceil(count / cores))

    def fill(start: int) -> None:
        some = slice(start, start + block)
        scores[some], rows[some] = _best([(left[some], right, cost) for left, right, cost in factors], depth)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        list(pool.map(fill, range(0, count, block)))
    return scores, rows


def pairs(factors: Sequence[Factor], rows: NDArray[np.int64]) -> Scores:
    """Return what some references score under each view, float32[V,L,depth].

    Args:
        factors: of V views.
        rows: int64[L,depth], references of each look.
    """
    made = np.empty((len(factors), *rows.shape), np.float32)
    for start in range(0, len(rows), _PAIRED):
        some = slice(start, start + _PAIRED)
        for scores, (left, right, cost) in zip(made, factors, strict=True):
            scores[some] = np.matmul(right[rows[some]], left[some, :, None])[:, :, 0] - np.float32(cost)
    return made


def _best(factors: list[Factor], depth: int) -> tuple[Scores, NDArray[np.int64]]:
    """Return the best references of some looks, tile by tile."""
    looked, count = len(factors[0][0]), len(factors[0][1])
    best = np.full((looked, depth), -np.inf, np.float32)
    rows = np.zeros((looked, depth), np.int64)
    # The dearest first: what is subtracted from the largest so far is the difference to the next.
    falling = sorted(factors, key=lambda factor: -factor[2])
    tiles = np.empty((2, looked * min(_REFERENCES, count)), np.float32)
    # Few references set the scores to beat: of all others, few are looked at one by one.
    edges = [0, *range(min(_FIRST, count), count, _REFERENCES), count]
    for start, stop in itertools.pairwise(edges):
        size = looked * (stop - start)
        scores, other = (tile[:size].reshape(looked, stop - start) for tile in tiles)
        for number, (left, right, cost) in enumerate(falling):
            np.matmul(left, right[start:stop].T, out=other if number else scores)
            if not number:
                continue
            if more := np.float32(falling[number - 1][2] - cost):
                scores -= more
            np.maximum(scores, other, out=scores)
        if least := np.float32(falling[-1][2]):
            scores -= least
        _keep(best, rows, scores, start)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)


def _keep(best: Scores, rows: NDArray[np.int64], scores: Scores, start: int) -> None:
    """Take in the scores of the next references, float32[L,n], of rows from `start` on."""
    depth = best.shape[1]
    looks, columns = np.divmod(np.flatnonzero(scores > best.min(axis=1, keepdims=True)), scores.shape[1])
    counts = np.bincount(looks, minlength=len(best))
    better = np.flatnonzero(counts)
    if not len(better):
        return
    # Rows of what is kept so far, then of what is better, to the length of the longest.
    every = np.full((len(better), depth + int(counts.max())), -np.inf, np.float32)
    numbers = np.zeros(every.shape, np.int64)
    every[:, :depth], numbers[:, :depth] = best[better], rows[better]
    place = np.arange(len(looks)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(np.arange(len(better)), counts[better]), depth + place
    every[at], numbers[at] = scores[looks, columns], columns + start
    kept = np.argpartition(-every, depth - 1, axis=1)[:, :depth]
    best[better] = np.take_along_axis(every, kept, 1)
    rows[better] = np.take_along_axis(numbers, kept, 1)
