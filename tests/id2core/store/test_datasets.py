from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel

from id2core.errors import DatasetError, StorageError
from id2core.store import datasets, moves, parquet, schemas, storage
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
    empty = parquet.write(uri, "part-leftover", [], schemas.REJECTS)
    assert Dataset.open(uri).read(schemas.REJECTS).num_rows == 3
    (tmp_path / empty.name).replace(tmp_path / committed.name)
    with pytest.raises(
        DatasetError, match=rf"{committed.name} is damaged: it has \d+ bytes, not {committed.bytes}"
    ):
        Dataset.open(uri).read(schemas.REJECTS)
    (tmp_path / committed.name).unlink()
    with pytest.raises(DatasetError, match="is gone"):
        Dataset.open(uri).read(schemas.REJECTS)


def test_an_empty_success_of_another_program_is_no_data_set_and_stays(tmp_path: Path) -> None:
    uri, success = str(tmp_path), tmp_path / datasets.SUCCESS
    success.write_bytes(b"")
    assert Dataset.find(uri) is None
    for extend in (lambda: Dataset.find_own(uri), lambda: add(uri, "run-a")):
        with pytest.raises(DatasetError, match="_SUCCESS is empty: another program wrote it"):
            extend()
    assert success.read_bytes() == b""


def test_a_damaged_success_is_an_error_and_stays(tmp_path: Path) -> None:
    uri, success = str(tmp_path), tmp_path / datasets.SUCCESS
    add(uri, "run-a")
    whole = success.read_bytes()
    flipped = whole.replace(b'"rows": 3', b'"rows": 2')
    for damaged in (b"[]", b"{}", b"{", b"[" * 100_000, b"\xff", whole[:-20], flipped):
        success.write_bytes(damaged)
        for use in (lambda: Dataset.find(uri), lambda: Dataset.find_own(uri), lambda: add(uri, "run-b")):
            with pytest.raises(DatasetError, match=f"{success} is damaged"):
                use()
        assert success.read_bytes() == damaged
    storage.write_bytes(str(tmp_path / datasets.SUCCESS), b'{"schema_version": "999"}')
    with pytest.raises(DatasetError, match="schema version 999"):
        Dataset.find(uri)


FILE = {"name": "part-a-b.parquet", "rows": 1, "row_groups": 1, "bytes": 1, "sha256": "0" * 64}
COMMIT = {
    "dataset": "rejects",
    "run_id": "r",
    "ids": {},
    "files": [FILE],
    "runs": {},
    "source": "",
    "schema_version": "1",
    "committed_at": "",
    "rows": 1,
}
NAMES_THAT_LEAD_AWAY: list[Any] = [
    "../other.parquet",
    "a/../../other.parquet",
    "/etc/passwd",
    "gs://bucket/x.parquet",
    "a//b.parquet",
    "a\\..\\b.parquet",
    "a\0.parquet",
    "a\n.parquet",
    ".hidden",
    "",
    ".",
    "x" * 300,
    7,
    None,
]


def commit_file(uri: str, content: bytes) -> None:
    storage.write_bytes(f"{uri}/{datasets.SUCCESS}", content)


@pytest.mark.parametrize("name", NAMES_THAT_LEAD_AWAY)
def test_names_in_a_commit_are_plain_and_below_it(name: Any, tmp_path: Path) -> None:
    commit_file(str(tmp_path), json.dumps(COMMIT | {"files": [FILE | {"name": name}]}).encode())
    with pytest.raises(DatasetError, match="_SUCCESS is damaged: it lists a file"):
        Dataset.find(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": [[]]},
        {"files": [FILE, FILE]},
        {"files": [FILE | {"rows": "1"}]},
        {"files": [FILE | {"rows": -1}]},
        {"files": [FILE | {"rows": True}]},
        {"files": [FILE | {"more": 1}]},
        {"files": [FILE | {"sha256": 1}]},
        {"ids": []},
        {"ids": {"encoder_id": 1}},
        {"runs": []},
        {"runs": {"r": 1}},
        {"source": 1},
        {"sources": []},
        {"sources": {"/in": {"mode": "other"}}},
        {"version": "1"},
        {"version": -1},
        {"segments": []},
        {"segments": {"r": 1}},
        {"segments": {"r": {"number": 0, "added_at": "2026-01-01T00:00:00+00:00"}}},
        {"segments": {"r": {"number": 1, "added_at": "2026-01-01T00:00:00"}}},
        {"segments": {r: {"number": 1, "added_at": "2026-01-01T00:00:00+00:00"} for r in "ab"}},
        {"removals": [FILE, FILE]},
        {"files": [FILE | {"segments": "r"}]},
        {"files": [FILE | {"bounds": [1, 2]}]},
        {"files": [FILE | {"source": 1}]},
        {"schema_version": []},
        {"more": 1},
    ],
    ids=str,
)
def test_a_commit_of_other_types_is_one_named_error(change: dict[str, Any], tmp_path: Path) -> None:
    commit_file(str(tmp_path), json.dumps(COMMIT | change).encode())
    with pytest.raises(DatasetError, match="/_SUCCESS is damaged"):
        Dataset.find(str(tmp_path))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"schema_version": "1"', b"\xff\xfe", b'{"a":1,"a":2}'])
