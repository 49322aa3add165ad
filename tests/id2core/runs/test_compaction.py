from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from id2core.runs import compaction, leftovers, records, units
from id2core.runs.units import Record
from id2core.store import datasets, moves, schemas, storage
from id2core.store.datasets import Commit, Dataset
from tests.kills import is_killed

IDS = {"encoder_id": "e", "transform_id": "t", "preprocess_id": "p"}
RUNS = [f"20260101T0000{i:02d}-abcdef" for i in range(12)]


def match_rows(run_id: str, rows: int = 6) -> pa.Table:
    verdicts = ["none", None, "match", "review"]
    content = [
        {"query_uri": f"{run_id}/{i // 3}", "rank": i % 3 + 1, "verdict": verdicts[i % 4], "run_id": run_id}
        for i in reversed(range(rows))
    ]
    return pa.Table.from_pylist(content, schemas.MATCHES)


def add_matches(uri: str, run_id: str, day: int = 1) -> None:
    plan_id = datasets.digest_of(run_id)
    key = f"scan_date=2026-01-{day:02d}/{plan_id}-part-{plan_id}-0000"
    record = datasets.write_file(uri, key, [match_rows(run_id)], schemas.MATCHES)
    datasets.add_files(uri, "matches", run_id, plan_id, [replace(record, segments=(run_id,))], {})


def add_embeddings(uri: str, number: int, latents: bool = True) -> None:
    """One file of two rows more than there is row group, as one segment."""
    schema, rows = schemas.embeddings_schema(4, 2), schemas.ROW_GROUP + 2
    columns: dict[str, Any] = {f.name: pa.nulls(rows, f.type) for f in schema}
    columns |= {name: pa.repeat(value, rows) for name, value in IDS.items()}
    columns["uri"] = pa.array([f"/in/{number}/{i:05d}" for i in range(rows)])
    columns["run_id"] = pa.repeat(RUNS[number], rows)
    columns["descriptor"] = schemas.vectors_to_array(np.full((rows, 2), number, np.float32), 2)
    if latents:
        columns["latent"] = schemas.vectors_to_array(np.full((rows, 4), number, np.float16), 4)
    table = pa.Table.from_pydict(columns, schema)
    record = datasets.write_file(uri, f"part-{datasets.digest_of(number)}", [table], schema)
    segment = (RUNS[number],)
    record = replace(record, segments=segment, source="/in", bounds=(f"/in/{number}/0", f"/in/{number}/9"))

    def change(commit: Commit | None) -> Commit:
        base = commit or Commit("embeddings", RUNS[number], IDS)
        return replace(base, files=(*base.files, record))

    datasets.update_commit(uri, change)


def content(uri: str) -> list[str]:
    """Every row of a data set, in one order."""
    return sorted(repr(row) for table in Dataset.open(uri).tables() for row in table.to_pylist())


def globbed(uri: str, columns: str = "*") -> list[tuple[Any, ...]]:
    """Rows that DuckDB finds by a plain glob."""
    return duckdb.sql(
        f"select {columns} from read_parquet('{uri}/**/*.parquet', hive_partitioning = false)"
    ).fetchall()


def test_small_files_of_a_partition_are_merged_and_sorted(tmp_path: Path) -> None:
    uri = str(tmp_path / "matches")
    for i, run_id in enumerate(RUNS[:10]):
        add_matches(uri, run_id, day=1 if i < 8 else 2)
    before, held = Dataset.open(uri), content(uri)
    assert compaction.needed(before)
    assert compaction.compact(uri) == compaction.Compacted(8, 1, 48)
    after = Dataset.open(uri)
    assert not compaction.needed(after) and compaction.compact(uri) == compaction.Compacted()
    assert content(uri) == held and len(globbed(uri)) == 60
    assert (after.digest, after.run_id, after.runs) == (before.digest, before.run_id, before.runs)
    [merged] = [file for file in after.files if file.is_merged]
    assert merged.name.startswith("scan_date=2026-01-01/") and merged.segments == tuple(RUNS[:8])
    table = after.read_file(merged)
    assert table == table.sort_by(list(schemas.MATCHES_ORDER))  # as a search lays them out
    rows = after.rows_by_segment()
    assert (rows[RUNS[3]], rows[RUNS[9]]) == (6, 6)
    assert after.rows_by_segment() == dict.fromkeys(RUNS[:10], 6)
    plain = replace(merged, segment_rows=())  # as an earlier version recorded it
    older = replace(after, commit=replace(after.commit, files=(plain,)))
    assert older.rows_by_segment() == dict.fromkeys(RUNS[:8], 6)
    assert before.read(schemas.MATCHES).num_rows == 60  # a reader of the earlier commit
    assert compaction.compact(uri, everything=True) == compaction.Compacted(2, 1, 12)
    assert Dataset.open(uri).digest == before.digest and content(uri) == held
    add_matches(uri, RUNS[10])
    assert Dataset.open(uri).digest != before.digest


