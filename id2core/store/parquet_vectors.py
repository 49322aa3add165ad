"""Read vectors of a Parquet file out of whole pages at once.

Arrow reads a list number by number, with two levels for each. If a column has no null, a page has its levels
first, and then the numbers as they are in memory. This module copies them, and reads them to their place if
they are not packed. It reads latents of 4,096 numbers four times as fast as Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import isal_zlib
from numpy.typing import NDArray

from id2core.store import schemas
from id2core.store.compact_protocol import CompactError, Reader
from id2core.store.parquet_splice import Column

# At most this much of a page is parsed as its header. Headers without statistics are much smaller.
_HEADER_BYTES: Final = 512
# Fields of a page header and of its part for data pages of version 1, by their numbers in `parquet.thrift`.
_KIND, _UNPACKED, _PACKED, _CHECKSUM, _DATA = 1, 2, 3, 4, 5
_COUNT, _ENCODINGS = 1, (2, 3, 4)
# Values of such fields: the kind of page, and the encodings of numbers (plain) and of both levels (RLE).
_DATA_PAGE: Final = 0
_PLAIN_AND_LEVELS: Final = [0, 3, 3]
# Kinds of levels in a page, each after its length in bytes.
_LEVELS: Final = 2
_ZSTD: Final = 6
# Read at once of a page that is not packed: its header and its levels, which most pages have in so much.
_HEAD_BYTES: Final = 2**16


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
    if not _fill(numbers, column.pages, column.unpacked):
        return None
    return schemas.vectors_to_array(numbers, kind.list_size)


def read_into(out: NDArray[Any], file: IO[bytes], chunk: pq.ColumnChunkMetaData) -> bool:
    """Read vectors of a row group, and check their pages; return False if Arrow has to read them.

    Args:
        out: float[rows,m], contiguous, of the type in the file.
        file: a Parquet file.
        chunk: of the column in the row group.

    Raises:
        ArrowException, OSError: a page is damaged.
    """
    if chunk.dictionary_page_offset is not None:
        return False
    at, size = chunk.data_page_offset, chunk.total_compressed_size
    if chunk.compression == "UNCOMPRESSED":
        return _read_plain(out.reshape(-1), file, at, at + size)
    if chunk.compression != "ZSTD":
        return False
    file.seek(at)
    return _fill(out.reshape(-1), memoryview(file.read(size)), chunk.total_uncompressed_size, checked=True)


def _read_plain(numbers: NDArray[Any], file: Any, at: int, end: int) -> bool:
    """Read the numbers of pages that are not packed to where they belong; return False for another form."""
    octets = numbers.view(np.uint8).data
    filled = 0
    while at < end:
        file.seek(at)
        head = memoryview(file.read(min(_HEAD_BYTES, end - at)))
        page = _page(head, 0)
        if page is None or page.checksum is None:
            return False
        first, place = _first_number(page.body), octets[filled : filled + page.count * numbers.itemsize]
        if first > len(page.body) or first + len(place) != page.packed:  # a null has levels but no number
            return False
        held = page.body[first:]
        place[: len(held)] = held
        file.readinto(place[len(held) :])
        _check(page, isal_zlib.crc32(place, isal_zlib.crc32(page.body[:first])))
        filled, at = filled + len(place), at + page.end
    return filled == len(octets)


def _fill(numbers: NDArray[Any], pages: memoryview, most: int, *, checked: bool = False) -> bool:
    """Copy the numbers of pages that unpack to `most` bytes; return False if they have another form."""
    octets = numbers.view(np.uint8)  # numbers of a page are not aligned, and copied one by one as such
    at = filled = 0
    while at < len(pages):
        page = _page(pages, at)
        if page is None or (checked and page.checksum is None):
            return False
        if checked:
            _check(page, isal_zlib.crc32(page.body))
        values = _values(page, most, numbers.itemsize)
        if values is None or filled + len(values) > len(octets):
            return False
        octets[filled : filled + len(values)] = np.frombuffer(values, np.uint8)
        filled, at = filled + len(values), page.end
    return filled == len(octets)


def _check(page: _Page, checksum: int) -> None:
    if page.checksum != checksum:
        raise pa.ArrowInvalid("the checksum of a page is wrong")


@dataclass(frozen=True)
class _Page:
    """A plain page of data.

    Attributes:
        count: number of its levels. It has as many numbers if no list and no number is null.
        unpacked: bytes that it unpacks to.
        packed: bytes of its body.
        checksum: CRC-32 of its body; None for none.
        body: its bytes after the header, so far as they are in memory.
        end: place after it in its column.
    """

    count: int
    unpacked: int
    packed: int
    checksum: int | None
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
    crc = header.get(_CHECKSUM)
    checksum = crc % 2**32 if type(crc) is int else None  # it is written as a signed number
    return _Page(count, unpacked, packed, checksum, pages[start : start + packed], start + packed)


def _values(page: _Page, most: int, size: int) -> memoryview | None:
    """Return the numbers of a packed page, of `size` bytes each.

    None if some are null, or if the page unpacks to more than `most` bytes.
    """
    if page.unpacked > most:
        return None
    content = memoryview(pa.decompress(page.body, page.unpacked, "zstd"))
    start = _first_number(content)
    # A null has levels but no number.
    return content[start:] if len(content) - start == page.count * size else None


def _first_number(content: memoryview) -> int:
    """Return where the numbers of a page begin, after its levels."""
    start = 0
    for _ in range(_LEVELS):
        start += 4 + int.from_bytes(content[start : start + 4], "little")
    return start
