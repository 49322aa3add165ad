"""One Parquet file of rows: its record, how it is written, and how it is read and checked.

A file is checked against its record before a row of it is used, and a DatasetError names one that does not
fit. Every read checks the size, the hash of the footer, and the checksum of each page that it takes. The
footer holds counts, places, and extremes of all columns, so another file of as many rows is found out too.
A read of all columns of a whole file checks the SHA-256 of all its bytes. Records of earlier versions have no
hash of the footer: the first read in a process then checks the SHA-256.

Whoever reads names the folders that the file may be in: it may move from one to another at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.store import parquet_splice, parquet_vectors, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.parquet_footers import MAGIC, TAIL, FooterError
from id2core.store.parquet_splice import Buffer, Column, FooterTree

Result = TypeVar("Result")
# What this program calls files; above all no `..`, no leading slash, no scheme, no backslash.
_PLAIN_NAME = re.compile(r"(?:[\w=%+][\w=%+.,-]{0,250}/){0,8}[\w=%+][\w=%+.,-]{0,250}", re.ASCII)
# What the name of a file begins with that was made of others.
MERGED = "merged-"
# Read at once from the end of a file, where most footers are: at least, for each row group, and at most.
# A night opens many small files, of which a larger guess would be most of what is read.
_FOOTER_LEAST, _FOOTER_ROW_GROUP, _FOOTER_MOST = 2**12, 2**11, 2**18
# Row groups that are changed while others are written.
_AHEAD = 2
# Read at once to hash a whole file.
_HASHED_BYTES = 2**20
_OTHER_HASH = "its SHA-256 is another one than when it was written"
_MEND = "restore it from a copy, or make the data set again in another --out"
# Files without a hash of the footer whose SHA-256 this process has checked: place and SHA-256.
_CHECKED: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class FileRecord:
    """One Parquet file of a data set.

    A name ends in the first hex of the SHA-256: two attempts at the same work that differ in a bit do not
    overwrite each other's file.

    Attributes:
        name: below the directory.
        rows, row_groups: how many it has.
        bytes: its size.
        sha256: of all its bytes.
        footer: first 16 hex of the SHA-256 of its footer; empty in records of earlier versions.
        segments: run_ids whose rows it has; empty in records of earlier versions, see `segments_in`.
        segment_rows: how many rows of each of them; empty where that is not known.
        source: URI of the source that its rows are of; empty where there is none.
        bounds: the least and the greatest URI of an object that it has rows of; empty where not known.
    """

    name: str
    rows: int
    row_groups: int
    bytes: int
    sha256: str
    footer: str = ""
    segments: tuple[str, ...] = ()
    source: str = ""
    bounds: tuple[str, ...] = ()
    segment_rows: tuple[int, ...] = ()

    @staticmethod
    def of_json(raw: Any) -> FileRecord:
        """Return the record that a value of JSON is.

        Raises:
            DatasetError: it is none, or its name leads out of the data set.
        """
        known = {f.name for f in fields(FileRecord)}
        if not isinstance(raw, dict) or not known - _ADDED <= raw.keys() <= known:
            raise DatasetError(f"its record of a file is {str(raw)[:80]!r}")
        texts = {name: _texts(raw.get(name, [])) for name in ("segments", "bounds")}
        record = FileRecord(**raw | texts | {"segment_rows": _counts(raw.get("segment_rows", []))})
        if not isinstance(record.name, str) or not _PLAIN_NAME.fullmatch(record.name):
            raise DatasetError(f"it lists a file {str(record.name)[:80]!r}: names are plain and below it")
        counts = (record.rows, record.row_groups, record.bytes)
        whole = all(type(count) is int and count >= 0 for count in counts)
        if not whole or not all(isinstance(t, str) for t in (record.sha256, record.footer, record.source)):
            raise DatasetError(f"its record of {record.name} has {counts} rows, row groups and bytes")
        if record.segment_rows and len(record.segment_rows) != len(record.segments):
            raise DatasetError(f"its record of {record.name} does not count the rows of each segment")
        return record

    @property
    def key(self) -> str:
        """The name without the hash of the bytes: the same for the same work done at another time."""
        return self.name.rsplit("-", 1)[0]

    @property
    def is_merged(self) -> bool:
        """Whether a compaction made it of other files, whose runs it names in `segments`."""
        return self.name.rsplit("/", 1)[-1].startswith(MERGED)

    def belongs_to(self, plan_id: str) -> bool:
        """Return whether the file was written for the work `plan_id`, in whatever partition."""
        return self.name.rsplit("/", 1)[-1].startswith(f"{plan_id}-")

    def may_hold(self, least: str, greatest: str) -> bool:
        """Return whether it may have rows of an object whose URI is within bounds."""
        return not self.bounds or (self.bounds[0] <= greatest and least <= self.bounds[1])

    def may_hold_any(self, uris: Sequence[str]) -> bool:
        """Return whether it may have rows of one of some objects; the URIs are sorted."""
        if not self.bounds:
            return bool(uris)
        return bisect_left(uris, self.bounds[0]) < bisect_right(uris, self.bounds[1])

    def may_have(self, run_id: str) -> bool:
        """Return whether it may have rows of a run."""
        return not self.segments or run_id in self.segments

    def of_segments(self, rows: Mapping[str, int]) -> FileRecord:
        """Return the record with the run_ids whose rows it has, and how many of each."""
        names = tuple(sorted(rows))
        return replace(self, segments=names, segment_rows=tuple(rows[name] for name in names))


# Fields that records of earlier versions lack.
_ADDED = {"footer", "segments", "source", "bounds", "segment_rows"}


def _texts(values: Any) -> tuple[str, ...]:
    """Return a list of JSON as a tuple of texts. Raises DatasetError where it is none."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise DatasetError(f"{str(values)[:80]!r} is no list of texts")
    return tuple(values)


