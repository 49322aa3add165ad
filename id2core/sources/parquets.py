"""Parquet files with image bytes as a source: each row is an image, its other flat columns are fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from id2core.sources.base import Item, MemberNames, ShardedSource, ShardUnreadableError
from id2core.sources.parquet_rows import RowFile
from id2core.store import members, parquet_images, storage
from id2core.store.base import Object
from id2core.store.parquet_images import ShardError
from id2core.store.rejects import Reason

# That a row takes at least, with its picture.
_ROW_BYTES: Final = 32
# Columns that name a row, the first that a file has; else its number does.
_NAME_COLUMNS: Final = ("uri", "id")


class ParquetSource(ShardedSource):
    """A Parquet file with a column of pictures, or a folder or prefix of them."""

    PREFIX: ClassVar[str] = "parquet:"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".parquet",)

    def _shard(self, shard: Object) -> Iterator[Item]:
        with storage.open_version(shard) as file:
            rows = RowFile(file, _ROW_BYTES)
            try:
                image = parquet_images.image_column(rows.shard.parquet.schema_arrow)
            except ShardError as error:
                raise ShardUnreadableError(error.reject.reason, error.reject.detail) from None
            yield from _Shard(shard, rows, image.path).items()


class _Shard:
    """One listing of a Parquet file."""

    def __init__(self, shard: Object, rows: RowFile, image: str) -> None:
        self._shard, self._rows, self._names = shard, rows, MemberNames(shard)
        self._image = image
        self._name = next((name for name in _NAME_COLUMNS if name in rows.columns), None)

    def items(self) -> Iterator[Item]:
        """Yield the rows; a row group that takes too much is one refusal."""
        first = 0
        for group, info in enumerate(self._rows.groups):
            try:
                yield from self._group(group, first)
            except ShardUnreadableError as error:
                name, place = f"row-group-{group}".encode(), f"row group {group}"
                yield Item(self._names.refuse(name, place, error.reject.reason, error.reject.detail))
            first += info.rows

    def _group(self, group: int, first: int) -> Iterator[Item]:
        unpacked = self._rows.shard.chunk(group, self._image).unpacked
        if unpacked > parquet_images.ROW_GROUP_BYTES:
            limit = parquet_images.ROW_GROUP_BYTES
            raise ShardUnreadableError(
                Reason.OVER_BUDGET, f"{unpacked} bytes of pictures; the limit is {limit}"
            )
        mean = unpacked // max(1, self._rows.groups[group].rows)
        for row, values in enumerate(self._rows.rows(group, self._rows.columns)):
            yield self._item(values, f"{group}+{row}", first + row, mean)

    def _item(self, values: dict[str, Any], place: str, number: int, size: int) -> Item:
        named = values.pop(self._name, None) if self._name else None
        name = str(number if named is None else named).encode()

        def make(spelled: str) -> Object:
            return members.member(self._shard, spelled, members.PARQUET, place, size)

        obj, good = self._names.item(name, place, make, is_path=False)
        return Item(obj, values if good and values else None)
