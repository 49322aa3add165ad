"""Ties are decided by row before anything is cut off, wherever the blocks end."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from id2core.search import exact
from id2core.search.topk import TopK, best_references
from tests.descriptor_sets import unit


def by_sorting(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@settings(max_examples=60)
@given(
    values=st.integers(1, 5),
    references=st.integers(0, 40),
    block=st.integers(1, 41),
    k=st.integers(1, 45),
    seed=st.integers(0, 2**16),
)
def test_the_best_are_those_of_a_stable_sort(
    values: int, references: int, block: int, k: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(0, values, (4, references)).astype(np.float32)
    best = TopK(4, k)
    for start in range(0, references, block):
        best.add(scores[:, start : start + block])
    rows, top = best.result()
    assert np.array_equal(rows, by_sorting(scores, k))
    assert np.array_equal(top, np.take_along_axis(scores, rows, 1))
    assert (rows.dtype, top.dtype) == (np.int64, np.float32)


def whole_numbers(rows: int, values: int, seed: int) -> NDArray[np.float32]:
    """Few different rows, whose products are exact in float32."""
    return np.random.default_rng(seed).integers(0, values, (rows, 3)).astype(np.float32)


@settings(max_examples=40)
@given(values=st.integers(1, 4), k=st.integers(1, 30), seed=st.integers(0, 2**16))
def test_an_index_that_breaks_ties_at_random_does_not_decide_them(values: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, references = whole_numbers(3, values, seed), whole_numbers(30, values, seed + 1)
    scores, places = queries @ references.T, rng.permutation(30)

    def search(depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = np.lexsort((rng.random(scores.shape), -scores))[:, :depth]
        return np.take_along_axis(scores, rows, 1), rows

    top, rows = best_references(search, queries, references, lambda rows: places[rows], k)
    expected = np.lexsort((np.broadcast_to(places, scores.shape), -scores))[:, :k]
    assert np.array_equal(rows, expected)
    assert np.array_equal(top, np.take_along_axis(scores, expected, 1))


def test_copies_without_number_cost_one_pass_and_a_block_of_scores() -> None:
    references = np.repeat(unit(1, 64, 0), 20_000, axis=0)
    places = np.arange(20_000)[::-1].copy()
    depths: list[int] = []

    def search(depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        depths.append(depth)
        return np.ones((100, depth), np.float32), np.tile(np.arange(depth), (100, 1))

    tracemalloc.start()
    top, rows = best_references(search, references[:100], references, lambda rows: places[rows], 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (rows == np.arange(19_999, 19_989, -1)).all() and np.unique(top).size == 1
    assert max(depths) <= 20 and peak < 60e6


def test_nearest_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Small whole numbers multiply exactly, so scores do not depend on how a product is cut.
    queries, references = (rng.integers(-2, 3, (n, 5)).astype(np.float32) for n in (37, 90))
    expected = by_sorting(queries @ references.T, 7)
    monkeypatch.setattr(exact, "QUERY_ROWS", 10)
    for rows_at_once in (3, 50, 8192):
        monkeypatch.setattr(exact, "SHARD_ROWS", rows_at_once)
        rows, scores = exact.nearest(queries, references, 7)
        assert np.array_equal(rows, expected)
        assert np.array_equal(scores, np.take_along_axis(queries @ references.T, expected, 1))
    assert exact.nearest(queries, references[:3], 7)[0].shape == (37, 3)
    assert exact.nearest(queries[:0], references, 7)[0].shape == (0, 0)
    assert exact.nearest(queries, references[:0], 7)[1].shape == (37, 0)


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        exact.nearest(np.full((1, 2), np.nan, np.float32), np.ones((3, 2), np.float32), 1)
    with pytest.raises(ValueError, match="k is 0"):
        exact.nearest(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 0)
