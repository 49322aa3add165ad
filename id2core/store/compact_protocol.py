"""Thrift's compact protocol, as far as headers of Parquet files use it, read from anybody's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

# Types of values: those of a fixed size, where a truth is its type, and others.
_FIXED: Final = {1: 0, 2: 0, 3: 1, 7: 8}
_TRUE, _FALSE, _BYTE = 1, 2, 3
INTEGERS: Final = (4, 5, 6)
LONG: Final = 6
BINARY, LIST, _SET, STRUCT = 8, 9, 10, 12
# Structs and lists in each other; those that the format has are fewer.
_MAX_DEPTH: Final = 16


class CompactError(Exception):
    """Bytes that are no such structs, or none that an honest file has."""


class Reader:
    """Reads values of the protocol.

    Every method raises IndexError at the end of the data, and CompactError for what cannot be.

    Attributes:
        at: place of the next byte.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and type of each field of a struct; its value is to be read or skipped in between."""
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self.integer()
            yield field, kind

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct that are numbers, truths and structs; others are skipped."""
        _check_depth(depth)
        values: dict[int, Any] = {}
        for field, kind in self.fields():
            if kind in (_TRUE, _FALSE):
                values[field] = kind == _TRUE
            elif kind in INTEGERS:
                values[field] = self.integer()
            elif kind == STRUCT:
                values[field] = self.struct(depth + 1)
            else:
                self.skip(kind, depth)
        return values

    def structs(self) -> int:
        """Read the head of a list of structs; return how many there are."""
        kind, count = self._list()
        if kind != STRUCT:
            raise CompactError(f"a list of type {kind} is where structs are")
        return count

    def skip(self, kind: int, depth: int = 0) -> None:
        """Read over a value."""
        _check_depth(depth)
        if kind in _FIXED:
            self._advance(_FIXED[kind])
        elif kind in INTEGERS:
            self._varint()
        elif kind == BINARY:
            self._advance(self._varint())
        elif kind in (LIST, _SET):
            held, count = self._list()
            held = _BYTE if held in (_TRUE, _FALSE) else held  # in a list, a truth is a byte
            for _ in range(count):
                self.skip(held, depth + 1)
        elif kind == STRUCT:
            for _, field_kind in self.fields():
                self.skip(field_kind, depth + 1)
        else:
            raise CompactError(f"a field is of type {kind}")

    def integer(self) -> int:
        """Read a number with a sign."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4
        count = self._varint() if count == 15 else count
        if count > len(self._data):
            raise CompactError(f"a list of {count} values in {len(self._data)} bytes")
        return head & 15, count

    def _advance(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise CompactError("a number of more than 64 bits")


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise CompactError(f"nested deeper than {_MAX_DEPTH} levels")
