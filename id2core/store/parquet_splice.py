"""Copy columns of Parquet files to another file byte by byte: no value is decoded or encoded.

For each column of a row group, a footer has the place of its pages, their encodings, and their extreme
values. This module reads the footer as a tree and writes it with new places. Everything else that the footer
has of a column stays, even fields that this program does not know. Page indexes and Bloom filters are
elsewhere in a file, and are left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa

from id2core.store import parquet_footers, schemas
from id2core.store.compact_protocol import LIST, LONG, SHORT, STRUCT, Reader, Struct, encode
from id2core.store.parquet_footers import MAGIC, TAIL, FooterError

Buffer = bytes | memoryview
# Fields of structs, by their numbers in `parquet.thrift`.
_SCHEMA, _ROWS, _GROUPS = 2, 3, 4
_NAME, _CHILDREN = 4, 5
_GROUP_COLUMNS, _GROUP_UNPACKED, _GROUP_ROWS, _GROUP_AT, _GROUP_PACKED, _GROUP_NUMBER = 1, 2, 3, 5, 6, 7
_FACTS_AT, _FACTS = 2, 3
_PATH, _CODEC, _UNPACKED = 3, 4, 6
_PAGES_AT: Final = (9, 10, 11)
# Where the Bloom filter of a column is, and its size.
_BLOOM_FILTER: Final = (14, 15)
# Row groups from here on have no ordinal, which is an int16.
_MOST_NUMBERS: Final = 2**15
# Parsed footers that a process keeps, because it reads a file one row group at a time.
_KEPT: Final = 4


@dataclass(frozen=True)
class Column:
    """A leaf column of a row group.

    Attributes:
        name: of the field of the table that it is, or is in.
        facts: its metadata in the footer, with places in the old file.
        at: place of its first page in the old file.
        pages: bytes of all its pages.
    """

    name: str
    facts: Struct
    at: int
    pages: memoryview

    @property
    def unpacked(self) -> int:
        """Bytes that its pages unpack to."""
        return int(self.facts[_UNPACKED][1])

    @property
    def codec(self) -> int:
        """How its pages are packed, by its number in `parquet.thrift`."""
        return int(self.facts[_CODEC][1])

    def placed(self, at: int) -> Struct:
        """Return the footer's metadata of the column with its first page at another place."""
        moved = {
            number: (kind, value + at - self.at if number in _PAGES_AT and value else value)
            for number, (kind, value) in self.facts.items()
            if number not in _BLOOM_FILTER
        }
        return {_FACTS_AT: (LONG, 0), _FACTS: (STRUCT, moved)}


