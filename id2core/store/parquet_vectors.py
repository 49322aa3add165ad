"""Vectors of a Parquet file, taken out of their pages at once.

Arrow reads a list number by number, with two levels for each. Where every list of a column is whole, the
numbers lie behind the levels as they are in memory. Latents of 4,096 numbers are read four times as fast so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.store import schemas
from id2core.store.compact_protocol import CompactError, Reader
from id2core.store.parquet_splice import Column

# Headers of pages without statistics are much smaller.
_HEADER_BYTES: Final = 512
# Fields of a page header and of its part for data pages of version 1, by their numbers in `parquet.thrift`.
_KIND, _UNPACKED, _PACKED, _DATA = 1, 2, 3, 5
_COUNT, _ENCODINGS = 1, (2, 3, 4)
# Values of such fields: encodings of numbers, and of both levels, which have their length before them.
_DATA_PAGE: Final = 0
_PLAIN_AND_LEVELS: Final = [0, 3, 3]
_LEVELS: Final = 2
_ZSTD: Final = 6


def read(column: Column, kind: pa.DataType, rows: int) -> pa.Array | None:
    """Return a column of fixed-size lists without nulls; None for one that Arrow has to read.

    Args:
        column: the column.
        kind: its type.
        rows: how many lists it has.

    Raises:
        ArrowException, OSError: a page is damaged. Not all damage is found: levels and checksums of pages
            are not looked at.
    """
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        return None
    if column.codec != _ZSTD:
        return None
    numbers = np.empty(rows * kind.list_size, f"f{kind.value_type.bit_width // 8}")
    at = filled = 0
    while at < len(column.pages):
        page = _page(column.pages, at)
        values = _values(page, column.unpacked, numbers.dtype) if page else None
        if page is None or values is None or filled + len(values) > len(numbers):
            return None
        numbers[filled : filled + len(values)] = values
        filled, at = filled + len(values), page.end
    return schemas.vectors_to_array(numbers, kind.list_size) if filled == len(numbers) else None


@dataclass(frozen=True)
class _Page:
    """A plain page of data.

    Attributes:
        count: its levels, and its numbers where no list and no number is null.
        unpacked: bytes that it unpacks to.
        body: its bytes behind the header.
        end: place behind it in its column.
    """

    count: int
    unpacked: int
    body: memoryview
    end: int


def _page(pages: memoryview, at: int) -> _Page | None:
    """Return the page at a place; None for one of another form."""
    reader = Reader(bytes(pages[at : at + _HEADER_BYTES]))
    try:
        header = reader.struct()
    except (CompactError, IndexError):
        return None
    data = header.get(_DATA)
    if not isinstance(data, dict) or [data.get(field) for field in _ENCODINGS] != _PLAIN_AND_LEVELS:
        return None
    start = at + reader.at
    sizes: list[Any] = [data.get(_COUNT), header.get(_UNPACKED), header.get(_PACKED)]
    if header.get(_KIND) != _DATA_PAGE or not all(type(size) is int and size >= 0 for size in sizes):
        return None
    count, unpacked, packed = sizes
    return _Page(count, unpacked, pages[start : start + packed], start + packed)


def _values(page: _Page, most: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Return the numbers of a page that unpacks to so many bytes at most; None where some are null."""
    if page.unpacked > most:
        return None
    content = memoryview(pa.decompress(page.body, page.unpacked, "zstd"))
    start = 0
    for _ in range(_LEVELS):
        start += 4 + int.from_bytes(content[start : start + 4], "little")
    # What is null has levels, and no number.
    if len(content) - start != page.count * dtype.itemsize:
        return None
    return np.frombuffer(content[start:], dtype)