def test_a_commit_that_is_no_json_is_one_named_error(data: bytes, tmp_path: Path) -> None:
    commit_file(str(tmp_path), data)
    with pytest.raises(DatasetError, match="/_SUCCESS is damaged"):
        Dataset.find(str(tmp_path))


def test_what_older_commits_lack_is_filled_when_they_are_read(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a", "b", "c"], "run_id": ["20260102T030405-bbbbbb", "run-a", "run-a"]})
    record = asdict(datasets.write_file(str(tmp_path), "part-a", [table], table.schema))
    old = {name: record[name] for name in FILE}
    commit = {"dataset": "x", "source": "/in", "files": [old], "committed_at": "2026-01-03T00:00:00+00:00"}
    commit_file(str(tmp_path), json.dumps(COMMIT | commit).encode())
    dataset = Dataset.open(str(tmp_path))
    assert (dataset.commit.version, dataset.commit.removals) == (0, ())
    assert (dataset.source, [f.source for f in dataset.files]) == ("/in", ["/in"])
    assert dataset.files[0].may_hold("x", "y")
    assert datasets.segments_of(dataset) == {
        "20260102T030405-bbbbbb": datasets.Segment(1, "2026-01-02T03:04:05+00:00"),
        "run-a": datasets.Segment(2, "2026-01-03T00:00:00+00:00"),
    }


def test_a_commit_is_read_as_it_was_written_and_counted(tmp_path: Path) -> None:
    record = FileRecord(**FILE, segments=("r",), source="/in", bounds=("/in/a", "/in/b"))
    commit = datasets.Commit(
        "rejects",
        "r",
        {},
        (record,),
        sources={"/in": datasets.SourceRecord(datasets.Mode.APPEND)},
        segments={"r": datasets.Segment(1, "2026-01-01T00:00:00+00:00")},
        removals=(record,),
    )
    for version in (1, 2):
        dataset = datasets.replace_commit(str(tmp_path), commit, Dataset.find(str(tmp_path)))
        assert dataset and dataset == Dataset.open(str(tmp_path)) and dataset.commit.version == version
    assert datasets.segments_of(dataset) == commit.segments
    assert record.may_hold("/in/aa", "/in/c") and not record.may_hold("/in/c", "/in/d")
    assert record.may_hold_any(["/in", "/in/aa", "/in/z"]) and not record.may_hold_any(["/in", "/in/z"])
    assert [f.name for f in dataset.among({"/in/b"}).files] == [record.name] and not dataset.among(()).files


@pytest.mark.parametrize("counts", [[1], [1, 2, 3], [1, -2], [1, "2"], "12"])
def test_counts_of_segments_that_do_not_fit_are_damage(counts: object, tmp_path: Path) -> None:
    record = FILE | {"segments": ["a", "b"], "segment_rows": counts}
    commit_file(str(tmp_path), json.dumps(COMMIT | {"dataset": "x", "files": [record]}).encode())
    with pytest.raises(DatasetError, match="/_SUCCESS is damaged"):
        Dataset.find(str(tmp_path))


def test_a_commit_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "_SUCCESS").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="bytes; a file of its kind has"):
        Dataset.find(str(tmp_path))


def test_a_file_that_is_a_link_out_of_the_data_set_is_not_read(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    add(str(folder), "run-a")
    [file] = (folder / record.name for record in Dataset.open(str(folder)).files)
    (tmp_path / "linked").symlink_to(folder)
    assert Dataset.open(str(tmp_path / "linked")).read(schemas.REJECTS).num_rows == 3
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="is a link out of the data set"):
        Dataset.open(str(folder)).read(schemas.REJECTS)


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


def embedded(uri: str, letter: str) -> FileRecord:
    """A small file of vectors in two row groups; files of different letters have equal sizes."""
    schema = schemas.embeddings_schema(8, 4)
    names = [f"{letter}{i}" for i in range(6)]
    columns = {
        "image_id": names,
        "uri": names,
        "bytes": range(6),
        "latent": schemas.vectors_to_array(np.arange(48, dtype=np.float16).reshape(6, 8) + ord(letter), 8),
        "descriptor": schemas.vectors_to_array(np.arange(24, dtype=np.float32).reshape(6, 4), 4),
    }
    rows = {f.name: columns.get(f.name, pa.nulls(6, f.type)) for f in schema}
    return parquet.write(uri, "part-k", [pa.Table.from_pydict(rows, schema)], schema, row_group=3)


READS: list[dict[str, Any]] = [
    {"columns": ["image_id", "uri", "descriptor"]},
    {"columns": ["latent"], "row_group": 1},
    {"columns": ["bytes"], "row_group": 0},
    {"columns": None, "row_group": 0},
    {"columns": None},
]