class FooterTree:
    """The footer of a file as a tree that can be written again.

    Attributes:
        fields: field of the table → its nodes in the schema, the node of the field first.
    """

    def __init__(self, data: bytes) -> None:
        """Parse the footer, without its length and the magic.

        Raises:
            FooterError: it is damaged.
        """
        self.places = parquet_footers.parse(data)
        self._tree = Reader(data).whole_struct()  # `parse` has read over all of it
        self.fields = _fields(self._tree)

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Return the first and last byte of each row group, with what lies before it.

        The last row group ends with the file, so together they are the whole file.

        Args:
            size: of the file, in bytes.

        Raises:
            FooterError: the row groups are not one after another.
        """
        spans, at = [], 0
        for number, group in enumerate(self.places.groups, 1):
            first = min((chunk.at for chunk in group.chunks), default=at)
            end = max((chunk.end for chunk in group.chunks), default=at)
            if not at <= first <= end <= size:
                raise FooterError(f"row group {number} lies at bytes {first} to {end}, after byte {at}")
            end = size if number == len(self.places.groups) else end
            spans.append((at, end))
            at = end
        return spans

    def columns(self, group: int, data: memoryview, at: int) -> list[Column]:
        """Return the columns of a row group.

        Args:
            group: its number, from 0.
            data: the file from the place `at` to the end of the row group, or beyond.
            at: place of the first byte of `data`.
        """
        columns = []
        held = self._tree[_GROUPS][1][1][group][_GROUP_COLUMNS][1][1]
        for described, chunk in zip(held, self.places.groups[group].chunks, strict=True):
            facts = described[_FACTS][1]
            name = facts[_PATH][1][1][0].decode()
            columns.append(Column(name, facts, chunk.at, data[chunk.at - at : chunk.end - at]))
        return columns

    def encode(self, groups: list[Struct]) -> bytes:
        """Return the bytes of the footer with other row groups."""
        rows = sum(group[_GROUP_ROWS][1] for group in groups)
        changed = {_ROWS: (LONG, rows), _GROUPS: (LIST, (STRUCT, groups))}
        return encode(dict(sorted((self._tree | changed).items())))


@lru_cache(_KEPT)
def parse(data: bytes) -> FooterTree:
    """Parse a footer, see `FooterTree`."""
    return FooterTree(data)


def _fields(tree: Struct) -> dict[str, list[Struct]]:
    nodes = iter(tree[_SCHEMA][1][1])

    def below(node: Struct) -> Iterator[Struct]:
        yield node
        for _ in range(node.get(_CHILDREN, (0, 0))[1]):
            yield from below(next(nodes))

    root = next(nodes)
    fields = [list(below(next(nodes))) for _ in range(root[_CHILDREN][1])]
    return {nodes_of[0][_NAME][1].decode(): nodes_of for nodes_of in fields}


class Writer:
    """Writes a Parquet file from columns of other files."""

    def __init__(self, write: Callable[[Buffer], object], footer: FooterTree) -> None:
        """Begin the file.

        Args:
            write: takes the bytes of the file in their order.
            footer: of a file with the same schema and metadata, see `empty`.
        """
        self._take, self._footer = write, footer
        self._groups: list[Struct] = []
        self._at = 0
        self._write(MAGIC)

    def write_group(self, rows: int, columns: list[Column]) -> None:
        """Write a row group. The columns may be in any order."""
        order = {name: number for number, name in enumerate(self._footer.fields)}
        columns = sorted(columns, key=lambda column: order[column.name])
        first, placed = self._at, []
        for column in columns:
            placed.append(column.placed(self._at))
            self._write(column.pages)
        group: dict[int, tuple[int, Any]] = {
            _GROUP_COLUMNS: (LIST, (STRUCT, placed)),
            _GROUP_UNPACKED: (LONG, sum(column.unpacked for column in columns)),
            _GROUP_ROWS: (LONG, rows),
            _GROUP_AT: (LONG, first),
            _GROUP_PACKED: (LONG, self._at - first),
        }
        if (number := len(self._groups)) < _MOST_NUMBERS:
            group[_GROUP_NUMBER] = (SHORT, number)
        self._groups.append(group)

    def close(self) -> bytes:
        """Write the footer, its length, and the magic; return them."""
        footer = self._footer.encode(self._groups)
        end = footer + len(footer).to_bytes(4, "little") + MAGIC
        self._write(end)
        return end

    def _write(self, data: Buffer) -> None:
        self._take(data)
        self._at += len(data)


def alone(footer: FooterTree, rows: int, columns: list[Column]) -> memoryview:
    """Return a row group as a file of its own. `footer` is the footer of its file."""
    file = io.BytesIO()
    writer = Writer(file.write, footer)
    writer.write_group(rows, columns)
    writer.close()
    return file.getbuffer()


def empty(schema: pa.Schema) -> FooterTree:
    """Return the footer that this program writes for a file without rows."""
    return _footer_of(_file_of(schema.empty_table()))


def encoded(table: pa.Table) -> list[Column]:
    """Return the columns of a table, which has rows, as this program writes them into one row group."""
    data = _file_of(table)
    return _footer_of(data).columns(0, data, 0)


def _file_of(table: pa.Table) -> memoryview:
    file = io.BytesIO()
    with schemas.parquet_writer(file, table.schema) as writer:
        if len(table):
            writer.write_table(table, row_group_size=len(table))
    return file.getbuffer()


def _footer_of(data: memoryview) -> FooterTree:
    length = int.from_bytes(data[-TAIL : -len(MAGIC)], "little")
    return FooterTree(bytes(data[-TAIL - length : -TAIL]))