def _counts(values: Any) -> tuple[int, ...]:
    """Return a list of JSON as a tuple of counts. Raises DatasetError where it is none."""
    whole = isinstance(values, list | tuple) and all(type(v) is int and v >= 0 for v in values)
    if not whole:
        raise DatasetError(f"{str(values)[:80]!r} is no list of counts")
    return tuple(values)


def write(
    folder: str,
    key: str,
    batches: Iterable[pa.RecordBatch | pa.Table],
    schema: pa.Schema,
    row_group: int | None = None,
) -> FileRecord:
    """Write batches as the Parquet file `KEY-HASH.parquet` in a folder, whole or not at all.

    Args:
        folder: the folder.
        key: the name without the hash of the bytes.
        batches: the rows.
        schema: of the rows.
        row_group: rows in a row group, by default those of `schemas.row_group_of`; a batch begins a new one.
    """
    size = row_group or schemas.row_group_of(schema)
    with storage.temporary(folder) as path:
        with schemas.parquet_writer(path, schema) as writer:
            for batch in batches:
                table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch], schema)
                writer.write_table(table, row_group_size=size)
                del batch, table  # they may be large: not to be kept while the next one is made
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            footer = _read_footer(file, 1)
        return _published(path, folder, key, digest, footer)


def _published(path: Path, folder: str, key: str, digest: str, footer: bytes) -> FileRecord:
    """Publish a file that was written, whose SHA-256 and footer are known; return its record."""
    size, metadata = path.stat().st_size, _metadata(footer)
    counts = (metadata.num_rows, metadata.num_row_groups)
    record = FileRecord(f"{key}-{digest[:8]}.parquet", *counts, size, digest, _footer_digest(footer))
    storage.publish(path, storage.join(folder, record.name))
    return record


@dataclass(frozen=True)
class Change:
    """Columns of a table that are made of others.

    Attributes:
        schema: of the table with them.
        reads: what they are made of.
        writes: their names.
        make: some rows of `reads` → those of `writes` by name.
    """

    schema: pa.Schema
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    make: Callable[[pa.Table], Mapping[str, pa.Array]]


def rewrite(folders: Sequence[str], record: FileRecord, folder: str, key: str, change: Change) -> FileRecord:
    """Write the rows of a file, with some columns made anew, as `KEY-HASH.parquet` in another folder.

    Row groups stay. The other columns are copied as they lie, see `parquet_splice`. One that the file lacks,
    or has in another form than today, is written anew. The SHA-256 of the file is checked, and whoever looks
    sees what is written whole or not at all. Some row groups are made ahead by threads.

    Args:
        folders: where the file may be; the first that has it counts.
        record: what it must be.
        folder: where the new file is written.
        key: its name without the hash of the bytes.
        change: what is made anew.

    Raises:
        DatasetError: the file is gone, damaged, or not the one that the record is of.
    """
    digest = hashlib.sha256()
    with storage.temporary(folder) as path:
        with path.open("wb") as file:

            def write(data: Buffer) -> None:
                file.write(data)
                digest.update(data)

            footer = parquet_splice.empty(change.schema)
            writer = parquet_splice.Writer(write, footer)
            groups = in_order(_pieces(folders, record), lambda piece: _changed(piece, footer, change), _AHEAD)
            for rows, columns in groups:
                writer.write_group(rows, columns)
                del columns  # they are large: not to be kept while the next ones are waited for
            end = writer.close()
        return _published(path, folder, key, digest.hexdigest(), end)


