"""Flat columns of Parquet files of anybody's, row by row, under a budget: names, URIs and fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from id2core.sources.base import MAX_MEMBERS, ShardUnreadableError
from id2core.store import parquet_images
from id2core.store.parquet_images import ShardError
from id2core.store.rejects import Reason

# What these columns of a row group may unpack to.
_GROUP_BYTES: Final = 64 << 20
# Of a value; the rest is cut off. More than a name or all fields may have.
VALUE_BYTES: Final = 16 << 10
_ROWS: Final = 1024
# More columns of fields than a platform has.
_MAX_FIELDS: Final = 64


class RowFile:
    """A Parquet file that is read as rows.

    Attributes:
        parquet: the file; columns of text are read as dictionaries.
        columns: names of its flat columns, the first 64.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Open a file.

        Raises:
            ShardUnreadableError: it is none, is damaged, or has too many rows.
        """
        self._file = file
        try:
            schema = parquet_images.open_file(file).schema_arrow
            flat = [field for field in schema if "." not in field.name and _is_flat(field.type)]
            self.columns = [field.name for field in flat if schema.names.count(field.name) == 1][:_MAX_FIELDS]
            texts = [field.name for field in flat if _is_text(field.type)]
            self.parquet = parquet_images.open_file(file, texts)
        except ShardError as error:
            raise ShardUnreadableError(error.reject.reason, error.reject.detail) from None
        if self.parquet.metadata.num_rows > MAX_MEMBERS:
            raise ShardUnreadableError(Reason.OVER_BUDGET, f"more than {MAX_MEMBERS} rows")

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""
        return self.parquet.metadata

    def rows(self, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a row group as values by column; text is cut at `VALUE_BYTES`.

        Raises:
            ShardUnreadableError: it cannot be read, or not under the budget.
        """
        count = self.metadata.row_group(group).num_rows
        if not 0 <= count <= MAX_MEMBERS:
            raise ShardUnreadableError(Reason.CORRUPT, f"row group {group} has {count} rows")
        if not columns:
            yield from ({} for _ in range(count))
            return
        try:
            parquet_images.check_columns(self._file, self.metadata, group, columns, _GROUP_BYTES)
            batches = self.parquet.iter_batches(_ROWS, [group], list(columns), use_threads=False)
            for batch in batches:
                values = [_values(batch.column(name)) for name in columns]
                count -= batch.num_rows
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
        except ShardError as error:
            raise ShardUnreadableError(error.reject.reason, error.reject.detail) from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            parquet_images.raise_unless_damage(error)
            raise ShardUnreadableError(Reason.CORRUPT, f"row group {group}: {error}") from None
        if count:
            raise ShardUnreadableError(Reason.CORRUPT, f"row group {group} lacks {count} rows")


def _is_flat(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp)
    return _is_text(held) or pa.types.is_date(held) or any(is_kind(held) for is_kind in known)


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; what Python cannot hold, such as a date in the year 10,000, as None."""
    if pa.types.is_dictionary(column.type):
        held = _values(column.dictionary)
        return [None if index is None else held[index] for index in column.indices.to_pylist()]
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