def test_the_rows_of_one_run_are_found_in_a_merged_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "matches")
    for run_id in RUNS[:3]:
        add_matches(uri, run_id)
    expected = Dataset.open(uri).of_run(RUNS[1]).read(schemas.MATCHES)
    compaction.compact(uri, everything=True)
    own = Dataset.open(uri).of_run(RUNS[1])
    order = [("query_uri", "ascending"), ("rank", "ascending")]
    assert own.rows == 6 and own.read(schemas.MATCHES).sort_by(order) == expected.sort_by(order)
    assert own.read(schemas.MATCHES, ["rank"]).column_names == ["rank"]
    add_matches(uri, RUNS[1])  # the same run commits again
    assert Dataset.open(uri).rows == 18


@pytest.mark.parametrize("latents", [True, False])
def test_embeddings_keep_their_order_and_are_cut_anew(latents: bool, tmp_path: Path) -> None:
    uri = str(tmp_path / "embeddings")
    for number in range(8):
        add_embeddings(uri, number, latents)
    before, held = Dataset.open(uri), content(uri) if latents else []
    compaction.compact(uri)
    after = Dataset.open(uri)
    [merged] = after.files
    assert (after.rows, after.digest, after.has_values("latent")) == (before.rows, before.digest, latents)
    assert merged.row_groups == 9 and merged.source == "/in" and merged.bounds == ("/in/0/0", "/in/7/9")
    assert merged.segments == datasets.segments_in(uri, replace(merged, segments=())) == tuple(RUNS[:8])
    assert not latents or content(uri) == held
    assert len(globbed(uri, "uri, descriptor" if not latents else "*")) == before.rows


def test_what_is_large_or_staged_or_of_another_source_is_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "embeddings")
    for number in range(3):
        add_embeddings(uri, number)
    first, second, third = Dataset.open(uri).files
    record = Record("k", "r", IDS, 1, "embeddings", first, None)
    storage.write_bytes(units.record_uri(str(tmp_path), "k"), record.to_json())
    assert compaction.compact(uri, everything=True).merged == 2
    assert first in Dataset.open(uri).files
    storage.delete(units.record_uri(str(tmp_path), "k"))
    other = replace(first, source="/other")
    datasets.update_commit(
        uri,
        lambda commit: replace(commit, files=(*(f for f in commit.files if f != first), other)),  # type: ignore[union-attr,type-var]
        Dataset.open(uri),
    )
    assert compaction.compact(uri, everything=True).merged == 0
    monkeypatch.setattr(compaction, "TARGET_BYTES", 1)
    assert not compaction.needed(Dataset.open(uri)) and second.bytes > 1 < third.bytes


def test_a_run_that_commits_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "matches")
    for run_id in RUNS[:8]:
        add_matches(uri, run_id)
    write = datasets.write_file
    meanwhile: Iterator[Callable[[], object]] = iter(
        [
            lambda: add_matches(uri, RUNS[8]),
            lambda: datasets.update_commit(
                uri,
                lambda commit: replace(commit, files=commit.files[1:]),
                Dataset.open(uri),  # type: ignore[union-attr,type-var]
            ),
        ]
    )

    def write_beside(place: str, key: str, *more: Any) -> datasets.FileRecord:
        record = write(place, key, *more)
        if "merged" in key and (change := next(meanwhile, None)):
            change()
        return record

    monkeypatch.setattr(datasets, "write_file", write_beside)
    assert compaction.compact(uri, everything=True) == compaction.Compacted(8, 1, 48)
    assert next(meanwhile, None) is None
    assert Dataset.open(uri).rows == 48 == len(globbed(uri))  # the ninth file came and went
    assert not moves.names_in(moves.staged(uri))


def test_rows_of_runs_are_merged_once_they_have_ended(tmp_path: Path) -> None:
    out, uri = str(tmp_path), str(tmp_path / "runs")
    for _ in range(3):
        with records.recorded(out, "scan", {}):
            pass
    with records.recorded(out, "embed", {}):
        assert compaction.compact(uri, everything=True).merged == 3
        assert [run.status for run in records.read(out)].count(records.Status.RUNNING) == 1
    assert {run.status for run in records.read(out)} == {records.Status.DONE}
    assert len(globbed(uri)) == 4
    old = records.read(out)[0].model_copy(update={"status": records.Status.KILLED})
    records.write(out, old)
    assert len(records.read(out)) == 4


def test_a_kill_at_any_change_of_the_store_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count(1):
        place = tmp_path / str(number)
        uri = str(place / "matches")
        for run_id in RUNS[:8]:
            add_matches(uri, run_id)
        held, seen = content(uri), sorted(globbed(uri))
        killed = is_killed(number, partial(compaction.compact, uri), monkeypatch)
        assert content(uri) == held
        by_glob = globbed(uri) if any(Path(uri).rglob("*.parquet")) else []
        assert len(set(by_glob)) == len(by_glob) and set(by_glob) <= set(seen)
        leftovers.settle(str(place))
        assert sorted(globbed(uri)) == seen
        compaction.compact(uri)
        leftovers.sweep(str(place), 2**40)
        assert content(uri) == held and sorted(globbed(uri)) == seen
        assert len(moves.names_in(str(place))) == 2  # the merged file and the commit
        if not killed:
            break
    assert number > 10
