"""Committed Parquet data sets: a directory counts as what its `_SUCCESS` file lists, and no more.

`_SUCCESS` is written last and read first. Files beside it that it does not list are leftovers of an
interrupted run: no reader sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from id2core.errors import DatasetError
from id2core.store import schemas, storage

SUCCESS = "_SUCCESS"


@dataclass(frozen=True)
class FileRecord:
    """One Parquet file of a data set: its name below the directory, rows, row groups, size and SHA-256.

    A name ends in the first hex of the SHA-256: two attempts at the same work that differ in a bit do not
    overwrite each other's file.
    """

    name: str
    rows: int
    row_groups: int
    bytes: int
    sha256: str

    @property
    def key(self) -> str:
        """The name without the hash of the bytes: the same for the same work done at another time."""
        return self.name.rsplit("-", 1)[0]


@dataclass(frozen=True)
class Commit:
    """The content of `_SUCCESS`.

    Attributes:
        dataset: which contract of `tables` the rows obey.
        run_id: the run that committed last.
        ids: what must agree before rows are added or compared (`encoder_id`, `transform_id`, …).
        files: the files that make up the data set, sorted by name.
        runs: for every run that committed here, its counts.
        source: URI of the images that the rows were made from, where they were.
    """

    dataset: str
    run_id: str
    ids: dict[str, str]
    files: tuple[FileRecord, ...] = ()
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: str = ""
    schema_version: str = schemas.SCHEMA_VERSION
    committed_at: str = ""

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(f.rows for f in self.files)

    @property
    def digest(self) -> str:
        """Names what the data set holds, times aside: equal digests, equal rows.

        A file of embeddings has the objects in its key that it was made from.
        """
        return digest_of(sorted((f.key, f.rows) for f in self.files), sorted(self.ids.items()))


def digest_of(*parts: object) -> str:
    """First 16 hex of the SHA-256 of any JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_commit(uri: str) -> Commit | None:
    """The commit of the data set at `uri`, or None when there is none (or another program's `_SUCCESS`)."""
    try:
        return _parse(storage.read_bytes(storage.join(uri, SUCCESS)), uri)
    except FileNotFoundError:
        return None


def _parse(data: bytes, uri: str) -> Commit | None:
    try:
        raw = json.loads(data)
        version = raw["schema_version"]
    except (ValueError, LookupError, TypeError):
        return None
    if version != schemas.SCHEMA_VERSION:
        raise DatasetError(
            f"{uri} has schema version {version}, this program writes "
            f"{schemas.SCHEMA_VERSION}: write to another --out"
        )
    raw.pop("rows")
    files = tuple(FileRecord(**f) for f in raw.pop("files"))
    return Commit(files=files, **raw)


def require_commit(uri: str) -> Commit:
    """The commit of a complete data set; raises DatasetError for a directory without one."""
    commit = read_commit(uri)
    if commit is None:
        raise DatasetError(f"{uri} has no {SUCCESS}: its run did not finish. Run it again to complete it.")
    return commit


def _serialize(commit: Commit) -> bytes:
    files = tuple(sorted(commit.files, key=lambda f: f.name))
    stamped = replace(commit, files=files, committed_at=datetime.now(UTC).isoformat(timespec="seconds"))
    return json.dumps(asdict(stamped) | {"rows": stamped.rows}, indent=1).encode()


def write_commit(uri: str, commit: Commit) -> None:
    """Make `commit` the content of the data set at `uri`, stamped with the time."""
    storage.write_bytes(storage.join(uri, SUCCESS), _serialize(commit))


def add_files(
    uri: str, dataset: str, run_id: str, files: Iterable[FileRecord], counts: dict[str, Any]
) -> None:
    """Commit a run's files beside those of other runs, also of ones that commit at the same time.

    Repeated, it replaces what the run added before. A file belongs to the run whose run_id stands in its
    name.
    """
    own = {f.name: f for f in files}

    def added(old: bytes | None) -> bytes:
        last = (_parse(old, uri) if old else None) or Commit(dataset, run_id, {})
        others = {f.name: f for f in last.files if run_id not in f.name}
        every = tuple((others | own).values())
        return _serialize(replace(last, run_id=run_id, files=every, runs=last.runs | {run_id: counts}))

    storage.update(storage.join(uri, SUCCESS), added)