@dataclass(frozen=True)
class _Piece:
    """A row group of a file.

    Attributes:
        rows: how many it has.
        columns: as they lie in the file.
        footer: of the file.
        schema: of the file.
        where: URI of the file.
    """

    rows: int
    columns: list[Column]
    footer: FooterTree
    schema: pa.Schema
    where: str


def _pieces(folders: Sequence[str], record: FileRecord) -> Iterator[_Piece]:
    """Yield the row groups of a file; the last one is yielded where the SHA-256 of the file is right."""
    digest = hashlib.sha256()
    for group in range(record.row_groups):
        yield _use(folders, record, partial(_piece, group=group, digest=digest, sha256=record.sha256))


def _piece(opened: _Opened, group: int, digest: hashlib._Hash, sha256: str) -> _Piece:
    """Read a row group, and add its bytes, and those around it, to the hash of the row groups before it."""
    footer = parquet_splice.parse(opened.footer[:-TAIL])
    spans = footer.spans(opened.file.seek(0, os.SEEK_END))
    at, end = spans[group]
    opened.file.seek(at)
    data = opened.file.read(end - at)
    digest.update(data)
    if group == len(spans) - 1 and digest.hexdigest() != sha256:
        raise _DamageError(_OTHER_HASH)
    columns = footer.columns(group, memoryview(data), at)
    rows = footer.places.groups[group].rows
    return _Piece(rows, columns, footer, opened.parquet.schema_arrow, opened.where)


def _changed(piece: _Piece, target: FooterTree, change: Change) -> tuple[int, list[Column]]:
    """Return the rows of a row group, and its columns with those that are made anew."""
    anew = [
        name
        for name, nodes in target.fields.items()
        if name in change.writes or piece.footer.fields.get(name) != nodes
    ]
    read = dict.fromkeys([*change.reads, *(name for name in anew if name not in change.writes)])
    with _reading(piece.where):
        table = _table(piece, list(read))
    made = change.make(table)
    arrays = [made[name] if name in change.writes else table[name] for name in anew]
    fields = [change.schema.field(name) for name in anew]
    encoded = parquet_splice.encoded(pa.table(arrays, pa.schema(fields, change.schema.metadata)))
    copied = [column for column in piece.columns if column.name in target.fields and column.name not in anew]
    return piece.rows, [*copied, *encoded]


def _table(piece: _Piece, names: Sequence[str]) -> pa.Table:
    """Return columns of a row group."""
    arrays = {}
    for column in piece.columns:
        kind = piece.schema.field(column.name).type
        if column.name in names and (array := parquet_vectors.read(column, kind, piece.rows)) is not None:
            arrays[column.name] = array
    if others := [name for name in names if name not in arrays]:
        alone = pa.py_buffer(parquet_splice.alone(piece.footer, piece.rows, piece.columns))
        parquet = pq.ParquetFile(alone, page_checksum_verification=True)
        table = _read_parquet(parquet, piece.where, piece.rows, others, 0)
        arrays |= dict(zip(others, table.columns, strict=True))
    return pa.table({name: arrays[name] for name in names})


def read(
    folders: Sequence[str],
    record: FileRecord,
    columns: list[str] | None = None,
    row_group: int | None = None,
) -> pa.Table:
    """Read a file, or one of its row groups.

    What is checked: without `columns` and `row_group` the SHA-256 of the file; else its size, its footer, and
    the checksums of the pages that are read.

    Args:
        folders: where it may be; the first that has it counts.
        record: what the file must be.
        columns: what is read; by default everything.
        row_group: which one; by default all.

    Raises:
        DatasetError: it is gone, damaged, or not the file that the record is of.
    """

    def table(opened: _Opened) -> pa.Table:
        return _read_parquet(opened.parquet, opened.where, record.rows, columns, row_group)

    return _use(folders, record, table, whole=columns is None and row_group is None)


def read_vectors(
    folders: Sequence[str],
    record: FileRecord,
    column: str,
    out: NDArray[Any],
    beside: Sequence[str] = (),
) -> pa.Table:
    """Read a column of vectors of a file, and others beside it. It checks what `read` checks.

    Args:
        folders: where it may be; the first that has it counts.
        record: what the file must be.
        column: fixed-size lists without nulls.
        out: float[rows,m], contiguous, that takes them.
        beside: other columns.

    Returns:
        The other columns.

    Raises:
        DatasetError: it is gone, damaged, or not the file that the record is of.
    """

    def table(opened: _Opened) -> pa.Table:
        _read_vectors(opened, column, out)
        return _read_parquet(opened.parquet, opened.where, record.rows, list(beside), None)

    return _use(folders, record, table)


