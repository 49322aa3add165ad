"""The footer of a Parquet file of anybody's: where its columns are, and what they claim to take.

Arrow reads footers, too, but ends the process where it is asked for a column whose description it dislikes,
for example one that is encrypted. So nothing is asked of it that is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from id2core.store.compact_protocol import LIST, LONG, STRUCT, CompactError, Reader

# What a Parquet file begins and ends with; before the end, four bytes are the length of the footer.
MAGIC: Final = b"PAR1"
TAIL: Final = 4 + len(MAGIC)
# Fields of structs, by their numbers in `parquet.thrift`.
_FILE_ROWS, _FILE_GROUPS = 3, 4
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3
_CHUNK_METADATA, _CHUNK_CRYPTO = 3, (8, 9)
_UNPACKED, _PACKED, _DATA_AT, _DICTIONARY_AT = 6, 7, 9, 11
# Footers that a process keeps: a worker opens a file once for each row group.
_KEPT: Final = 4


class FooterError(Exception):
    """A footer is damaged."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group.

    Attributes:
        unpacked, packed: bytes of its pages, with their headers.
        data_at: place of its first page with rows.
        dictionary_at: place of its dictionary; 0 for none.
        is_encrypted: whether it cannot be read without a key.
    """

    unpacked: int
    packed: int
    data_at: int
    dictionary_at: int
    is_encrypted: bool

    @property
    def at(self) -> int:
        """Place of its first page."""
        return self.dictionary_at if 0 < self.dictionary_at < self.data_at else self.data_at

    @property
    def end(self) -> int:
        """Place behind its last page."""
        return self.at + self.packed


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group: its rows, and its leaf columns in the order of the schema."""

    rows: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Footer:
    """What a footer says: rows of the file, and its row groups."""

    rows: int
    groups: tuple[RowGroup, ...]


@lru_cache(_KEPT)
def parse(data: bytes) -> Footer:
    """Return what a footer says.

    Raises:
        FooterError: it is damaged.
    """
    reader = Reader(data)
    rows, groups = 0, None
    try:
        for field, kind in reader.fields():
            if field == _FILE_GROUPS and kind == LIST:
                if groups is not None:
                    raise CompactError("row groups are there twice")
                groups = tuple(_group(reader) for _ in range(reader.structs()))
            elif field == _FILE_ROWS and kind == LONG:
                rows = _count(reader.integer())
            else:
                reader.skip(kind)
    except IndexError:
        raise FooterError("the footer is cut off") from None
    except CompactError as error:
        raise FooterError(f"the footer is damaged: {error}") from None
    return Footer(rows, groups or ())


def _group(reader: Reader) -> RowGroup:
    rows, chunks = 0, None
    for field, kind in reader.fields():
        if field == _GROUP_COLUMNS and kind == LIST:
            if chunks is not None:
                raise CompactError("columns are there twice")
            chunks = tuple(_chunk(reader) for _ in range(reader.structs()))
        elif field == _GROUP_ROWS and kind == LONG:
            rows = _count(reader.integer())
        else:
            reader.skip(kind)
    return RowGroup(rows, chunks or ())


def _chunk(reader: Reader) -> Chunk:
    facts: dict[int, Any] | None = None
    is_encrypted = False
    for field, kind in reader.fields():
        is_encrypted |= field in _CHUNK_CRYPTO
        if field == _CHUNK_METADATA and kind == STRUCT:
            if facts is not None:
                raise CompactError("the description of a column is there twice")
            facts = _numbers(reader)
        else:
            reader.skip(kind)
    facts = facts or {}
    unpacked, packed, data_at, dictionary_at = (
        _count(facts.get(number, 0)) for number in (_UNPACKED, _PACKED, _DATA_AT, _DICTIONARY_AT)
    )
    return Chunk(unpacked, packed, data_at, dictionary_at, is_encrypted)


def _numbers(reader: Reader) -> dict[int, int]:
    """Read the numbers of 64 bits in a struct; Arrow, too, takes no others for what is wanted here."""
    numbers: dict[int, int] = {}
    for field, kind in reader.fields():
        if kind != LONG:
            reader.skip(kind)
        elif field in numbers:
            raise CompactError(f"field {field} is there twice")
        else:
            numbers[field] = reader.integer()
    return numbers


def _count(value: int) -> int:
    if value < 0:
        raise CompactError(f"a count or place of {value}")
    return value
