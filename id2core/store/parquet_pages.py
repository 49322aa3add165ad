"""What the pages of a Parquet column unpack to, read from their headers before a byte is unpacked.

The footer says how large a column is, but nothing holds a writer to it. A decoder allocates what each page's
header says, and no more.
"""

from __future__ import annotations

import os
from typing import IO, Any, Final

from id2core.store.compact_protocol import CompactError, Reader
from id2core.store.parquet_footers import Chunk

# Headers hold statistics, at most some kB; most are smaller than the first of these.
_WINDOWS: Final = (1 << 9, 1 << 16, 1 << 20)
# More pages of a column in a row group than any writer makes; each costs time.
MAX_PAGES: Final = 100_000
_DICTIONARY_PAGE: Final = 2
# Bytes of a value lie in the page once, or in the dictionary once. DELTA_BYTE_ARRAY is left out: each of its
# values may repeat the one before for nothing.
_PLAIN, _PLAIN_DICTIONARY, _RLE, _BIT_PACKED = 0, 2, 3, 4
_DELTA_BINARY_PACKED, _DELTA_LENGTH_BYTE_ARRAY, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 5, 6, 8, 9
_BOUNDED: Final = frozenset(
    {
        _PLAIN,
        _PLAIN_DICTIONARY,
        _RLE,
        _BIT_PACKED,
        _DELTA_BINARY_PACKED,
        _DELTA_LENGTH_BYTE_ARRAY,
        _RLE_DICTIONARY,
        _BYTE_STREAM_SPLIT,
    }
)


class PageError(Exception):
    """Pages are damaged, or unpack to more than they may."""


def check_chunk(file: IO[bytes], chunk: Chunk, most: int) -> bool:
    """Return whether a column of a row group has a dictionary, once its pages are seen to be bounded.

    Args:
        file: the Parquet file.
        chunk: the column, as the footer describes it.
        most: bytes that all its pages together may unpack to.

    Raises:
        PageError: they unpack to more, or are no pages.
    """
    at, end = chunk.at, chunk.end
    size = file.seek(0, os.SEEK_END)
    if not 0 <= at <= end <= size:
        raise PageError(f"a column lies at bytes {at} to {end} of {size}")
    total, pages, has_dictionary = 0, 0, False
    while at < end:
        page, length = _read_header(file, at, end)
        is_dictionary, unpacked, packed = _facts(page)
        has_dictionary |= is_dictionary
        total, pages, at = total + unpacked, pages + 1, at + length + packed
        if total > most or pages > MAX_PAGES:
            raise PageError(f"its pages unpack to more than {most} bytes, or are more than {MAX_PAGES}")
    return has_dictionary


def _facts(page: dict[int, Any]) -> tuple[bool, int, int]:
    """Return whether a page is a dictionary, its unpacked and its packed size."""
    kind, unpacked, packed = (page.get(field) for field in (1, 2, 3))
    if not all(isinstance(number, int) and number >= 0 for number in (kind, unpacked, packed)):
        raise PageError("a page has no size, or a negative one")
    # Fields 5, 7 and 8: headers of a data page, a dictionary and a data page of version 2.
    for field, encoding in ((5, 2), (7, 2), (8, 4)):
        if field not in page:
            continue
        head = page[field]
        found = head.get(encoding) if isinstance(head, dict) else None
        if found not in _BOUNDED:
            raise PageError(f"a page has the encoding {found}, which has no bound")
    return kind == _DICTIONARY_PAGE, int(unpacked or 0), int(packed or 0)


def _read_header(file: IO[bytes], at: int, end: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the page header at a place, and its length."""
    for window in _WINDOWS:
        file.seek(at)
        data = file.read(min(window, end - at))
        reader = Reader(data)
        try:
            return reader.struct(), reader.at
        except CompactError as error:
            raise PageError(f"a page header is damaged: {error}") from None
        except IndexError:
            if len(data) < window:
                break
    raise PageError("a page has no header, or one of more than 1 MiB")
