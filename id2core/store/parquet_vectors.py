"""Read vectors of a Parquet file out of whole pages at once.

Arrow reads a list number by number, with two levels for each. If a column has no null, a page has its levels
first, and then the numbers as they are in memory. This module copies them. It reads latents of 4,096 numbers
four times as fast as Arrow.
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

# At most this much of a page is parsed as its header. Headers without statistics are much smaller.
_HEADER_BYTES: Final = 512
# Fields of a page header and of its part for data pages of version 1, by their numbers in `parquet.thrift`.
_KIND, _UNPACKED, _PACKED, _DATA = 1, 2, 3, 5
_COUNT, _ENCODINGS = 1, (2, 3, 4)
# Values of such fields: the kind of page, and the encodings of numbers (plain) and of both levels (RLE).
_DATA_PAGE: Final = 0
_PLAIN_AND_LEVELS: Final = [0, 3, 3]
# Kinds of levels in a page, each after its length in bytes.
_LEVELS: Final = 2
_ZSTD: Final = 6


def read(column: Column, kind: pa.DataType, rows: int) -> pa.Array | None:
    """Read a column of fixed-size lists without nulls; return None if Arrow has to read it.

    Args:
        column: the column.
        kind: its type.
        rows: how many lists it has.

    Raises:
        ArrowException, OSError: a page is damaged. This does not check levels and checksums of pages, so it
            misses some damage.
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
        count: number of its levels. It has as many numbers if no list and no number is null.
        unpacked: bytes that it unpacks to.
        body: its bytes after the header.
        end: place after it in its column.
    """

    count: int
    unpacked: int
    body: memoryview
    end: int


def _page(pages: memoryview, at: int) -> _Page | None:
    """Return the page at a place; None if it has another form."""
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
    """Return the numbers of a page; None if some are null, or if it unpacks to more than `most` bytes."""
    if page.unpacked > most:
        return None
    content = memoryview(pa.decompress(page.body, page.unpacked, "zstd"))
    start = 0
    for _ in range(_LEVELS):
        start += 4 + int.from_bytes(content[start : start + 4], "little")
    # A null has levels but no number.
    if len(content) - start != page.count * dtype.itemsize:
        return None
    return np.frombuffer(content[start:], dtype)
