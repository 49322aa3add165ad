"""Pictures in Parquet files: which column has them, and one row's bytes, under a budget of a row group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from id2core.store import parquet_pages
from id2core.store.base import Object, Store
from id2core.store.rejects import Reason, Reject
from id2core.store.shared_values import SharedValues

# Names of the column of pictures, the first that a file has; binary, or a struct with a binary `bytes`.
IMAGE_COLUMNS: Final = ("image", "bytes", "content")
# What the pictures of one row group may unpack to.
ROW_GROUP_BYTES: Final = 256 << 20
# What a footer may take: 1 MiB has 1,000 row groups or more.
_FOOTER_BYTES: Final = 16 << 20
_MAX_COLUMNS: Final = 10_000
_TAIL, _MAGIC, _ENCRYPTED = 8, b"PAR1", b"PARE"
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


def open_file(file: IO[bytes], dictionaries: Iterable[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file of anybody's.

    Args:
        file: it, seekable.
        dictionaries: paths of columns that are read as dictionaries, so that a value that is there a million
            times is in memory once.

    Raises:
        ShardError: it is none, is encrypted, or has a footer that is too large or damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    if tail.endswith(_ENCRYPTED):
        raise ShardError(Reason.UNSUPPORTED, "an encrypted Parquet file")
    if not tail.endswith(_MAGIC) or size < _TAIL + len(_MAGIC):
        raise ShardError(Reason.TRUNCATED, "no Parquet file, or one that is cut off: it has no footer")
    footer = int.from_bytes(tail[:4], "little")
    if footer > min(_FOOTER_BYTES, size - _TAIL):
        raise ShardError(Reason.OVER_BUDGET, f"a footer of {footer} bytes in a file of {size}")
    try:
        parquet = pq.ParquetFile(file, read_dictionary=list(dictionaries), page_checksum_verification=True)
        too_wide = parquet.metadata.num_columns > _MAX_COLUMNS
        parquet.schema_arrow  # noqa: B018 (damaged ones raise)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_unless_damage(error)
        raise ShardError(Reason.CORRUPT, f"the footer is damaged: {error}") from None
    if too_wide:
        raise ShardError(Reason.OVER_BUDGET, f"more than {_MAX_COLUMNS} columns")
    return parquet


def raise_unless_damage(error: Exception) -> None:
    """Raise an error of the store again: Arrow's own are OSError, too, but have no number and no subclass."""
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error


def leaf_indexes(metadata: pq.FileMetaData) -> dict[str, int]:
    """Return the index of each leaf column by its path."""
    return {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}


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
    return bool(pa.types.is_binary(held) or pa.types.is_large_binary(held))


def check_columns(
    file: IO[bytes], metadata: pq.FileMetaData, group: int, paths: Iterable[str], most: int
) -> None:
    """Raise ShardError unless leaf columns of a row group together unpack to `most` bytes or fewer."""
    indexes = leaf_indexes(metadata)
    left = most
    for path in paths:
        chunk = metadata.row_group(group).column(indexes[path])
        if chunk.total_uncompressed_size > left:
            raise ShardError(
                Reason.OVER_BUDGET,
                f"row group {group} has {chunk.total_uncompressed_size} bytes in {path}; the limit is {most}",
            )
        try:
            parquet_pages.check_chunk(file, chunk, left)
        except parquet_pages.PageError as error:
            raise ShardError(Reason.OVER_BUDGET, f"row group {group}, column {path}: {error}") from None
        left -= chunk.total_uncompressed_size


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
    """Read the pictures of a row group as a dictionary, in which equal ones are once."""
    try:
        with store.open_version(shard) as file:
            column = image_column(open_file(file).schema_arrow)
            parquet = open_file(file, [column.path])
            check_columns(file, parquet.metadata, group, [column.path], ROW_GROUP_BYTES)
            values = parquet.read_row_group(group, [column.path], use_threads=False)[column.name]
            return pc.struct_field(values, "bytes") if column.path != column.name else values
    except ShardError as error:
        return error.reject
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_unless_damage(error)
        return Reject(Reason.CORRUPT, f"row group {group} cannot be read: {error}"[:500])
