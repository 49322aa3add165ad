"""Pictures in Parquet files: which column has them, and one row's bytes, under a budget of a row group."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from id2core.store import parquet_footers, parquet_pages
from id2core.store.base import Object, Store
from id2core.store.parquet_footers import MAGIC, TAIL, Chunk, Footer, FooterError
from id2core.store.rejects import Reason, Reject
from id2core.store.shared_values import SharedValues

# Names of the column of pictures, the first that a file has; binary, or a struct with a binary `bytes`.
IMAGE_COLUMNS: Final = ("image", "bytes", "content")
# What the pictures of one row group may unpack to.
ROW_GROUP_BYTES: Final = 256 << 20
# What a footer may take: 1 MiB has 1,000 row groups or more.
_FOOTER_BYTES: Final = 16 << 20
_MAX_COLUMNS: Final = 10_000
_ENCRYPTED: Final = b"PARE"
# Row groups that a process holds, in bytes.
_HELD_BYTES: Final = 512 << 20


class ShardError(Exception):
    """A Parquet file, or a row group of it, cannot be read.

    Attributes:
        reject: why, for its row.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reject = Reject(reason, detail)


@dataclass(frozen=True)
class ImageColumn:
    """The column of pictures.

    Attributes:
        name: of the column.
        path: of the leaf with the bytes: NAME, or NAME.bytes.
    """

    name: str
    path: str


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file of anybody's, opened.

    Attributes:
        file: it, seekable.
        parquet: Arrow's reader. It is never asked for the metadata of a row group or column: it ends the
            process where it dislikes one.
        footer: what the file says of these.
    """

    file: IO[bytes]
    parquet: pq.ParquetFile
    footer: Footer

    @staticmethod
    def open(file: IO[bytes]) -> ShardFile:
        """Open a file.

        Raises:
            ShardError: it is none, is encrypted, or has a footer that is too large or damaged.
        """
        footer = _read_footer(file)
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            columns = parquet.metadata.num_columns
            parquet.schema_arrow  # noqa: B018 (damaged ones raise)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise_unless_damage(error)
            raise ShardError(Reason.CORRUPT, f"the footer is damaged: {error}") from None
        if columns > _MAX_COLUMNS:
            raise ShardError(Reason.OVER_BUDGET, f"more than {_MAX_COLUMNS} columns")
        if any(len(group.chunks) != columns for group in footer.groups):
            raise ShardError(Reason.CORRUPT, "a row group has other columns than the schema")
        return ShardFile(file, parquet, footer)

    def with_dictionaries(self, columns: Collection[str]) -> pq.ParquetFile:
        """Return a reader that reads columns as dictionaries.

        A value that is there a million times is then in memory once. Only a column that has a dictionary can
        be read so in every encoding.

        Args:
            columns: paths of these columns.
        """
        if not columns:
            return self.parquet
        return pq.ParquetFile(
            self.file,
            metadata=self.parquet.metadata,
            read_dictionary=list(columns),
            page_checksum_verification=True,
        )

    def chunk(self, group: int, path: str) -> Chunk:
        """Return what the footer says of a leaf column of a row group."""
        return self.footer.groups[group].chunks[self._leaf_indexes[path]]

    @cached_property
    def _leaf_indexes(self) -> dict[str, int]:
        schema = self.parquet.metadata.schema
        return {schema.column(i).path: i for i in range(len(schema))}

    def check_columns(self, group: int, paths: Iterable[str], most: int) -> set[str]:
        """Return which leaf columns of a row group have a dictionary.

        Raises:
            ShardError: they unpack to more than `most` bytes together, or cannot be read.
        """
        with_dictionary = set()
        left = most
        for path in paths:
            chunk = self.chunk(group, path)
            if chunk.unpacked > left:
                detail = f"row group {group} has {chunk.unpacked} bytes in {path}; the limit is {most}"
                raise ShardError(Reason.OVER_BUDGET, detail)
            try:
                if parquet_pages.check_chunk(self.file, chunk, left):
                    with_dictionary.add(path)
            except parquet_pages.PageError as error:
                detail = f"row group {group}, column {path}: {error}"
                raise ShardError(Reason.OVER_BUDGET, detail) from None
            left -= chunk.unpacked
        return with_dictionary


def _read_footer(file: IO[bytes]) -> Footer:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    if tail.endswith(_ENCRYPTED):
        raise ShardError(Reason.UNSUPPORTED, "an encrypted Parquet file")
    if not tail.endswith(MAGIC) or size < TAIL + len(MAGIC):
        raise ShardError(Reason.TRUNCATED, "no Parquet file, or one that is cut off: it has no footer")
    length = int.from_bytes(tail[:4], "little")
    if length > min(_FOOTER_BYTES, size - TAIL):
        raise ShardError(Reason.OVER_BUDGET, f"a footer of {length} bytes in a file of {size}")
    file.seek(size - TAIL - length)
    try:
        footer = parquet_footers.parse(file.read(length))
    except FooterError as error:
        raise ShardError(Reason.CORRUPT, str(error)) from None
    if any(chunk.is_encrypted for group in footer.groups for chunk in group.chunks):
        raise ShardError(Reason.UNSUPPORTED, "a Parquet file with encrypted columns")
    return footer


def raise_unless_damage(error: Exception) -> None:
    """Raise an error of the store again: Arrow's own are OSError, too, but have no number and no subclass."""
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error


