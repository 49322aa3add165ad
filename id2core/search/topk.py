"""The k best of scores that come in blocks; ties by row, decided before anything is cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.search import scoring

# References that an index is asked for beyond k: enough that few queries stay open.
MARGIN = 4
# Queries and references that meet exactly at once: 8 MB of scores.
BLOCK_ROWS = 1024

# Rows int64[…] → int[…], numbers in whose order these rows stand if their scores are equal.
Places = Callable[[NDArray[np.int64]], NDArray[np.integer[Any]]]


class TopK:
    """The k best references of B queries, from blocks of scores that are added in the order of rows.

    Memory: k scores and rows per query beside the block that is added.
    """

    def __init__(self, queries: int, k: int) -> None:
        """Start without any reference.

        Args:
            queries: B.
            k: references kept per query; all where there are fewer.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; keep 1 reference per query or more")
        self._k, self._seen = k, 0
        self._scores = np.empty((queries, 0), np.float32)
        self._rows = np.empty((queries, 0), np.int64)

    def add(self, scores: NDArray[np.float32]) -> None:
        """Take in the scores of the next references.

        Args:
            scores: float32[B,n], of the rows that follow those added before.

        Raises:
            ValueError: a score is not finite.
        """
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite: scores must be finite to be ordered")
        rows = np.broadcast_to(np.arange(self._seen, self._seen + scores.shape[1]), scores.shape)
        self._seen += scores.shape[1]
        # Rows ascend along each query: those kept so far come first, and all of them before the new ones.
        every = np.concatenate([self._scores, scores], axis=1)
        numbers = np.concatenate([self._rows, rows], axis=1)
        if every.shape[1] > self._k:
            kept = _best_mask(every, self._k)
            every, numbers = every[kept].reshape(-1, self._k), numbers[kept].reshape(-1, self._k)
        self._scores, self._rows = every, numbers

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows int64[B,k] and scores float32[B,k], best first, equal scores by row."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        return np.take_along_axis(self._rows, order, 1), np.take_along_axis(self._scores, order, 1)


def _best_mask(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """bool[B,n] with k True in each row: scores above the k-th, and the first of those that equal it."""
    kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above, equal = scores > kth, scores == kth
    room = k - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (equal & (np.cumsum(equal, axis=1) <= room)))


def best_references(
    search: Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]],
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    places: Places,
    k: int,
    score: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k best references of each query, by exact scores, ties by place.

    An index sums in float32 and breaks a tie at the k-th place as it likes. It is therefore asked for a few
    references more, and what it found is scored exactly. Where a reference that it left out may belong to the
    best, as among a thousand copies of one picture, the query meets every reference exactly instead.

    Memory: `MARGIN` references more than k per query, or a block of exact scores.

    Args:
        search: depth → scores float32[Q,depth], best first, and their rows int64[Q,depth].
        queries, references: float32[Q,m] and float32[N,m], rows of length 1.
        places: decides between rows of equal scores.
        k: references kept, at most N.
        score: rows int64[Q,K] → their exact scores float32[Q,K]; by default, `scoring.pairs` makes them.

    Returns:
        Scores float32[Q,k] and rows int64[Q,k], below 0 where an approximate index found fewer.
    """
    depth = min(k + MARGIN, len(references))
    found, rows = search(depth)
    scores = score(rows) if score else scoring.pairs(queries, references, rows)
    order = _in_order(scores, rows, places)[:, :k]
    best, best_rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    if depth < len(references):
        reach = best[:, -1] - scoring.tolerance(queries.shape[1])
        open_rows = np.flatnonzero((rows[:, -1] >= 0) & (found[:, -1] >= reach))
        for start in range(0, len(open_rows), BLOCK_ROWS):
            some = open_rows[start : start + BLOCK_ROWS]
            best[some], best_rows[some] = _among_all(queries[some], references, places, k)
    return best, best_rows


def _in_order(
    scores: NDArray[np.float32], rows: NDArray[np.int64], places: Places
) -> NDArray[np.integer[Any]]:
    """int[Q,K]: the columns of each query in falling order of scores, ties by place."""
    order = np.argsort(-scores, axis=1, kind="stable")
    falling = np.take_along_axis(scores, order, 1)
    tied = np.flatnonzero((falling[:, 1:] == falling[:, :-1]).any(axis=1))
    if len(tied):
        found = np.maximum(rows[tied], 0)  # where nothing was found, any place will do
        order[tied] = np.lexsort((places(found), -scores[tied]))
    return order


def _among_all(
    queries: NDArray[np.float32], references: NDArray[np.float32], places: Places, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of all references by exact scores; arguments as of `best_references`."""
    in_order = np.argsort(places(np.arange(len(references))))
    best = TopK(len(queries), k)
    for start in range(0, len(in_order), BLOCK_ROWS):
        best.add(scoring.all_pairs(queries, references[in_order[start : start + BLOCK_ROWS]]))
    found, scores = best.result()
    return scores, in_order[found]
