from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from id2core.errors import DatasetError
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import FileRecord


def add(uri: str, run_id: str) -> None:
    rows = [{"uri": f"{run_id}-{i}", "generation": "1", "reason": "empty"} for i in range(3)]
    table = pa.Table.from_pylist(rows, schemas.REJECTS)
    record = datasets.write_file(uri, f"part-{run_id}", [table], schemas.REJECTS)
    datasets.add_files(uri, "rejects", run_id, [record], {"rows": 3})


@pytest.mark.parametrize("where", ["local", "gs"])
def test_runs_that_commit_at_once_lose_nothing(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(tmp_path) if where == "local" else f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: add(uri, f"run{i}"), range(6)))
    add(uri, "run3")
    commit = datasets.require_commit(uri)
    assert len(commit.files) == 6 and set(commit.runs) == {f"run{i}" for i in range(6)}
    table = datasets.read_all(uri, schemas.REJECTS)
    assert table.num_rows == 18 and table.schema.metadata == schemas.REJECTS.metadata


def test_leftovers_are_not_rows_and_gone_or_swapped_files_are_errors(tmp_path: Path) -> None:
    uri = str(tmp_path)
    add(uri, "a")
    [committed] = datasets.require_commit(uri).files
    empty = datasets.write_file(uri, "part-leftover", [], schemas.REJECTS)
    assert datasets.read_all(uri, schemas.REJECTS).num_rows == 3
    (tmp_path / empty.name).replace(tmp_path / committed.name)
    with pytest.raises(DatasetError, match="0 rows, not 3"):
        datasets.read_all(uri, schemas.REJECTS)
    (tmp_path / committed.name).unlink()
    with pytest.raises(DatasetError, match="is gone"):
        datasets.read_all(uri, schemas.REJECTS)


def test_only_our_own_success_counts(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}"):
        storage.write_bytes(str(tmp_path / datasets.SUCCESS), content)
        assert datasets.read_commit(str(tmp_path)) is None
    storage.write_bytes(str(tmp_path / datasets.SUCCESS), b'{"schema_version": "999"}')
    with pytest.raises(DatasetError, match="schema version 999"):
        datasets.read_commit(str(tmp_path))


def test_the_digest_names_the_work_and_not_the_time_it_was_done() -> None:
    first, again = (FileRecord(f"part-k-{h}.parquet", 5, 1, 99, h) for h in ("aaaaaaaa", "bbbbbbbb"))
    digests = {datasets.Commit("x", "r", {}, (f,)).digest for f in (first, again)}
    assert len(digests) == 1
