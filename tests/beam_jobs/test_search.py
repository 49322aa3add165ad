from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs import runners, search
from id2core.errors import CalibrationError, DatasetError, LostRowsError, StoreUnavailableError
from id2core.runs import ledger
from id2core.runs.execution import Execution
from id2core.search import background_rows, match_rows, matching, shards
from id2core.search.background_rows import Backgrounds
from id2core.search.matching import SearchPlan
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import Judge
from id2core.verdicts.normalization import Normalization, normalize_matches
from tests.descriptor_sets import IDS, unit, write_embeddings


def test_the_best_references_of_every_query_over_all_shards(tmp_path: Path) -> None:
    references, queries = unit(700, 24, 0), unit(90, 24, 1)
    write_embeddings(tmp_path / "r", references, 5, "r")
    write_embeddings(tmp_path / "q", queries, 3, "q")
    summary = search.run(
        Dataset.open(str(tmp_path / "r")),
        Dataset.open(str(tmp_path / "q")),
        str(tmp_path / "m"),
        Execution.begin(),
        top_k=7,
    )
    matches = rows_of(tmp_path / "m")
    assert (summary.queries, summary.matches, matches.num_rows) == (90, 630, 630)
    scores = queries @ references.T
    best = np.argsort(-scores, axis=1)[:, :7]
    assert matches["reference_id"].to_pylist() == [f"r{i:06d}" for i in best.reshape(-1)]
    np.testing.assert_allclose(
        matches["score"].to_numpy(), np.take_along_axis(scores, best, 1).ravel(), atol=1e-5
    )
    assert matches["rank"].to_pylist() == [1, 2, 3, 4, 5, 6, 7] * 90
    assert matches["query_uri"].to_pylist()[::7] == [f"/q/{i:06d}.jpg" for i in range(90)]
    assert matches["encoder_id"].unique().to_pylist() == ["e-1"] and matches["verdict"].null_count == 630
    [partition] = (tmp_path / "m").glob("scan_date=*")
    assert len(list(partition.iterdir())) == 1


def rows_of(place: Path) -> pa.Table:
    """All rows of a matches data set, by upload and rank."""
    table = Dataset.open(str(place)).read(schemas.MATCHES)
    return table.sort_by([("query_uri", "ascending"), ("rank", "ascending")])


