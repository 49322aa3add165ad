"""Reads what PNG and ISO media files (AVIF, HEIF) say beside their pixels: chunks and boxes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from PIL import Image

_PNG_START: Final = 8


class UnsupportedError(ValueError):
    """A picture may be whole, but nothing here can read its kind."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises DecompressionBombError above `max_pixels`, and ValueError where there is no pixel."""
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise Image.DecompressionBombError(f"{width}x{height}, limit {max_pixels} pixels")


class Chunk(NamedTuple):
    """A PNG chunk: its name, where its body lies, and where the next chunk begins."""

    name: bytes
    body: int
    length: int
    end: int


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Yields the whole chunks of a PNG in order, up to IEND or the first that is cut off."""
    at = _PNG_START
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            return
        yield Chunk(name, at + 8, length, end)
        if name == b"IEND":
            return
        at = end


# Everything else in a PNG is for other readers: text of any size, previews, the frames of an
# animation. Colors are read from the file as it is.
_NEEDED: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))


def without_extras(data: bytes) -> bytes:
    """Drops from a PNG all chunks that its still picture does not need; the rest stays as it is."""
    view, kept, start, last = memoryview(data), [], 0, _PNG_START
    for chunk in png_chunks(data):
        if chunk.name not in _NEEDED:
            kept.append(view[start:last])
            start = chunk.end
        last = chunk.end
    if not kept:
        return data
    # What follows the last whole chunk tells the decoder that a file was cut off.
    return b"".join((*kept, view[start:]))


class Box(NamedTuple):
    """A box of an ISO media file: its name and where its body begins and ends."""

    name: bytes
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yields the boxes that lie side by side in `data[start:end]`."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if length == 1 and body + 8 <= end:  # the length follows the name, in 64 bits
            length, body = int.from_bytes(data[body : body + 8], "big"), body + 8
        stop = end if length == 0 else start + length
        if not body <= stop <= end:
            return
        yield Box(name, body, stop)
        start = stop


def _child(data: bytes, parent: Box, name: bytes, skipped: int = 0) -> Box:
    """The first box of that name; StopIteration where there is none."""
    return next(box for box in boxes(data, parent.body + skipped, parent.end) if box.name == name)


@dataclass(frozen=True)
class Coding:
    """How the main picture of an AVIF or HEIF is coded.

    Attributes:
        primaries, transfer: code points of ITU-T H.273; None where the file has no nclx box.
        bits: of a sample.
    """

    primaries: int | None = None
    transfer: int | None = None
    bits: int = 8


def coding(data: bytes) -> Coding:
    """Reads how the main picture of an AVIF or HEIF is coded; the defaults stand for what is unclear."""
    found = Coding()
    try:
        for name, body in _properties(data):
            if name == b"colr" and body[:4] == b"nclx" and found.primaries is None:
                primaries, transfer = struct.unpack_from(">HH", body, 4)
                found = replace(found, primaries=primaries, transfer=transfer)
            elif name == b"pixi":
                found = replace(found, bits=body[5])
    except (StopIteration, struct.error, IndexError):
        pass
    return found


def codec(data: bytes) -> str:
    """Reads what an AVIF's or HEIF's main picture is coded with, `hvc1` for example; empty where unclear."""
    try:
        meta, main = _main_item(data)
        items = _child(data, meta, b"iinf", 4)
        for box in boxes(data, items.body + (8 if data[items.body] else 6), items.end):
            wide = data[box.body] > 2
            form = ">Ixx4s" if wide else ">Hxx4s"
            number, kind = struct.unpack_from(form, data, box.body + 4)
            if number == main:
                return str(kind, "latin-1")
    except (StopIteration, struct.error, IndexError):
        pass
    return ""


def _main_item(data: bytes) -> tuple[Box, int]:
    """The box that describes the items, and the number of the main one."""
    meta = next(box for box in boxes(data) if box.name == b"meta")
    primary = _child(data, meta, b"pitm", 4)
    wide = data[primary.body] > 0
    return meta, int.from_bytes(data[primary.body + 4 : primary.body + (8 if wide else 6)], "big")


def _properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the properties of the main picture: their names, and their first bytes."""
    meta, main = _main_item(data)
    properties = _child(data, meta, b"iprp", 4)
    shared = list(boxes(data, *_child(data, properties, b"ipco")[1:]))
    for index in _properties_of(main, data, _child(data, properties, b"ipma")):
        if 0 < index <= len(shared):
            box = shared[index - 1]
            yield box.name, data[box.body : min(box.end, box.body + 16)]


def _properties_of(item: int, data: bytes, links: Box) -> list[int]:
    """The numbers, from 1, of an item's properties."""
    version, wide = data[links.body], data[links.body + 3] & 1
    name = ">I" if version else ">H"
    count = int.from_bytes(data[links.body + 4 : links.body + 8], "big")
    at = links.body + 8
    for _ in range(count):
        if at >= links.end:
            break
        (found,) = struct.unpack_from(name, data, at)
        at += struct.calcsize(name)
        numbers = struct.unpack_from(f">{data[at]}{'H' if wide else 'B'}", data, at + 1)
        at += 1 + len(numbers) * (2 if wide else 1)
        if found == item:
            return [number & (0x7FFF if wide else 0x7F) for number in numbers]
    return []
