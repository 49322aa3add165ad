"""A search is cut into tasks that fill the memory and leave no worker with much more than the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.runs.execution import Execution
from id2core.search import cuts, match_rows, matching, shards
from id2core.search.matching import SearchPlan
from tests.descriptor_sets import unit, write_embeddings

# Bytes of a reference in a shard: eight numbers, and its text.
ROW = 8 * 4 + 256


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SearchPlan:
    root = tmp_path_factory.mktemp("cuts")
    references = write_embeddings(root / "r", unit(400, 8, 0), 40, "r")
    queries = write_embeddings(root / "q", unit(60, 8, 1), 12, "q")
    return match_rows.make(references, queries, str(root / "m"), Execution.begin(), 3)


@settings(max_examples=60)
@given(memory=st.integers(1, 500), spread=st.integers(1, 60), each=st.integers(1, 80), least=st.booleans())
def test_every_pair_is_in_one_task_and_none_is_much_larger(
    plan: SearchPlan, memory: int, spread: int, each: int, least: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not least:  # cuts may be as small as a file
            patch.setattr(cuts, "LEAST_QUERIES", 1)
            patch.setattr(cuts, "LEAST_SHARD_BYTES", 1)
        tasks = matching.tasks(replace(plan, shard_bytes=memory * ROW), spread, each)
    met = Counter((file.name, block.name) for files, blocks in tasks for file in files for block in blocks)
    assert set(met.values()) == {1} and len(met) == 40 * 12
    rows = [sum(file.rows for file in files) for files, _ in tasks]
    assert max(rows) <= max(memory, 10)
    work = np.multiply(rows, [sum(block.rows for block in blocks) for _, blocks in tasks])
    assert work.max() <= 2 * work.mean() + 10 * 5
    if least:  # shards and loads are as large as they may be
        assert len({files for files, _ in tasks}) <= 2 * -(-400 // max(memory, 10)) + 1


def test_few_queries_load_each_reference_once_and_many_are_spread(plan: SearchPlan) -> None:
    [(files, blocks)] = matching.tasks(plan)
    assert (len(files), len(blocks)) == (40, 12)
    small = replace(plan, shard_bytes=100 * ROW)
    assert Counter(len(files) for files, _ in matching.tasks(small)) == {10: 4}
    assert len(matching.tasks(small, queries_each=30)) == 8


def test_blocks_that_are_searched_together_give_what_each_gives_alone(
    plan: SearchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(files, blocks)] = matching.tasks(plan)
    shard = shards.load(plan.references, files)
    together = list(matching.search(plan, blocks, shard))
    monkeypatch.setattr(matching, "QUERIES_AT_ONCE", 1)
    alone = list(matching.search(plan, blocks, shard))
    assert [pairs for pairs, _ in together] == [pairs for pairs, _ in alone] == [400 * 5] * 12
    assert all(a.equals(b) for (_, a), (_, b) in zip(together, alone, strict=True))