def check_ids(commit: Commit, wanted: dict[str, str], uri: str) -> None:
    """Raise DatasetError when rows with the ids `wanted` may not stand beside those at `uri`."""
    for key, value in wanted.items():
        held = commit.ids.get(key)
        if held != value:
            raise DatasetError(
                f"{uri} holds rows with {key} {held}, this run has {value}. They do not belong together: "
                f"write to another --out, or use what those rows were made with."
            )


def write_file(
    uri: str, key: str, batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema
) -> FileRecord:
    """Write batches as the Parquet file `KEY-HASH.parquet` below the data set `uri`, whole or not at all."""
    rows = 0
    with storage.temporary(uri) as path:
        with schemas.parquet_writer(path, schema) as writer:
            for batch in batches:
                table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch], schema)
                writer.write_table(table, row_group_size=schemas.ROW_GROUP)
                rows += table.num_rows
                del batch, table  # they may be large: not to be kept while the next one is made
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        groups, size = pq.read_metadata(path).num_row_groups, path.stat().st_size
        name = f"{key}-{digest[:8]}.parquet"
        storage.publish(path, storage.join(uri, name))
    return FileRecord(name, rows, groups, size, digest)


def read_file(
    uri: str, record: FileRecord, columns: list[str] | None = None, row_group: int | None = None
) -> pa.Table:
    """One file of a data set, or one of its row groups.

    Raises:
        DatasetError: it is gone, damaged, or not the file that was committed.
    """
    with _opened(uri, record) as (file, where):
        return _read_parquet(file, where, record.rows, columns, row_group)


@contextlib.contextmanager
def _opened(uri: str, record: FileRecord) -> Iterator[tuple[IO[bytes], str]]:
    where = storage.join(uri, record.name)
    try:
        with storage.open_input(where) as file:
            try:
                yield file, where
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(f"{where} is damaged: {error}") from error
    except FileNotFoundError as error:
        raise DatasetError(f"{where} is gone, but {SUCCESS} lists it: the data set is damaged") from error


def _read_parquet(
    file: IO[bytes], where: str, rows: int, columns: list[str] | None, row_group: int | None
) -> pa.Table:
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    if parquet.metadata.num_rows != rows:
        raise DatasetError(f"{where} has {parquet.metadata.num_rows} rows, not {rows}")
    table = parquet.read(columns) if row_group is None else parquet.read_row_group(row_group, columns)
    return table.select(columns) if columns else table


def holds(uri: str, record: FileRecord, column: str) -> bool:
    """Whether a file has values in a column of vectors; where all are null, pyarrow cannot read it."""
    with _opened(uri, record) as (file, _):
        metadata = pq.read_metadata(file)
    place = next(
        i for i in range(metadata.num_columns) if metadata.schema.column(i).path.split(".")[0] == column
    )
    groups = (metadata.row_group(i).column(place) for i in range(metadata.num_row_groups))
    # A null vector counts once, any other as often as it has numbers.
    return bool(sum(group.num_values for group in groups) > metadata.num_rows)


def read_each(uri: str, records: Sequence[FileRecord], columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of many files, in order; a store that answers slowly is asked for 32 at once."""
    with ThreadPoolExecutor(32) as pool:
        for start in range(0, len(records), 32):
            yield from pool.map(lambda r: read_file(uri, r, columns), records[start : start + 32])


def iterate(uri: str, columns: list[str] | None = None, commit: Commit | None = None) -> Iterator[pa.Table]:
    """The files of a committed data set, one table each, in the order of their names."""
    for record in (commit or require_commit(uri)).files:
        yield read_file(uri, record, columns)


def read_all(
    uri: str, schema: pa.Schema, columns: list[str] | None = None, commit: Commit | None = None
) -> pa.Table:
    """A committed data set as one table: for small ones (rejects, matches, runs)."""
    found = list(iterate(uri, columns, commit))
    if found:
        return pa.concat_tables(found)
    return schema.empty_table().select(columns or schema.names)
