"""Flat columns of Parquet files of anybody's, row by row, under a budget: names, URIs and fields."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from id2core.sources.base import MAX_MEMBERS, ShardUnreadableError
from id2core.store import parquet_images
from id2core.store.parquet_footers import RowGroup
from id2core.store.parquet_images import ShardError, ShardFile
from id2core.store.rejects import Reason

# What these columns of a row group may unpack to.
_GROUP_BYTES: Final = 64 << 20
# Of a value; the rest is cut off. More than a name or all fields may have.
VALUE_BYTES: Final = 16 << 10
# Rows that are Python's at a time, and rows of which Arrow is asked: it makes a dictionary anew each time.
_ROWS, _BATCH_ROWS = 1024, 1 << 16
# Rows that a file may have beside those that its size allows.
_ANY_ROWS: Final = 1024
# More columns of fields than a platform has.
_MAX_FIELDS: Final = 64


class RowFile:
    """A Parquet file that is read as rows.

    Attributes:
        shard: the file.
        columns: names of its flat columns, the first 64.
    """

    def __init__(self, file: IO[bytes], least_bytes: int = 1) -> None:
        """Open a file.

        Args:
            file: it, seekable.
            least_bytes: that a row takes in an honest file. A few bytes may claim millions of equal rows.

        Raises:
            ShardUnreadableError: it is none, is damaged, or has too many rows.
        """
        try:
            self.shard = ShardFile.open(file)
        except ShardError as error:
            raise ShardUnreadableError(error.reject.reason, error.reject.detail) from None
        schema = self.shard.parquet.schema_arrow
        flat = [field for field in schema if "." not in field.name and _is_flat(field.type)]
        self.columns = [field.name for field in flat if schema.names.count(field.name) == 1][:_MAX_FIELDS]
        self._texts = {field.name for field in flat if _is_text(field.type)}
        size, rows = file.seek(0, os.SEEK_END), sum(group.rows for group in self.groups)
        if rows > min(MAX_MEMBERS, _ANY_ROWS + size // least_bytes):
            raise ShardUnreadableError(Reason.OVER_BUDGET, f"{rows} rows in a file of {size} bytes")

    @property
    def groups(self) -> Sequence[RowGroup]:
        """The row groups."""
        return self.shard.footer.groups

    def rows(self, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a row group as values by column; text is cut at `VALUE_BYTES`.

        Raises:
            ShardUnreadableError: it cannot be read, or not under the budget.
        """
        count = self.groups[group].rows
        if not columns:
            yield from ({} for _ in range(count))
            return
        try:
            dictionaries = self.shard.check_columns(group, columns, _GROUP_BYTES)
            parquet = self.shard.with_dictionaries(self._texts & dictionaries)
            for batch in parquet.iter_batches(_BATCH_ROWS, [group], list(columns), use_threads=False):
                count -= batch.num_rows
                yield from _rows(batch, columns)
        except ShardError as error:
            raise ShardUnreadableError(error.reject.reason, error.reject.detail) from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            parquet_images.raise_unless_damage(error)
            raise ShardUnreadableError(Reason.CORRUPT, f"row group {group}: {error}") from None
        if count:
            raise ShardUnreadableError(Reason.CORRUPT, f"row group {group} lacks {count} rows")


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    parts = [_parts(batch.column(name)) for name in columns]
    for part in zip(*parts, strict=True):
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*part, strict=True))


def _parts(column: pa.Array) -> Iterator[list[Any]]:
    """Yield the values of a column, `_ROWS` at a time; those of a dictionary are made once, where used."""
    if not pa.types.is_dictionary(column.type):
        yield from (_values(column.slice(start, _ROWS)) for start in range(0, len(column), _ROWS))
        return
    used = pc.unique(column.indices).drop_null()
    values = _values(column.dictionary.take(used))
    places = pc.index_in(column.indices, used)
    for start in range(0, len(places), _ROWS):
        yield [None if place is None else values[place] for place in places.slice(start, _ROWS).to_pylist()]


def _is_flat(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp)
    return _is_text(held) or pa.types.is_date(held) or any(is_kind(held) for is_kind in known)


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(held) for is_kind in known)


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; what Python cannot hold, such as a date in the year 10,000, as None."""
    if _is_text(column.type):
        cut = pc.binary_slice(column.cast(pa.large_binary()), 0, VALUE_BYTES)
        return [None if text is None else text.decode(errors="backslashreplace") for text in cut.to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return None
