"""A search that ends in its middle and is begun again: by the engine, by the same run, by another one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from beam_jobs import metrics, runners, search
from beam_jobs.metrics import Figures
from id2core.runs import checkup, erasure, leftovers, units
from id2core.runs.execution import Execution
from id2core.runs.progress import Counts, tally
from id2core.search import indexes, match_rows, matching
from id2core.search.flat import FlatIndex
from id2core.search.matching import SearchPlan
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests.corpora import Corpus, image, search_here
from tests.descriptor_sets import unit, write_embeddings

SHARDS, BLOCKS = 4, 3


@dataclass
class Fault:
    """Ends a search after so many shards that were built, and blocks that were searched or judged."""

    shards: int = 10**6
    searches: int = 10**6
    judged: int = 10**6
    seen: list[str] = field(default_factory=list)

    def meet(self, what: str, most: int) -> None:
        if self.seen.count(what) == most:
            raise OSError("the machine is gone")
        self.seen.append(what)


FAULT = Fault()


class MortalIndex(FlatIndex):
    """An exact index whose machine may die."""

    def __init__(self, descriptors: NDArray[np.float32]) -> None:
        FAULT.meet("shard", FAULT.shards)
        super().__init__(descriptors)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        FAULT.meet("search", FAULT.searches)
        return super().search(queries, k)


@dataclass(frozen=True)
class MortalJudge:
    """Leaves verdicts open."""

    calibration_id: str = "none"
    score: str = "score"

    def check_ids(self, ids: object) -> None: ...

    def judge(self, matches: pa.Table, references: int, segments: object) -> pa.Table:
        FAULT.meet("judge", FAULT.judged)
        return matches


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    monkeypatch.setitem(indexes.INDEXES, "mortal", MortalIndex)
    monkeypatch.setattr(matching, "QUERIES_AT_ONCE", 1)  # so that blocks are searched one by one
    global FAULT
    FAULT = Fault()
    yield FAULT
    FAULT = Fault()


@dataclass(frozen=True)
class Corpora:
    """Four shards of references, three blocks of uploads."""

    root: Path
    references: Dataset
    queries: Dataset

    def plan(self, seconds: float = 60) -> SearchPlan:
        """A new run."""
        out = str(self.root / "matches")
        judge = MortalJudge()
        made = match_rows.make(self.references, self.queries, out, Execution.begin(), 5, judge, "mortal")
        return replace(made, record_seconds=seconds)

    @property
    def staged(self) -> list[Path]:
        return [path for path in (self.root / "_staging").rglob("*") if path.is_file()]

    @property
    def candidates(self) -> list[Path]:
        return sorted((self.root / "_staging/files/candidates").iterdir())


@pytest.fixture
def corpora(tmp_path: Path) -> Corpora:
    references = write_embeddings(tmp_path / "r" / "embeddings", unit(200, 8, 0), SHARDS, "r")
    return Corpora(
        tmp_path, references, write_embeddings(tmp_path / "q" / "embeddings", unit(30, 8, 1), BLOCKS, "q")
    )


def run(plan: SearchPlan, shard_bytes: int = 1) -> Figures:
    """Search; every file is a shard."""
    pipeline = runners.pipeline()
    with pipeline:
        search.build(pipeline, plan, matching.tasks(replace(plan, shard_bytes=shard_bytes)))
    return metrics.read(pipeline.result)


def check_rows(corpora: Corpora, plan: SearchPlan) -> None:
    """Compare with a search of one shard that nothing interrupts; nothing is left over."""
    assert corpora.staged == []
    rows = Dataset.open(plan.out).read(schemas.MATCHES)
    assert set(rows["run_id"].to_pylist()) == {plan.execution.run_id}
    alone = str(corpora.root / "alone" / "matches")
    made = match_rows.make(
        corpora.references, corpora.queries, alone, plan.execution, 5, MortalJudge(), "mortal"
    )
    assert rows.equals(search_here(made).read(schemas.MATCHES))


def times(figures: Figures, name: str) -> int:
    known = figures.distributions.get(f"search_{name}_ms")
    return known.count if known else 0


def test_another_run_searches_the_shards_that_a_killed_one_has_not(
    fault: Fault, corpora: Corpora, request: pytest.FixtureRequest
) -> None:
    shown: list[Counts] = []
    request.addfinalizer(tally.listen(lambda stage, counts: shown.append(counts)))
    fault.shards = 3
    with pytest.raises(OSError, match="gone"):
        run(corpora.plan())
    assert len(corpora.candidates) == 3
    fault.shards = 10**6
    plan = corpora.plan()
    tally.start(search.STAGE, SHARDS * BLOCKS)
    figures = run(plan)
    assert shown[-1] == Counts(SHARDS * BLOCKS, 0, SHARDS * BLOCKS)
    assert (times(figures, "load"), times(figures, "block")) == (1, BLOCKS)
    check_rows(corpora, plan)


def test_damaged_candidates_are_made_again(fault: Fault, corpora: Corpora) -> None:
    fault.shards = 3
    with pytest.raises(OSError, match="gone"):
        run(corpora.plan())
    fault.shards = 10**6
    cut, other, gone = corpora.candidates
    data = cut.read_bytes()
    cut.write_bytes(data[:-9])
    data = bytearray(other.read_bytes())
    data[len(data) // 2] ^= 1
    other.write_bytes(data)
    gone.unlink()
    plan = corpora.plan()
    assert times(run(plan), "load") == SHARDS
    check_rows(corpora, plan)


def test_a_slow_task_is_taken_up_behind_its_last_record(fault: Fault, corpora: Corpora) -> None:
    fault.searches = 2
    with pytest.raises(OSError, match="gone"):
        run(corpora.plan(seconds=0), shard_bytes=2**30)
    assert [record.objects for record in units.staged(str(corpora.root)).values()] == [1, 1]
    fault.searches = 10**6
    plan = corpora.plan(seconds=0)
    assert times(run(plan, shard_bytes=2**30), "block") == BLOCKS - 2
    check_rows(corpora, plan)


def test_the_same_run_repeats_no_block_that_it_has_written(fault: Fault, corpora: Corpora) -> None:
    fault.judged = 2
    plan = corpora.plan()
    with pytest.raises(OSError, match="gone"):
        run(plan)
    fault.judged = 10**6
    figures = run(plan)
    assert [times(figures, name) for name in ("load", "merge", "write", "sort")] == [0, 1, 1, 1]
    check_rows(corpora, plan)


def test_a_search_that_is_restarted_after_its_commit_searches_nothing(fault: Fault, corpora: Corpora) -> None:
    plan = corpora.plan()
    run(plan)
    figures = run(plan)
    assert [times(figures, name) for name in ("load", "merge", "write")] == [0, 0, 0]
    check_rows(corpora, plan)


def test_an_equal_search_that_ends_first_is_taken(
    fault: Fault, corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = corpora.plan(), corpora.plan()
    committed = matching.commit

    def commit(plan: SearchPlan, written: list[matching.Bin]) -> Dataset:
        monkeypatch.setattr(matching, "commit", committed)
        run(first)
        return committed(plan, written)

    monkeypatch.setattr(matching, "commit", commit)
    run(second)
    check_rows(corpora, first)


def killed(fault: Fault, root: Path) -> list[Path]:
    """Let the search of a second night die after one block; return its candidates."""
    queries, references = Corpus(root / "queries", unit(9, 8, 1)), Corpus(root / "reference", unit(9, 8, 2))
    held = references.change("n0", [(f"/r/{i}", i) for i in range(9)], [])
    for night in range(2):
        asked = queries.change(f"n{night}", [(f"/q{night}/{i}", i) for i in range(4)], [])
        plan = match_rows.make(held, asked, str(root / "matches"), Execution.begin(), 3, index="mortal")
        if not night:
            run(plan)
    fault.searches = fault.seen.count("search") + 1
    with pytest.raises(OSError, match="gone"):
        run(replace(plan, record_seconds=0))
    return sorted((root / "_staging/files/candidates").iterdir())


def test_what_a_killed_search_has_left_is_no_finding_and_goes_in_time(fault: Fault, tmp_path: Path) -> None:
    candidates = killed(fault, tmp_path)
    assert candidates and checkup.check(str(tmp_path)).findings == []
    leftovers.sweep(str(tmp_path), time.time() - 60)
    assert all(path.exists() for path in candidates)
    leftovers.sweep(str(tmp_path), time.time() + 60)
    assert not [path for path in (tmp_path / "_staging").rglob("*") if path.is_file()]
    assert Dataset.open(str(tmp_path / "matches")).read(schemas.MATCHES).num_rows == 4 * 3


def test_a_takedown_removes_candidates_of_the_picture(fault: Fault, tmp_path: Path) -> None:
    [candidates] = killed(fault, tmp_path)
    held = set(pq.read_table(candidates)["reference_id"].to_pylist())
    erasure.erase(str(tmp_path), {image(i) for i in range(9)} - held, Execution.begin())
    assert candidates.exists()
    erasure.erase(str(tmp_path), [min(held)], Execution.begin())
    assert not candidates.exists() and units.staged(str(tmp_path)) == {}
