"""The k best of scores that come in blocks; ties by row, decided before anything is cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


def search_until_decided(
    search: Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]],
    places: NDArray[np.integer[Any]],
    k: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Order what an index found, ties by place, and cut it to k only where no tie is cut apart.

    An index breaks a tie at the k-th place as it likes. It is therefore asked for one reference more, and for
    twice as many as long as the last one still equals the k-th.

    Args:
        search: depth → scores float32[B,depth], best first, and their rows int64[B,depth].
        places: int[N], the place of each of the N rows where scores are equal.
        k: references kept, at most N.

    Returns:
        Scores float32[B,k] and rows int64[B,k].
    """
    depth = min(k + 1, len(places))
    scores, rows = search(depth)
    while depth < len(places) and _is_cut_apart(scores, k):
        depth = min(2 * depth, len(places))
        scores, rows = search(depth)
    if (scores[:, 1:] == scores[:, :-1]).any():
        order = np.lexsort((places[rows], -scores))
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return scores[:, :k], rows[:, :k]


def _is_cut_apart(scores: NDArray[np.float32], k: int) -> bool:
    """Whether more references than these may share the k-th score; an index that finds none says -inf."""
    kth, last = scores[:, k - 1], scores[:, -1]
    return bool((np.isfinite(kth) & (kth == last)).any())