def test_another_file_of_as_many_rows_and_bytes_is_found_out_by_every_read(tmp_path: Path) -> None:
    uri = str(tmp_path)
    first, second = embedded(uri, "a"), embedded(uri, "b")
    assert (first.rows, first.row_groups, first.bytes) == (second.rows, second.row_groups, second.bytes)
    (tmp_path / second.name).replace(tmp_path / first.name)
    for read in READS:
        with pytest.raises(DatasetError, match=f"{first.name} is damaged"):
            datasets.read_file(uri, first, **read)
    with pytest.raises(DatasetError, match=f"{first.name} is damaged"):
        Dataset(uri, datasets.Commit("embeddings", "r", {}, (first,))).has_values("latent")
    with pytest.raises(DatasetError, match="its SHA-256 is another one"):  # written by an earlier version
        datasets.read_file(uri, replace(first, footer=""), ["uri"])


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    uri = str(tmp_path)
    record = replace(embedded(uri, "a"), footer="")
    for read in READS:
        assert datasets.read_file(uri, record, **read).num_rows in (3, 6)


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), 40])
def test_a_flipped_bit_is_an_error_or_changes_no_row(share: int, tmp_path: Path) -> None:
    """Of every `share`-th bit of a file."""
    uri = str(tmp_path)
    record = embedded(uri, "a")
    path, whole = tmp_path / record.name, (tmp_path / record.name).read_bytes()
    right = [datasets.read_file(uri, record, **read) for read in READS]
    missed = 0
    for bit in range(0, 8 * len(whole), share):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for read, table in zip(READS, right, strict=True):
            try:
                assert datasets.read_file(uri, record, **read).equals(table), bit
                missed += read == {"columns": None}
            except DatasetError as error:
                assert record.name in str(error)
    assert not missed  # a read of the whole file finds every one


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    uri = str(tmp_path)
    record = embedded(uri, "a")
    path, whole = tmp_path / record.name, (tmp_path / record.name).read_bytes()
    for size in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for read in READS:
            with pytest.raises(DatasetError, match=f"{record.name} is damaged: it has {size} bytes"):
                datasets.read_file(uri, record, **read)


def test_a_commit_remembers_what_it_superseded(tmp_path: Path) -> None:
    uri = str(tmp_path)
    add(uri, "run-a")
    [old] = Dataset.open(uri).files
    datasets.update_commit(uri, lambda commit: replace(commit, files=()), Dataset.open(uri))  # type: ignore[type-var]
    assert list(Dataset.open(uri).commit.superseded) == [old.name]
    add(uri, "run-b", Dataset.open(uri))
    assert list(Dataset.open(uri).commit.superseded) == [old.name]
    add(uri, "run-a", Dataset.open(uri))  # the same bytes again
    assert not Dataset.open(uri).commit.superseded


def names(folder: str) -> list[str]:
    """Names of files in a folder, but for `_SUCCESS`."""
    return sorted(moves.names_in(folder) - {datasets.SUCCESS})


@pytest.fixture(params=["local", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The parent of data sets, in a local folder and in a bucket."""
    if request.param == "local":
        return str(tmp_path)
    return f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"


def test_only_committed_files_are_in_a_data_set_and_every_reader_finds_its_own(place: str) -> None:
    uri = f"{place}/rejects"
    table = pa.Table.from_pylist([{"uri": "a"}], schemas.REJECTS)
    first = datasets.write_file(uri, "a", [table], schemas.REJECTS)
    assert not names(uri) and datasets.read_file(uri, first) == table
    early = datasets.add_files(uri, "rejects", "a", "a", [first], {})
    assert names(uri) == [first.name] and not names(moves.staged(uri))
    add(uri, "b", early)
    [_, second] = Dataset.open(uri).files
    datasets.update_commit(uri, lambda commit: replace(commit, files=(second,)), Dataset.open(uri))  # type: ignore[type-var]
    assert names(uri) == [second.name] and names(moves.superseded(uri)) == [first.name]
    assert early.read(schemas.REJECTS) == table
    assert not moves.announcements(place)


@pytest.mark.parametrize("moved", [0, 1])
def test_a_later_run_finishes_the_moves_of_a_killed_commit(
    moved: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{place}/rejects"
    add(uri, "a")
    before = Dataset.open(uri)
    table = pa.Table.from_pylist([{"uri": "b"}], schemas.REJECTS)
    new = datasets.write_file(uri, "b", [table], schemas.REJECTS)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(moves, "move_in" if moved else "move_out", killed)
        with pytest.raises(KeyboardInterrupt):
            datasets.replace_commit(uri, replace(before.commit, files=(new,)), before)
    assert names(uri) == [f.name for f in before.files][moved:]
    assert Dataset.open(uri).read(schemas.REJECTS) == table and before.read(schemas.REJECTS).num_rows == 3
    for _ in range(2):
        datasets.settle(place)
        assert names(uri) == [new.name] and not names(moves.staged(uri))
        assert before.read(schemas.REJECTS).num_rows == 3
