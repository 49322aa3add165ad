from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel

from id2core.errors import DatasetError
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Dataset, FileRecord


def add(uri: str, run_id: str, last: Dataset | None = None) -> None:
    rows = [
        {"uri": f"{run_id}-{i}", "generation": "1", "reason": "empty", "run_id": run_id} for i in range(3)
    ]
    table = pa.Table.from_pylist(rows, schemas.REJECTS)
    record = datasets.write_file(uri, f"{run_id}-0", [table], schemas.REJECTS)
    datasets.add_files(uri, "rejects", run_id, run_id, [record], {"rows": 3}, last)


@pytest.mark.parametrize("where", ["local", "gs"])
def test_runs_that_commit_at_once_lose_nothing(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(tmp_path) if where == "local" else f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: add(uri, f"run{i}"), range(6)))
    add(uri, "run3")
    commit = Dataset.open(uri)
    assert len(commit.files) == 6 and set(commit.runs) == {f"run{i}" for i in range(6)}
    table = Dataset.open(uri).read(schemas.REJECTS)
    assert table.num_rows == 18 and table.schema.metadata == schemas.REJECTS.metadata


def test_leftovers_are_not_rows_and_gone_or_swapped_files_are_errors(tmp_path: Path) -> None:
    uri = str(tmp_path)
    add(uri, "a")
    [committed] = Dataset.open(uri).files
    empty = datasets.write_file(uri, "part-leftover", [], schemas.REJECTS)
    assert Dataset.open(uri).read(schemas.REJECTS).num_rows == 3
    (tmp_path / empty.name).replace(tmp_path / committed.name)
    with pytest.raises(DatasetError, match="0 rows, not 3"):
        Dataset.open(uri).read(schemas.REJECTS)
    (tmp_path / committed.name).unlink()
    with pytest.raises(DatasetError, match="is gone"):
        Dataset.open(uri).read(schemas.REJECTS)


def test_only_our_own_success_counts(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}"):
        storage.write_bytes(str(tmp_path / datasets.SUCCESS), content)
        assert Dataset.find(str(tmp_path)) is None
    storage.write_bytes(str(tmp_path / datasets.SUCCESS), b'{"schema_version": "999"}')
    with pytest.raises(DatasetError, match="schema version 999"):
        Dataset.find(str(tmp_path))


def test_the_digest_names_the_work_and_not_the_time_it_was_done() -> None:
    first, again = (FileRecord(f"part-k-{h}.parquet", 5, 1, 99, h) for h in ("aaaaaaaa", "bbbbbbbb"))
    digests = {datasets.Commit("x", "r", {}, (f,)).digest for f in (first, again)}
    assert len(digests) == 1


def test_a_data_set_is_a_snapshot_and_can_be_pickled(tmp_path: Path) -> None:
    uri = str(tmp_path)
    add(uri, "run-a")
    before = Dataset.open(uri)
    add(uri, "run-b")
    assert pickle.loads(pickle.dumps(before)) == before
    assert (before.rows, Dataset.open(uri).rows) == (3, 6)
    assert Dataset.open(uri).of_run("run-a").files == before.files
    with pytest.raises(DatasetError, match="no run c; it has run-a, run-b"):
        Dataset.open(uri).of_run("c")


def test_a_commit_is_read_again_only_where_somebody_wrote_it_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path)
    reads: list[str] = []
    real = storage.read_marked
    monkeypatch.setattr(storage, "read_marked", lambda uri: (reads.append(uri), real(uri))[1])
    add(uri, "run-a")
    assert not reads
    last = Dataset.open(uri)
    add(uri, "run-b", last)
    assert len(reads) == 1
    add(uri, "run-c", last)  # `b` was committed since
    add(uri, "run-d", None)
    assert set(Dataset.open(uri).runs) == {f"run-{c}" for c in "abcd"} and Dataset.open(uri).rows == 12


def test_tables_come_in_order_and_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path)
    for name in "abcdefgh":
        add(uri, f"run-{name}")
    monkeypatch.setattr(datasets, "_FILES_AHEAD", 2)
    started: list[str] = []
    real = datasets.read_file
    monkeypatch.setattr(
        datasets,
        "read_file",
        lambda uri, record, *more: (started.append(record.name), real(uri, record, *more))[1],
    )
    dataset = Dataset.open(uri)
    tables = dataset.tables(["uri", "run_id"])
    first = next(tables)
    assert len(started) <= 3
    rest = list(tables)
    assert sorted(started) == [f.name for f in dataset.files]
    assert [t["run_id"][0].as_py() for t in [first, *rest]] == [f"run-{c}" for c in "abcdefgh"]
    assert [f.name for f, _ in dataset.row_groups(["uri"])] == [f.name for f in dataset.files]


def test_counts_of_a_run_are_read_as_a_model_and_other_keys_do_not_matter(tmp_path: Path) -> None:
    class Counted(BaseModel):
        rows: int
        transient: int = 0

    class Other(BaseModel):
        rows: list[str] = []

    uri = str(tmp_path)
    add(uri, "a")
    commit = Dataset.open(uri).commit
    assert commit.runs == {"a": {"rows": 3, "plan_id": "a"}}
    assert commit.counts_of("a", Counted) == Counted(rows=3)
    assert commit.counts_of("unknown", Other) == Other()
    with pytest.raises(DatasetError, match="damaged: run a"):
        commit.counts_of("a", Other)