def _read_vectors(opened: _Opened, column: str, out: NDArray[Any]) -> None:
    metadata = opened.parquet.metadata
    place = _leaf(metadata, column)
    stored = opened.parquet.schema_arrow.field(column).type.value_type
    start = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        part = out[start : start + group.num_rows]
        start += len(part)
        is_same = stored == pa.from_numpy_dtype(out.dtype)
        if not (is_same and parquet_vectors.read_into(part, opened.file, group.column(place))):
            table = _read_parquet(opened.parquet, opened.where, len(part), [column], number)
            part[:] = schemas.column_to_vectors(table[column])


def _leaf(metadata: pq.FileMetaData, column: str) -> int:
    """Return the number of the leaf column that has the values of a column of vectors."""
    paths = (metadata.schema.column(i).path for i in range(metadata.num_columns))
    return next(i for i, path in enumerate(paths) if path.split(".")[0] == column)


def verify(folders: Sequence[str], record: FileRecord) -> None:
    """Read a file and check its SHA-256; rows are not decoded.

    Raises:
        DatasetError: it is gone, damaged, or not the file that the record is of.
    """
    _use(folders, record, lambda opened: None, whole=True)


def record_of(where: str, name: str) -> FileRecord:
    """Return the record of a file of which nothing is recorded: what is there is taken for right.

    Args:
        where: its URI.
        name: its name below the data set.

    Raises:
        DatasetError: it is gone, or no Parquet file.
    """
    try:
        with storage.open_input(where) as file:
            digest, size = hashlib.sha256(), 0
            while data := file.read(_HASHED_BYTES):
                digest.update(data)
                size += len(data)
            footer = _read_footer(file, 1)
            metadata = _metadata(footer)
    except (OSError, pa.ArrowException, _DamageError) as error:
        raise DatasetError(f"{where} is damaged: {error}; {_MEND}") from error
    counts = (metadata.num_rows, metadata.num_row_groups)
    return FileRecord(name, *counts, size, digest.hexdigest(), _footer_digest(footer))


def peek(where: str, columns: Sequence[str]) -> pa.Table | None:
    """Read columns of a file of which nothing is recorded; one that it lacks is null.

    None for a file that is gone, or not whole: somebody may be writing it.
    """
    try:
        with storage.open_input(where) as file:
            parquet = pq.ParquetFile(file)
            held = [name for name in columns if name in parquet.schema_arrow.names]
            table, rows = parquet.read(held), parquet.metadata.num_rows
    except (FileNotFoundError, OSError, pa.ArrowException):
        return None
    arrays = [table[name] if name in held else pa.nulls(rows, pa.string()) for name in columns]
    return pa.Table.from_arrays(arrays, names=list(columns))


def has_values(folders: Sequence[str], record: FileRecord, column: str) -> bool:
    """Return whether a column of vectors has values in a file; its metadata answers.

    Raises:
        DatasetError: the file is gone, damaged, or not the one that the record is of.
    """
    metadata: pq.FileMetaData = _use(folders, record, lambda opened: opened.parquet.metadata)
    place = _leaf(metadata, column)
    groups = (metadata.row_group(i).column(place) for i in range(metadata.num_row_groups))
    # A null vector counts once, any other as often as it has numbers.
    return bool(sum(group.num_values for group in groups) > metadata.num_rows)


def row_group_rows(folders: Sequence[str], record: FileRecord) -> list[int]:
    """Return how many rows each row group of a file has.

    Raises:
        DatasetError: the file is gone, damaged, or not the one that the record is of.
    """
    metadata: pq.FileMetaData = _use(folders, record, lambda opened: opened.parquet.metadata)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def schema_of(folders: Sequence[str], record: FileRecord) -> pa.Schema:
    """Return the schema that this program has for the table of a file.

    Raises:
        DatasetError: the file is gone, damaged, of a later version, or not the one that the record is of.
    """
    return _use(folders, record, lambda opened: schemas.current(opened.parquet.schema_arrow, opened.where))


@dataclass(frozen=True)
class _Opened:
    """A file that was found and checked.

    Attributes:
        where: its URI.
        file: its bytes.
        footer: its footer, the length of the footer, and the magic.
        parquet: reads it.
    """

    where: str
    file: IO[bytes]
    footer: bytes
    parquet: pq.ParquetFile


