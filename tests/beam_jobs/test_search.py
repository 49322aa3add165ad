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
from id2core.errors import CalibrationError, DatasetError, LostRowsError
from id2core.runs.execution import Execution
from id2core.search import matching, shards
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
    matches = matching.read_run(Dataset.open(str(tmp_path / "m")))
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
    assert len(list(partition.iterdir())) == 3


def test_again_does_nothing_and_another_top_k_adds_a_run(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    args = (Dataset.open(str(tmp_path / "r")), Dataset.open(str(tmp_path / "q")), str(tmp_path / "m"))
    first = search.run(*args, Execution.begin(), top_k=2)
    assert search.run(*args, Execution.begin(), top_k=2) == replace(first, resumed=True)
    second = search.run(*args, Execution.begin(), top_k=20)
    assert second.matches == 45  # every reference: fewer than asked for
    assert matching.read_run(Dataset.open(args[2]), first.run_id).num_rows == 10
    assert matching.read_run(Dataset.open(args[2])).num_rows == 45
    with pytest.raises(DatasetError, match="no run"):
        matching.read_run(Dataset.open(args[2]), "0000")


def test_rows_carry_the_run_of_the_execution_that_wrote_them(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    out = str(tmp_path / "m")
    first, second, third = (Execution(f"run-{i}", datetime(2026, 1, i, tzinfo=UTC)) for i in (1, 2, 3))
    for execution, top_k in ((first, 2), (second, 3), (third, 2)):
        summary = search.run(references, queries, out, execution, top_k)
        rows = matching.read_run(Dataset.open(out), summary.run_id)
        assert rows["run_id"].unique().to_pylist() == [summary.run_id]
    assert summary.run_id == first.run_id and summary.resumed
    assert rows["scanned_at"].unique().to_pylist() == [first.started]
    assert set(Dataset.open(out).runs) == {first.run_id, second.run_id}


def test_of_two_runs_with_the_same_work_the_first_to_commit_keeps_it(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(9, 4, 0), 2, "r")
    queries = write_embeddings(tmp_path / "q", unit(5, 4, 1), 1, "q")
    out = str(tmp_path / "m")
    early, late = (Execution(f"run-{i}", datetime(2026, 1, 1, tzinfo=UTC)) for i in (1, 2))
    plan = matching.make(references, queries, out, 2, late)
    first = search.run(references, queries, out, early, 2)
    with runners.pipeline() as pipeline:
        search.build(pipeline, plan)
    matches = Dataset.open(out)
    assert list(matches.runs) == [early.run_id] and matches.commit.run_of(plan.plan_id) == early.run_id
    assert matching.read_run(matches)["run_id"].unique().to_pylist() == [first.run_id]


def thresholds(
    low: float, high: float, normalization: Normalization | None = None, **ids: str
) -> Calibration:
    """A calibration on made-up scores between two values, for what `write_embeddings` writes."""
    made_up = np.linspace(low, high, 200)
    given = {"references": 350, "ids": IDS | ids, "normalization": normalization}
    return calibration.calibrate(made_up, match=0.05, review=0.3, **given)


def test_every_block_is_judged_as_the_whole_would_be(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(700, 8, 0), 3, "r")
    other_background = write_embeddings(tmp_path / "b", unit(50, 8, 2), 2, "b")
    queries = write_embeddings(tmp_path / "q", unit(90, 8, 1), 4, "q")
    out, background = str(tmp_path / "m"), str(tmp_path / "bm")
    plain = search.run(references, queries, out, Execution.begin(), 5)
    raw = matching.read_run(Dataset.open(out))
    beside = search.run(other_background, queries, background, Execution.begin(), 3)
    # Not the last run of its data set, and of other rows.
    search.run(other_background, queries, background, Execution.begin(), 1)
    chosen = thresholds(0.3, 0.6, Normalization(factor=0.5, k=3, background_id=beside.index_id))
    judge = Judge(chosen, Dataset.open(background), beside.run_id)
    result = search.run(references, queries, out, Execution.begin(), 5, judge=judge)
    judged = matching.read_run(Dataset.open(out))
    expected = normalize_matches(
        raw, matching.read_run(Dataset.open(background), beside.run_id), chosen.normalization
    )
    expected = calibration.judge(expected, chosen, 700)
    own = ["run_id", "scanned_at"]
    assert judged.drop(own).equals(expected.drop(own))
    assert set(judged["verdict"].to_pylist()) == {"match", "review", "none"}
    assert set(judged["false_positive_rate"].drop_null().to_pylist()) == {np.float32(0.1), np.float32(0.6)}
    assert judged["calibration_id"].unique().to_pylist() == [chosen.calibration_id]
    assert result.run_id != plain.run_id
    assert search.run(references, queries, out, Execution.begin(), 5, judge=judge) == replace(
        result, resumed=True
    )


def test_another_calibration_or_background_is_another_run(tmp_path: Path) -> None:
    for name, rows, seed in (("r", 30, 0), ("q", 6, 1), ("b1", 9, 2), ("b2", 8, 3)):
        write_embeddings(tmp_path / name, unit(rows, 4, seed), 2, name)
    ends = (Dataset.open(str(tmp_path / "r")), Dataset.open(str(tmp_path / "q")), str(tmp_path / "m"))
    ids = [
        search.run(*ends, Execution.begin(), 2, judge=Judge(thresholds(0, high))).run_id
        for high in (0.5, 0.9)
    ]
    chosen = thresholds(0, 0.5, Normalization(factor=1, k=2, background_id="b"))
    for name in ("b1", "b2"):
        beside = search.run(
            Dataset.open(str(tmp_path / name)),
            Dataset.open(str(tmp_path / "q")),
            str(tmp_path / "bm"),
            Execution.begin(),
            2,
        )
        ids.append(
            search.run(*ends, Execution.begin(), 2, judge=Judge(chosen, beside.dataset, beside.run_id)).run_id
        )
    assert len(set(ids)) == 4
    assert {matching.read_run(Dataset.open(ends[2]), run).num_rows for run in ids} == {12}


def test_what_cannot_be_judged_is_no_matches_and_says_so(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(30, 4, 0), 2, "r")
    write_embeddings(tmp_path / "q", unit(6, 4, 1), 2, "q")
    ends = (Dataset.open(str(tmp_path / "r")), Dataset.open(str(tmp_path / "q")), str(tmp_path / "m"))
    with pytest.raises(CalibrationError, match="calibrated for preprocess_id other, these scores are of p"):
        search.run(*ends, Execution.begin(), 2, judge=Judge(thresholds(0, 1, preprocess_id="other")))
    chosen = thresholds(0, 1, Normalization(factor=1, k=2, background_id="b"))
    beside = search.run(
        Dataset.open(str(tmp_path / "r")),
        Dataset.open(str(tmp_path / "q")),
        str(tmp_path / "bm"),
        Execution.begin(),
        1,
    )
    with pytest.raises(Exception, match="fewer than 2 background scores"):
        search.run(*ends, Execution.begin(), 2, judge=Judge(chosen, beside.dataset, beside.run_id))
    with pytest.raises(Exception, match="no background of block"):
        search.run(*ends, Execution.begin(), 2, judge=Judge(chosen, beside.dataset, "0000"))
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
    assert matching.read_run(Dataset.open(str(tmp_path / "m"))).num_rows == 0


def test_a_shard_or_a_block_that_got_lost_is_noticed(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "r", unit(9, 4, 0), 3, "r")
    write_embeddings(tmp_path / "q", unit(5, 4, 1), 2, "q")
    ends = (Dataset.open(str(tmp_path / "r")), Dataset.open(str(tmp_path / "q")), str(tmp_path / "m"))
    plan = matching.make(*ends, 2, Execution.begin())
    files = Dataset.open(str(tmp_path / "r")).files
    blocks = tuple(matching.query_blocks(plan))
    with pytest.raises(Exception, match="2 shards of 3"), runners.pipeline() as pipeline:
        _ = pipeline | beam.Create(files[:2]) | search.Search(plan, blocks, len(files))
    shard = shards.load(plan.references, files[0])
    written = [matching.write_block(plan, blocks[0], matching.search(plan, blocks[0], shard))]
    with pytest.raises(LostRowsError, match="6 matches of 10"):
        matching.commit(plan, written)
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


@settings(deadline=None, max_examples=50)
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