def test_again_does_nothing_and_what_was_not_stored_is_refused(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    out = str(tmp_path / "m")
    first = search.run(references, queries, out, Execution.begin(), top_k=20)
    assert (first.pairs, first.matches) == (45, 45)  # every reference: fewer than asked for
    again = search.run(references, queries, out, Execution.begin(), top_k=2)
    assert again.resumed and (again.run_id, again.pairs, again.matches) == (first.run_id, 0, 0)
    with pytest.raises(DatasetError, match="Give --top-k 20"):
        search.run(references, queries, out, Execution.begin(), top_k=21)
    some = search.run(references, queries, str(tmp_path / "f"), Execution.begin(), floor=0.2)
    held = rows_of(tmp_path / "f")
    scores = rows_of(tmp_path / "m")["score"].to_numpy()
    assert some.matches == held.num_rows == (scores >= 0.2).sum() and some.pairs == 45
    assert held["floor"].unique().to_pylist() == [np.float32(0.2)]
    with pytest.raises(DatasetError, match="asks for all"):
        search.run(references, queries, str(tmp_path / "f"), Execution.begin())


def test_rows_carry_the_run_of_the_execution_that_wrote_them(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    first, second = (Execution(f"run-{i}", datetime(2026, 1, i, tzinfo=UTC)) for i in (1, 2))
    for execution in (first, second):
        result = search.run(references, queries, str(tmp_path / "m"), execution, 2)
        assert result.run_id == first.run_id
    rows = rows_of(tmp_path / "m")
    assert rows["run_id"].unique().to_pylist() == [first.run_id]
    assert rows["scanned_at"].unique().to_pylist() == [first.started]
    [event] = ledger.events(result.dataset.commit, IDS)
    assert (event.queries, event.references, event.pairs) == ((1, 1), (1, 1), 45)


def test_of_two_runs_with_the_same_work_the_first_to_commit_keeps_it(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    out = str(tmp_path / "m")
    early, late = (Execution(f"run-{i}", datetime(2026, 1, 1, tzinfo=UTC)) for i in (1, 2))
    plan = match_rows.make(references, queries, out, late, 2)
    first = search.run(references, queries, out, early, 2)
    held = rows_of(tmp_path / "m")
    made = match_rows.result(plan, search.run_planned(plan))
    assert (made.run_id, made.matches) == (first.run_id, first.matches)
    assert list(Dataset.open(out).runs) == [early.run_id]
    assert rows_of(tmp_path / "m").equals(held)
    assert not [path for path in tmp_path.rglob("_staging/**/*") if path.is_file()]


def test_a_search_that_overlaps_another_one_is_refused(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    out = str(tmp_path / "m")
    early, late = (Execution(f"run-{i}", datetime(2026, 1, 1, tzinfo=UTC)) for i in (1, 2))
    plan = match_rows.make(references, queries, out, late, 2)
    search.run(references, queries, out, early, 3)
    held = rows_of(tmp_path / "m")
    with pytest.raises(StoreUnavailableError, match="searched meanwhile"):
        search.run_planned(plan)
    assert rows_of(tmp_path / "m").equals(held)


def thresholds(
    low: float, high: float, normalization: Normalization | None = None, **ids: str
) -> Calibration:
    """A calibration on made-up scores between two values, for what `write_embeddings` writes."""
    made_up = np.linspace(low, high, 200)
    given = {"references": 350, "ids": IDS | ids, "normalization": normalization}
    return calibration.calibrate(made_up, match=0.05, review=0.3, **given)


def test_every_block_is_judged_as_the_whole_would_be(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(700, 8, 0), 3, "r")
    background = write_embeddings(tmp_path / "b", unit(50, 8, 2), 2, "b")
    queries = write_embeddings(tmp_path / "q", unit(90, 8, 1), 4, "q")
    search.run(references, queries, str(tmp_path / "plain"), Execution.begin(), 5)
    search.run(background, queries, str(tmp_path / "beside"), Execution.begin(), 3)
    normalization = Normalization(factor=0.5, k=3, background_id=shards.index_id(background))
    chosen = thresholds(0.3, 0.6, normalization)
    place = str(tmp_path / "backgrounds")
    for _ in range(2):
        looked_up = search.search_background(background, queries, place, Execution.begin(), 3)
        assert looked_up.dataset.rows == 90
    out = str(tmp_path / "m")
    search.run(references, queries, out, Execution.begin(), 5, judge=Judge(chosen, looked_up))
    expected = normalize_matches(rows_of(tmp_path / "plain"), rows_of(tmp_path / "beside"), normalization)
    expected = calibration.judge(expected, chosen, 700)
    judged = rows_of(tmp_path / "m")
    own = ["run_id", "scanned_at"]
    assert judged.drop(own).equals(expected.drop(own))
    assert set(judged["verdict"].to_pylist()) == {"match", "review", "none"}
    assert set(judged["false_positive_rate"].drop_null().to_pylist()) == {np.float32(0.1), np.float32(0.6)}
    assert judged["calibration_id"].unique().to_pylist() == [chosen.calibration_id]


def test_a_background_and_what_is_judged_after_it_are_one_job(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(70, 8, 0), 3, "r")
    background = write_embeddings(tmp_path / "b", unit(20, 8, 2), 2, "b")
    queries = write_embeddings(tmp_path / "q", unit(30, 8, 1), 4, "q")
    execution = Execution.begin()
    chosen = thresholds(0.3, 0.6, Normalization(factor=0.5, k=3, background_id=shards.index_id(background)))

    def plans(name: str) -> tuple[SearchPlan, SearchPlan]:
        place = tmp_path / name
        first = background_rows.make(background, queries, str(place / "backgrounds"), execution, 3)
        judge = Judge(chosen, Backgrounds.before(first))
        out = str(place / "matches")
        return first, match_rows.make(references, queries, out, execution, 5, judge)

    first, second = plans("two")
    backgrounds = search.run_planned(first)
    apart = backgrounds, search.run_planned(second.after(backgrounds))
    together = search.run_both(*plans("one"))
    for one, two, schema in zip(together, apart, (schemas.BACKGROUNDS, schemas.MATCHES), strict=True):
        assert one.read(schema).equals(two.read(schema)) and one.rows
    assert not [path for path in tmp_path.rglob("_staging/**/*") if path.is_file()]
    with pytest.raises(Exception, match="lacks the background of"):
        search.run_planned(plans("three")[1])


def test_a_search_in_this_process_commits_the_rows_of_a_pipeline(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(70, 8, 0), 3, "r")
    queries = write_embeddings(tmp_path / "q", unit(30, 8, 1), 4, "q")
    execution = Execution.begin()
    here, there = (match_rows.make(references, queries, str(tmp_path / n), execution, 5) for n in "ht")
    committed = search.run_planned(replace(here, shard_bytes=1))
    with runners.pipeline() as pipeline:
        search.build(pipeline, there, matching.tasks(replace(there, shard_bytes=1)))
    rows = committed.read(schemas.MATCHES)
    assert rows.equals(Dataset.open(there.out).read(schemas.MATCHES)) and rows.num_rows == 150
    assert committed == Dataset.open(here.out)
    assert not [path for path in tmp_path.rglob("_staging/**/*") if path.is_file()]


def test_what_cannot_be_judged_is_no_matches_and_says_so(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(30, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(6, 4, 1), 2, "q")
    others = write_embeddings(tmp_path / "o", unit(6, 4, 1), 2, "o")
    ends = (references, queries, str(tmp_path / "m"), Execution.begin(), 2)
    with pytest.raises(CalibrationError, match="calibrated for preprocess_id other, these scores are of p"):
        search.run(*ends, judge=Judge(thresholds(0, 1, preprocess_id="other")))
    chosen = thresholds(0, 1, Normalization(factor=1, k=2, background_id="b"))
    with pytest.raises(Exception, match="has 30 pictures, fewer than the 31"):
        search.search_background(references, queries, str(tmp_path / "deep"), Execution.begin(), 31)
    looked_up = search.search_background(references, others, str(tmp_path / "b"), Execution.begin(), 2)
    with pytest.raises(Exception, match="lacks the background of"):
        search.run(*ends, judge=Judge(chosen, looked_up))
    assert Dataset.find(ends[2]) is None


@pytest.mark.parametrize(("references", "queries"), [(0, 5), (5, 0)])
def test_nothing_on_one_side_is_no_match_and_no_error(references: int, queries: int, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(references, 4, 0), 1, "r")
    write_embeddings(tmp_path / "q", unit(queries, 4, 1), 1, "q")
    judge = Judge(thresholds(0, 1))
    summary = search.run(
        Dataset.open(str(tmp_path / "r")),
        Dataset.open(str(tmp_path / "q")),
        str(tmp_path / "m"),
        Execution.begin(),
        judge=judge,
    )
    assert (summary.queries, summary.matches) == (queries, 0)
    assert rows_of(tmp_path / "m").num_rows == 0


def test_a_shard_or_a_block_that_got_lost_is_noticed(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 3, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 2, "q")
    plan = match_rows.make(references, queries, str(tmp_path / "m"), Execution.begin(), 2)
    tasks = matching.tasks(replace(plan, shard_bytes=1))
    with pytest.raises(Exception, match="2 shards of 3"), runners.pipeline() as pipeline:
        _ = pipeline | beam.Create(tasks[:2]) | search.Search(plan, search.blocks_of(tasks))
    [block, _] = search.blocks_of(tasks).values()
    [(pairs, candidates)] = matching.search(plan, [block.block], matching.load_shard(plan, tasks[0].files))
    written = matching.write_block(plan, block.block, pairs, candidates)
    with pytest.raises(LostRowsError, match="9 pairs of 45"):
        matching.commit(plan, matching.bins([written]))
    with pytest.raises(LostRowsError, match="2 matches of 6"):
        matching.write_block(plan, block.block, pairs, candidates.slice(0, 2))
    assert Dataset.find(str(tmp_path / "m")) is None


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(5, 4, 0), 1, "r")
    write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q", transform_id="other")
    with pytest.raises(DatasetError, match="transform_id other"):
        search.run(
            Dataset.open(str(tmp_path / "r")),
            Dataset.open(str(tmp_path / "q")),
            str(tmp_path / "m"),
            Execution.begin(),
        )
    (tmp_path / "q" / "_SUCCESS").unlink()
    with pytest.raises(DatasetError, match="did not finish"):
        search.run(
            Dataset.open(str(tmp_path / "r")),
            Dataset.open(str(tmp_path / "q")),
            str(tmp_path / "m"),
            Execution.begin(),
        )


def test_a_damaged_reference_file_stops_the_search(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(500, 16, 0), 1, "r")
    write_embeddings(tmp_path / "q", unit(5, 16, 1), 1, "q")
    [path] = (tmp_path / "r").glob("part-0-*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Exception, match="damaged"):
        search.run(
            Dataset.open(str(tmp_path / "r")),
            Dataset.open(str(tmp_path / "q")),
            str(tmp_path / "m"),
            Execution.begin(),
        )
    assert Dataset.find(str(tmp_path / "m")) is None


@settings(max_examples=50)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=4),
    k=st.integers(1, 12),
    ties=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_merge_does_not_depend_on_how_the_references_were_cut(
    cuts: list[int], k: int, ties: bool, seed: int
) -> None:
    references, queries = unit(40, 6, seed), unit(3, 6, seed + 1)
    if ties:
        references[20:] = references[:20]
    ids = pa.table({"image_id": [f"{i:03d}" for i in range(40)], "uri": [f"u{i}" for i in range(40)]})
    whole = shards.merge([shards.build(references, ids).search(queries, 40)], k)
    edges = [0, *sorted(set(cuts)), 40]
    parts = [
        shards.build(references[a:b], ids.slice(a, b - a)).search(queries, 40) for a, b in pairwise(edges)
    ]
    merged = shards.merge(parts[::-1], k)
    np.testing.assert_allclose(merged["score"].to_numpy(), whole["score"].to_numpy(), atol=1e-6)
    if not ties:
        assert merged["reference_id"].equals(whole["reference_id"])
