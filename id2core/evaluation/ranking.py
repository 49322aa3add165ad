"""Measures of ranked pairs, as plain functions of arrays.

- Closed set: what is the rank of the origin among the references of its query? Queries without origin do not
  count; an origin that was never retrieved counts as 0.
- Open set: the pairs of all queries are pooled, so that a false alarm costs precision at every threshold
  below its score. The recall is of all origins, retrieved or not.

At equal scores a false reference is always ahead of the true one: a system that gives every pair the
same score must not look good because of the order in which its rows were written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array  # type: ignore[import-untyped]

PRECISION = 0.9


@dataclass(frozen=True)
class Predictions:
    """p scored pairs of n queries, at most one of them true per query.

    Attributes:
        query: int[p], number of the query of each pair, from 0.
        score: float[p], finite.
        relevant: bool[p], whether the reference of the pair is the query's origin.
        has_origin: bool[n], whether the query has an origin, retrieved or not.

    Raises:
        ValueError: the arrays do not fit together.
    """

    query: NDArray[np.integer[Any]]
    score: NDArray[np.floating[Any]]
    relevant: NDArray[np.bool_]
    has_origin: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.query) == len(self.score) == len(self.relevant):
            raise ValueError("query, score and relevant must be of one length: one entry per pair")
        if not np.isfinite(self.score).all():
            raise ValueError("scores must be finite; drop pairs that were not compared")
        if len(self.query) and not 0 <= self.query.min() <= self.query.max() < self.queries:
            raise ValueError(f"query numbers must lie between 0 and {self.queries - 1}")
        true = self.query[self.relevant]
        if not self.has_origin[true].all() or len(np.unique(true)) < len(true):
            raise ValueError("a query has one relevant pair at most, and none where it has no origin")

    @property
    def queries(self) -> int:
        """Number of queries, n, with an origin or without."""
        return len(self.has_origin)

    @property
    def origins(self) -> int:
        """Number of queries that have an origin: the size of the ground truth."""
        return int(self.has_origin.sum())


@dataclass(frozen=True)
class OperatingPoint:
    """The recall that the pairs with a score of at least `threshold` reach."""

    recall: float
    threshold: float


def origin_ranks(predictions: Predictions) -> NDArray[np.int64]:
    """Rank of each query's origin among its pairs, int64[n]: 1 is best, 0 where there is none."""
    of_origin = np.full(predictions.queries, np.inf)
    true = predictions.relevant
    of_origin[predictions.query[true]] = predictions.score[true]
    ahead = ~true & (predictions.score >= of_origin[predictions.query])
    ranks = np.bincount(predictions.query[ahead], minlength=predictions.queries) + 1
    return np.where(np.isfinite(of_origin), ranks, 0)


def ranks_of(scores: NDArray[np.floating[Any]], own: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the rank of each query's own reference among all of them.

    Args:
        scores: float[B,N], of queries and references.
        own: int[B], the row of each query's reference, below 0 where it has none.

    Returns:
        int64[B]: 1 is best, 0 where there is none. At equal scores a false reference is ahead of the
        true one.
    """
    true = np.take_along_axis(scores, np.maximum(own, 0)[:, None], 1)
    return np.where(own < 0, 0, np.count_nonzero(scores >= true, axis=1))


def mean_average_precision(predictions: Predictions) -> float | None:
    """The paper's mAP with one relevant reference per query: the mean of 1/rank; None without any origin."""
    return _mean(_reciprocal(_of_origins(predictions)))


def recall_at(predictions: Predictions, k: int) -> float | None:
    """Share of origins among the first k references (Acc is k = 1); None without any origin."""
    return _mean(_within(_of_origins(predictions), k))


def micro_average_precision(predictions: Predictions) -> float | None:
    """µAP: the mean over all origins of the precision at their score; None without any origin."""
    if not predictions.origins:
        return None
    relevant, _ = _pooled(predictions)
    places = np.flatnonzero(relevant) + 1
    return float(np.sum(np.arange(1, len(places) + 1) / places) / predictions.origins)


def recall_at_precision(predictions: Predictions, precision: float = PRECISION) -> OperatingPoint | None:
    """The largest recall at a precision of at least `precision`; None where no threshold reaches it."""
    relevant, order = _pooled(predictions)
    places = np.flatnonzero(relevant)
    reached = np.flatnonzero(np.arange(1, len(places) + 1) / (places + 1) >= precision)
    if not len(reached):
        return None
    last = int(reached[-1])
    threshold = predictions.score[order[places[last]]]
    return OperatingPoint((last + 1) / predictions.origins, float(threshold))


def _of_origins(predictions: Predictions) -> NDArray[np.int64]:
    return origin_ranks(predictions)[predictions.has_origin]


def _reciprocal(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(1.0, ranks, out=np.zeros(len(ranks)), where=ranks > 0)


def _within(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _pooled(predictions: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Relevance in the order of falling scores, false before true at equal ones, and that order."""
    order = np.lexsort((predictions.relevant, -predictions.score))
    return predictions.relevant[order], order


def weighted(
    predictions: Predictions, ks: Sequence[int], precision: float = PRECISION
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """The measures as a function of how often each query counts, for resampling.

    Args:
        predictions: of n queries.
        ks: of recall@k.
        precision: of the recall at a precision.

    Returns:
        A function int64[b,n] → float64[b,3+len(ks)]: mAP, recall@k for each k, µAP, recall at the precision
        (0 where it is not reached); NaN where no query with an origin counts. It needs memory for a few
        numbers per b and query.
    """
    ranks = _of_origins(predictions)
    closed = np.stack([_reciprocal(ranks), *(_within(ranks, k) for k in ks)], axis=1)
    pooled = _weighted_pool(predictions, precision)

    def measures(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        of_origins = weights[:, predictions.has_origin]
        sums = np.concatenate([of_origins @ closed, pooled(weights)], axis=1)
        total = of_origins.sum(axis=1)[:, None]
        return np.asarray(np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0))

    return measures


def _weighted_pool(
    predictions: Predictions, precision: float
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """µAP and the recall at a precision, both times the number of origins.

    A true pair drawn w times, after T true and F false ones, adds Σ (T+j)/(T+j+F) over j = 1…w,
    which is w − F·(H(T+F+w) − H(T+F)) with the harmonic numbers H.
    """
    relevant, order = _pooled(predictions)
    true = np.flatnonzero(relevant)
    # Pairs below the last true pair change nothing. The others are counted by the true pair that follows.
    query = predictions.query[order[: true[-1] + 1 if len(true) else 0]]
    step = np.searchsorted(true, np.arange(len(query)))
    pairs = csr_array((np.ones_like(step), (step, query)), shape=(len(true), predictions.queries))

    def sums(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        if not len(true):
            return np.zeros((len(weights), 2))
        by_query = np.ascontiguousarray(weights.T)
        places = np.cumsum(pairs @ by_query, axis=0)
        drawn = by_query[query[true]]
        so_far = np.cumsum(drawn, axis=0)
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, places.max() + 1))])
        gained = drawn - (places - so_far) * (harmonic[places] - harmonic[places - drawn])
        # Of whole numbers: the margin is for the rounding of the product alone.
        precise = so_far >= precision * np.maximum(places, 1) - 1e-9
        return np.stack([gained.sum(axis=0), np.where(precise, so_far, 0).max(axis=0)], axis=1)

    return sums
