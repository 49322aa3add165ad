"""One shard: the best references of each query, merged over shards, however the references are cut."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from id2core.errors import DatasetError, SearchError
from id2core.runs.execution import Execution
from id2core.search import indexes, match_rows, matching, shards
from tests.descriptor_sets import unit, write_embeddings
from tests.toy_index import EvenRows


def names(count: int, step: int = 1) -> pa.Table:
    """Ids in falling order, so that rows and ids disagree."""
    ids = [f"{i:04d}" for i in range(count * step, 0, -step)]
    return pa.table({"image_id": ids, "uri": [f"/{i}.jpg" for i in ids]})


def whole_numbers(rows: int, seed: int) -> NDArray[np.float32]:
    """Few different rows, whose products are exact: many equal scores."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, 4)).astype(np.float32)


def test_a_shard_gives_the_best_of_each_query_in_order() -> None:
    references, queries = unit(50, 8, 0), unit(3, 8, 1)
    matches = shards.build(references, names(50)).search(queries, 4)
    assert matches.schema.equals(shards.CANDIDATES)
    order = np.argsort(-(queries @ references.T), axis=1)[:, :4]
    assert matches["query_row"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert matches["reference_id"].to_pylist() == names(50)["image_id"].take(order.ravel()).to_pylist()


def test_fewer_references_than_asked_for_are_all_given() -> None:
    assert shards.build(unit(3, 8, 0), names(3)).search(unit(2, 8, 1), 10).num_rows == 6
    assert shards.build(unit(0, 8, 0), names(0)).search(unit(2, 8, 1), 10).num_rows == 0
    assert shards.build(unit(3, 8, 0), names(3)).search(unit(0, 8, 1), 10).num_rows == 0
    assert shards.merge([], 3).schema.equals(shards.CANDIDATES)


def test_equal_scores_are_cut_by_id_and_not_by_row() -> None:
    same = np.repeat(unit(1, 8, 0), 40, axis=0)
    matches = shards.build(same, names(40)).search(same[:2], 3)
    assert matches["reference_id"].to_pylist() == ["0001", "0002", "0003"] * 2


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(1, 39), max_size=4), k=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_ties_do_not_depend_on_how_the_references_were_cut(cuts: list[int], k: int, seed: int) -> None:
    references, queries, ids = whole_numbers(40, seed), whole_numbers(3, seed + 1), names(40)
    edges = [0, *sorted(set(cuts)), 40]
    parts = [
        shards.build(references[a:b], ids.slice(a, b - a)).search(queries, k) for a, b in pairwise(edges)
    ]
    whole = shards.build(references, ids).search(queries, k)
    assert shards.merge(parts[::-1], k).equals(whole.combine_chunks())


def with_copies(rows: int, size: int, seed: int) -> NDArray[np.float32]:
    """Rows of length 1 of which most stand there many times."""
    rng = np.random.default_rng(seed)
    return unit(rows, size, seed)[rng.integers(0, max(rows // 8, 1), rows)]


def best_by_integers(
    queries: NDArray[np.float32], references: NDArray[np.float32], ids: pa.Table, k: int
) -> list[tuple[int, str, np.float32]]:
    """The matches by arithmetic that cannot round, ties by id."""
    q, r = (np.rint(x.astype(np.float64) * 2**26).astype(np.int64) for x in (queries, references))
    scores, id_of = ((q @ r.T) / 2.0**52).astype(np.float32), ids["image_id"].to_pylist()
    best = [sorted(range(len(r)), key=lambda i: (-row[i], id_of[i]))[:k] for row in scores]
    return [(i, id_of[j], scores[i, j]) for i, rows in enumerate(best) for j in rows]


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 149), max_size=6),
    blocks=st.lists(st.integers(1, 36), max_size=3),
    k=st.integers(1, 60),
    size=st.sampled_from([3, 31, 512]),
    seed=st.integers(0, 2**16),
)
def test_scores_and_ties_are_the_same_however_both_sides_are_cut_and_ordered(
    cuts: list[int], blocks: list[int], k: int, size: int, seed: int
) -> None:
    references, ids = with_copies(150, size, seed), names(150)
    queries = np.concatenate([references[:20], unit(17, size, seed + 1)])
    expected = best_by_integers(queries, references, ids, k)
    order = np.random.default_rng(seed).permutation(150)
    shuffled, shuffled_ids = references[order], ids.take(pa.array(order))
    shard_edges, block_edges = [0, *sorted(set(cuts)), 150], [0, *sorted(set(blocks)), 37]
    parts = [shards.build(shuffled[a:b], shuffled_ids.slice(a, b - a)) for a, b in pairwise(shard_edges)]
    found = []
    for a, b in pairwise(block_edges):
        block = shards.merge([part.search(queries[a:b], k) for part in parts[::-1]], k)
        columns = (block[name].to_numpy() for name in ("query_row", "reference_id", "score"))
        found += [(a + row, *more) for row, *more in zip(*columns, strict=True)]
    assert found == expected


def test_a_shard_is_one_file_of_a_data_set_and_its_name_says_by_what_it_is_searched(tmp_path: Path) -> None:
    vectors = unit(20, 8, 0)
    references = write_embeddings(tmp_path / "r", vectors, 2, "r")
    shard = shards.load(references, [references.files[1]])
    assert shard.ids["image_id"].to_pylist() == [f"r{i:06d}" for i in range(10, 20)]
    matches = shard.search(vectors[10:], 1)
    assert matches["reference_id"].to_pylist() == shard.ids["image_id"].to_pylist()
    assert shards.index_id(references) == f"flat-{references.digest}"
    with pytest.raises(SearchError, match="no index 'fast': choose flat"):
        shards.load(references, [references.files[1]], "fast")
    (tmp_path / "r" / references.files[1].name).unlink()
    with pytest.raises(DatasetError, match="is gone"):
        shards.load(references, [references.files[1]])


def test_a_new_index_is_a_class_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(indexes.INDEXES, "even", EvenRows)
    references = write_embeddings(tmp_path / "r", unit(9, 8, 0), 1, "r")
    queries = write_embeddings(tmp_path / "q", unit(3, 8, 1), 1, "q")
    planned = partial(match_rows.make, references, queries, str(tmp_path / "m"), Execution.begin(), 7)
    plan = planned(index="even")
    assert shards.index_id(references, "even") == f"even-{references.digest}"
    assert plan.plan_id != planned().plan_id
    [(files, blocks)] = matching.tasks(plan)
    [(pairs, matches)] = matching.search(plan, blocks, matching.load_shard(plan, files))
    assert pairs == 27 and matches.num_rows == 3 * 5  # all that it can find
    assert set(matches["reference_id"].to_pylist()) == {f"r{i:06d}" for i in range(0, 9, 2)}
    with pytest.raises(SearchError, match="no index 'odd': choose flat, even"):
        planned(index="odd")