def _use(
    folders: Sequence[str],
    record: FileRecord,
    use: Callable[[_Opened], Result],
    whole: bool = False,
) -> Result:
    """Return what a function makes of a file, in the first folder where it stays as long as that takes."""
    gone: FileNotFoundError | None = None
    for folder in folders:
        where = storage.join(folder, record.name)
        if not storage.contains(folder, where):
            raise DatasetError(f"{where} is a link out of the data set: put the file itself there")
        try:
            return _use_at(where, record, use, whole)
        except FileNotFoundError as error:
            gone = error
    where = storage.join(folders[0], record.name)
    raise DatasetError(f"{where} is gone, but was committed; {_MEND}") from gone


def _use_at(where: str, record: FileRecord, use: Callable[[_Opened], Result], whole: bool) -> Result:
    """Return what a function makes of the file at a URI, which is the one recorded; `whole`: by all bytes."""
    with storage.open_input(where) as file, _reading(where):
        source, footer = _checked(file, record, where, whole)
        parquet = pq.ParquetFile(source, metadata=_metadata(footer), page_checksum_verification=True)
        _check_counts(parquet.metadata, record)
        return use(_Opened(where, source, footer, parquet))


class _DamageError(Exception):
    """A file is not the one that its record describes."""


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into DatasetError; what is not found stays not found."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, FooterError, _DamageError) as error:
        raise DatasetError(f"{where} is damaged: {error}; {_MEND}") from error


def _checked(file: IO[bytes], record: FileRecord, where: str, whole: bool) -> tuple[IO[bytes], bytes]:
    """Return what to read the file from, and its footer, both checked."""
    size = file.seek(0, os.SEEK_END)
    if size != record.bytes:
        raise _DamageError(f"it has {size} bytes, not {record.bytes}")
    unknown = not record.footer and (where, record.sha256) not in _CHECKED
    if whole or unknown:
        file.seek(0)
        file = io.BytesIO(file.read())
        if hashlib.sha256(file.getbuffer()).hexdigest() != record.sha256:
            raise _DamageError(_OTHER_HASH)
        _CHECKED.add((where, record.sha256))
    footer = _read_footer(file, record.row_groups)
    if record.footer and _footer_digest(footer) != record.footer:
        raise _DamageError("its footer is another one than when it was written")
    return file, footer


def _read_footer(file: IO[bytes], row_groups: int) -> bytes:
    """Read the end of a Parquet file of about so many row groups: footer, its length, and the magic."""
    size = file.seek(0, os.SEEK_END)
    guess = min(_FOOTER_LEAST + _FOOTER_ROW_GROUP * row_groups, _FOOTER_MOST)
    file.seek(max(0, size - guess))
    end = file.read(guess)
    length = int.from_bytes(end[-TAIL : -len(MAGIC)], "little") + TAIL
    if not end.endswith(MAGIC) or length > size:
        raise _DamageError("it has no Parquet footer")
    if length > len(end):
        file.seek(size - length)
        end = file.read(length)
    return end[-length:]


def _footer_digest(footer: bytes) -> str:
    return hashlib.sha256(footer).hexdigest()[:16]


def _metadata(footer: bytes) -> pq.FileMetaData:
    """Parse a footer that was read: what was checked is what is used."""
    return pq.read_metadata(pa.BufferReader(MAGIC + footer))


def _check_counts(metadata: pq.FileMetaData, record: FileRecord) -> None:
    held = metadata.num_rows, metadata.num_row_groups
    if held != (record.rows, record.row_groups):
        raise _DamageError(
            f"it has {held[0]} rows in {held[1]} row groups, not {record.rows} in {record.row_groups}"
        )


def _read_parquet(
    parquet: pq.ParquetFile, where: str, rows: int, columns: list[str] | None, row_group: int | None
) -> pa.Table:
    stored = parquet.schema_arrow
    schema = schemas.current(stored, where)
    held = None if columns is None else [name for name in columns if name in stored.names]
    if row_group is None:
        table = parquet.read(held, use_threads=False)  # callers read several files at once
    else:
        table, rows = parquet.read_row_group(row_group, held), parquet.metadata.row_group(row_group).num_rows
    if (held is None or held) and table.num_rows != rows:  # a damaged page header may hide a page
        raise _DamageError(f"{table.num_rows} rows of {rows} can be read")
    return schemas.completed(table, schema, columns, rows)