def image_column(schema: pa.Schema) -> ImageColumn:
    """Return the column of pictures.

    Raises:
        ShardError: there is none, or it is of another type.
    """
    name = next((name for name in IMAGE_COLUMNS if schema.get_field_index(name) >= 0), None)
    if name is None:
        wanted = ", ".join(IMAGE_COLUMNS)
        raise ShardError(Reason.UNSUPPORTED, f"it has columns {schema.names[:20]}, and none of {wanted}")
    kind = schema.field(name).type
    if _is_bytes(kind):
        return ImageColumn(name, name)
    if pa.types.is_struct(kind) and any(f.name == "bytes" and _is_bytes(f.type) for f in kind):
        return ImageColumn(name, f"{name}.bytes")
    raise ShardError(Reason.UNSUPPORTED, f"its column {name} is {kind}: pictures are binary"[:200])


def _is_bytes(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(held) for is_kind in known)


_ROW_GROUPS: Final = SharedValues[Any](
    _HELD_BYTES, lambda column: 0 if isinstance(column, Reject) else column.nbytes
)


def read_row(store: Store, shard: Object, group: int, row: int) -> bytes | Reject:
    """Return the picture in a row, counted from the start of its row group, or why there is none.

    The row group is read once in a process, and kept while its rows are asked for.

    Raises:
        FileNotFoundError, ChangedObjectError: the file is gone, or was replaced.
    """
    column = _ROW_GROUPS.get((shard.uri, shard.generation, group), lambda: _read_group(store, shard, group))
    if isinstance(column, Reject):
        return column
    value = column[row].as_py()
    return Reject(Reason.EMPTY, "the row has no picture") if value is None else value


def _read_group(store: Store, shard: Object, group: int) -> pa.ChunkedArray | Reject:
    """Read the pictures of a row group, as a dictionary where they are one: equal ones are there once."""
    try:
        with store.open_version(shard) as file:
            opened = ShardFile.open(file)
            column = image_column(opened.parquet.schema_arrow)
            parquet = opened.with_dictionaries(opened.check_columns(group, [column.path], ROW_GROUP_BYTES))
            values = parquet.read_row_group(group, [column.path], use_threads=False)[column.name]
            return pc.struct_field(values, "bytes") if column.path != column.name else values
    except ShardError as error:
        return error.reject
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_unless_damage(error)
        return Reject(Reason.CORRUPT, f"row group {group} cannot be read: {error}"[:500])
