"""Scores of pairs that depend on the two descriptors alone: not on shapes, threads, libraries or machines.

A product of matrices adds its terms in an order that follows from the shapes, and so do the last bits of a
score. Two copies of one picture then score differently in two shards, and rounding decides a tie that ids
should decide. Here no sum is rounded: components are first rounded to whole multiples of 2⁻²⁶, so a
product of two is a multiple of 2⁻⁵², and by Cauchy and Schwarz no partial sum of two rows of length 1 exceeds
1. Float64 holds such numbers exactly, in whatever order they are added.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from id2core.transforms import cohorts

# Steps of a component from 0 to 1.
STEPS: Final = 2.0**26
LONGEST: Final = cohorts.LONGEST
# Queries whose candidates are widened to float64 at once: they stay in the cache.
_QUERY_ROWS = 16
# Pairs that are widened to float64 at once: they stay in the cache.
_PAIR_ROWS = 128


def _on_grid(descriptors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return descriptors, rounded to multiples of 2⁻²⁶."""
    wide = np.multiply(descriptors, STEPS, dtype=np.float64)
    np.rint(wide, out=wide)
    wide /= STEPS
    return wide


def all_pairs(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the score of every query with every reference, float32[Q,N]."""
    return (_on_grid(queries) @ _on_grid(references).T).astype(np.float32)


def pairs(
    queries: NDArray[np.float32], references: NDArray[np.float32], rows: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """Return the scores of each query with some references; -inf where a row is below 0.

    Args:
        queries, references: float32[Q,m] and float32[N,m].
        rows: int[Q,K], references of each query.

    Returns:
        float32[Q,K].
    """
    scores = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _QUERY_ROWS):
        block = slice(start, start + _QUERY_ROWS)
        vectors = _on_grid(references[rows[block]])
        scores[block] = (vectors @ _on_grid(queries[block])[:, :, None])[:, :, 0]
    scores[rows < 0] = -np.inf
    return scores


def dots(
    queries: NDArray[np.float32],
    query_rows: NDArray[np.integer[Any]],
    references: NDArray[np.float32],
    rows: NDArray[np.integer[Any]],
) -> NDArray[np.float32]:
    """Return the scores of pairs of rows, float32[P].

    Args:
        queries, references: float32[Q,m] and float32[N,m].
        query_rows, rows: int[P], both sides of each pair.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIR_ROWS):
        block = slice(start, start + _PAIR_ROWS)
        left, right = queries[query_rows[block]], references[rows[block]]
        scores[block] = np.einsum("ij,ij->i", _on_grid(left), _on_grid(right))
    return scores


def tolerance(size: int) -> float:
    """Return how far a score of `size` terms, summed in float32 in any order, can be from the exact one.

    Rows are at most as long as `LONGEST` says.
    """
    # As many roundings of the sum, one of the result, and room. To the grid, each row moves by half a step in
    # each component.
    return float(((size + 4) * 2.0**-24 + np.sqrt(size) / STEPS) * LONGEST)
