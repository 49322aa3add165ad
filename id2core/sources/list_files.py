"""Records of a list of URIs: text, CSV or Parquet, in bounded memory; a bad line is a record with a fault."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import IO, Any, Final

from id2core.errors import StorageError
from id2core.sources.base import ShardUnreadableError
from id2core.sources.parquet_rows import RowFile

# Of a line with its fields, and of a record of several lines.
LINE_BYTES: Final = 64 << 10
_RECORD_LINES: Final = 64
_CHUNK: Final = 1 << 16
_BOM: Final = b"\xef\xbb\xbf"
URI, GENERATION = "uri", "generation"


@dataclass(frozen=True)
class Record:
    """What one line of a list says.

    Attributes:
        number: of the line or row, from 1.
        uri: as it is written.
        generation: that the list pins; empty for the present one.
        fields: what else the line has; None for nothing.
        fault: why the line cannot be read; empty where it can.
    """

    number: int
    uri: str = ""
    generation: str = ""
    fields: dict[str, Any] | None = None
    fault: str = ""


def read_text(file: IO[bytes]) -> Iterator[Record]:
    """Yield a record a line; blank lines are none."""
    for number, line in _lines(file):
        text = _decoded(line)
        if text is None:
            yield Record(number, fault=_UNREADABLE)
        elif text.strip():
            yield Record(number, text.strip())


def read_csv(file: IO[bytes]) -> Iterator[Record]:
    """Yield a record a row of a CSV file whose header names a column `uri`.

    Raises:
        StorageError: it has no such header.
    """
    rows = _csv_rows(_lines(file))
    _, header = next(rows, (0, None))
    names = [name.strip() for name in header or []]
    if URI not in names or len(set(names)) != len(names):
        raise StorageError(f"its header is {str(names)[:200]}: it needs one column {URI}, and no name twice")
    for number, values in rows:
        if values is None or len(values) != len(names):
            yield Record(number, fault=f"{_UNREADABLE}, or has not {len(names)} values")
        else:
            yield _record(number, dict(zip(names, values, strict=True)))


def read_parquet(file: IO[bytes]) -> Iterator[Record]:
    """Yield a record a row of a Parquet file with a column `uri`.

    Raises:
        StorageError: it has none, or is damaged.
    """
    try:
        rows = RowFile(file)
        if URI not in rows.columns:
            raise StorageError(f"its flat columns are {str(rows.columns)[:200]}: it needs one named {URI}")
        numbers = count(1)
        for group in range(len(rows.groups)):
            for values in rows.rows(group, rows.columns):
                yield _record(next(numbers), values)
    except ShardUnreadableError as error:
        raise StorageError(str(error)) from None


# Suffix → reader; any other file is text.
READERS: Final[dict[str, Callable[[IO[bytes]], Iterator[Record]]]] = {
    ".csv": read_csv,
    ".parquet": read_parquet,
}
_UNREADABLE: Final = f"it is no UTF-8, has a NUL, an open quote, or more than {LINE_BYTES} bytes"


def _record(number: int, values: dict[str, Any]) -> Record:
    uri, generation = (str(values.pop(name, None) or "").strip() for name in (URI, GENERATION))
    fields = {name: value for name, value in values.items() if value not in (None, "")}
    return Record(number, uri, generation, fields or None)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield lines with their numbers; None for one that is too long, of which no more than that is held."""
    numbers = count(1)
    rest, too_long = file.read(len(_BOM)).removeprefix(_BOM), False
    while chunk := file.read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield next(numbers), None if too_long or len(line) > LINE_BYTES else line
            too_long = False
        if len(rest) > LINE_BYTES:
            rest, too_long = b"", True
    if rest or too_long:
        yield from ((next(numbers), None if too_long else line) for line in rest.split(b"\n"))


def _decoded(line: bytes | None) -> str | None:
    if line is None or b"\0" in line:
        return None
    try:
        return line.decode().rstrip("\r")
    except UnicodeDecodeError:
        return None


def _csv_rows(lines: Iterator[tuple[int, bytes | None]]) -> Iterator[tuple[int, list[str] | None]]:
    """Yield rows with the numbers of their first lines; None for a line that is no row.

    A row may go on over some lines within quotes. A quote that is not closed costs its own line: the lines
    behind it are read again.
    """
    ahead: deque[tuple[int, bytes | None]] = deque()

    def take() -> tuple[int, bytes | None] | None:
        return ahead.popleft() if ahead else next(lines, None)

    while first := take():
        taken = [first]
        while _is_open(taken) and (following := take()):
            taken.append(following)
        row = _parsed([_decoded(line) for _, line in taken])
        if row is None:
            ahead.extendleft(reversed(taken[1:]))
        if row != []:
            yield first[0], row


def _is_open(taken: list[tuple[int, bytes | None]]) -> bool:
    """Whether a row is not at its end: a quote is open, and there is room."""
    texts = [line for _, line in taken if line is not None]
    if len(texts) < len(taken) or len(texts) >= _RECORD_LINES or sum(map(len, texts)) > LINE_BYTES:
        return False
    return sum(text.count(b'"') for text in texts) % 2 == 1


def _parsed(texts: list[str | None]) -> list[str] | None:
    """Return the row that lines are, an empty one for a blank line, None for no row."""
    whole = [text for text in texts if text is not None]
    if len(whole) < len(texts):
        return None
    try:
        rows = list(csv.reader([f"{text}\n" for text in whole], strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
