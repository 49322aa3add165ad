"""Confidence intervals by the percentile bootstrap over queries (Efron & Tibshirani 1993, Section 13.3).

A resample draws n of n queries with replacement, each with all its predictions: predictions of one query
depend on each other, queries do not. A statistic of a resample is the statistic of the original
data in which each query counts as often as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
# Counts in one block of resamples: a few arrays of 8 MB, for any number of queries and resamples.
BLOCK_NUMBERS = 1 << 20

# How often each query counts, int64[b,n] → m measures of each of the b resamples, float64[b,m].
Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def intervals(statistic: Statistic, queries: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the central 95% interval of each of m measures.

    Args:
        statistic: its NaN is a measure that a resample does not have; such resamples are left out.
        queries: n, at least 1.
        resamples: how many; 1,000 give ends that move by about a tenth of the interval's half width.
        seed: the same seed draws the same resamples, of any two systems over the same n queries.

    Returns:
        float64[2,m], lower and upper ends; NaN for a measure that no resample has.

    Raises:
        ValueError: there is no query or no resample.
    """
    if queries < 1 or resamples < 1:
        raise ValueError(f"cannot draw {resamples} resamples of {queries} queries; give at least 1 of each")
    values = np.concatenate([statistic(w) for w in _draws(queries, resamples, seed)])
    known = ~np.isnan(values).all(axis=0)
    ends = np.full((2, values.shape[1]), np.nan)
    tail = (1 - CONFIDENCE) / 2
    ends[:, known] = np.nanquantile(values[:, known], [tail, 1 - tail], axis=0)
    return ends


def _draws(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """int64[b,n] blocks: how often each query was drawn in each resample."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_NUMBERS // n)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(0, n, (count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(drawn.reshape(-1), minlength=count * n).reshape(count, n)
