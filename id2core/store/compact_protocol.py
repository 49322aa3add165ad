"""Thrift's compact protocol, as far as Parquet files use it: read from anybody's bytes, and written again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

# Types of values: those of a fixed size, where a truth is its type, and others.
_FIXED: Final = {1: 0, 2: 0, 3: 1, 7: 8}
_TRUE, _FALSE, _BYTE = 1, 2, 3
INTEGERS: Final = (4, 5, 6)
SHORT, LONG = 4, 6
BINARY, LIST, _SET, STRUCT = 8, 9, 10, 12
# Structs and lists in each other; those that the format has are fewer.
_MAX_DEPTH: Final = 16
# A list of so many values has their count behind its head.
_LONG_LIST: Final = 15
# A whole struct: number of a field → type and value, in the order in which they are written. A value is a
# number, a struct, the bytes of a text or of what has a fixed size, or a list: a type, and values of it.
Struct = dict[int, tuple[int, Any]]


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

    def whole_struct(self, depth: int = 0) -> Struct:
        """Return a struct with everything in it, as `encode` takes it."""
        _check_depth(depth)
        return {field: (kind, self._value(kind, depth)) for field, kind in self.fields()}

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

    def _value(self, kind: int, depth: int) -> Any:
        _check_depth(depth)
        if kind in INTEGERS:
            return self.integer()
        if kind == STRUCT:
            return self.whole_struct(depth + 1)
        if kind in (LIST, _SET):
            held, count = self._list()
            return held, [self._value(held, depth + 1) for _ in range(count)]
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind not in _FIXED:
            raise CompactError(f"a field is of type {kind}")
        return self._bytes(_FIXED[kind])

    def _list(self) -> tuple[int, int]:
        """Read the head of a list; return the type of its values, and how many there are."""
        head = self._byte()
        count = head >> 4
        count = self._varint() if count == _LONG_LIST else count
        if count > len(self._data):
            raise CompactError(f"a list of {count} values in {len(self._data)} bytes")
        kind = head & 15
        return _BYTE if kind in (_TRUE, _FALSE) else kind, count  # in a list, a truth is a byte

    def _bytes(self, length: int) -> bytes:
        self._advance(length)
        return self._data[self.at - length : self.at]

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


def encode(struct: Struct) -> bytes:
    """Return the bytes of a struct."""
    out = bytearray()
    _write(out, STRUCT, struct)
    return bytes(out)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in INTEGERS:
        _write_varint(out, value * 2 if value >= 0 else -value * 2 - 1)
    elif kind == STRUCT:
        last = 0
        for field, (held, inner) in value.items():
            _write_head(out, field, held, last)
            _write(out, held, inner)
            last = field
        out.append(0)
    elif kind in (LIST, _SET):
        held, values = value
        out.append(min(len(values), _LONG_LIST) << 4 | held)
        if len(values) >= _LONG_LIST:
            _write_varint(out, len(values))
        for inner in values:
            _write(out, held, inner)
    else:
        if kind == BINARY:
            _write_varint(out, len(value))
        out += value


def _write_head(out: bytearray, field: int, kind: int, last: int) -> None:
    """Write number and type of the field that comes after field `last`."""
    if 0 < field - last < 16:
        out.append((field - last) << 4 | kind)
    else:
        out.append(kind)
        _write(out, SHORT, field)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise CompactError(f"nested deeper than {_MAX_DEPTH} levels")
