"""Small files that cost far more than they should, made in code. Keys are file names."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

from tests.broken import encode, png_chunk

# Its square is just below the default limit of pixels.
SIDE = 13_377
MIB = 1 << 20


def deflated_zeros(count: int, container: int = zlib.MAX_WBITS) -> bytes:
    """Zeros packed as zlib does at level 9, at once: one block of them again and again.

    A `container` of MAX_WBITS is a zlib stream, of MAX_WBITS | 16 a gzip file.
    """
    block = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    many = block.compress(bytes(MIB)) + block.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = many * (count // MIB) + rest.compress(bytes(count % MIB)) + rest.flush()
    if container == zlib.MAX_WBITS:
        return b"\x78\xda" + body + struct.pack(">HH", count % 65521, 1)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + struct.pack("<II", zlib.crc32(bytes(count)), count)


def flat_png(size: tuple[int, int], depth: int, color: int, before: bytes = b"") -> bytes:
    """A PNG of zeros; `before` are chunks ahead of the pixels."""
    samples = {0: 1, 2: 3, 6: 4}[color]
    line = 1 + size[0] * samples * depth // 8
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            before,
            png_chunk(b"IDAT", deflated_zeros(line * size[1])),
            png_chunk(b"IEND", b""),
        )
    )


def flat_webp(width: int, height: int) -> bytes:
    """A lossless WebP in which no pixel takes a bit: each of its five Huffman codes has one symbol."""
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 7)] + [(1, 1), (0, 2), (0, 1)] * 5
    value = length = 0
    for number, bits in fields:
        value, length = value | number << length, length + bits
    body = value.to_bytes(-(-length // 8) + 4, "little")
    body += bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def dot_gif(width: int, height: int, extensions: bytes = b"") -> bytes:
    """A GIF whose only frame is one pixel of its canvas."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0;"
    return screen + extensions + b"!\xf9\4\1\0\0\0\0" + frame


def shared_directory(tags: int, size: int, order: str = "<", big: bool = False) -> bytes:
    """A gray TIFF of 16×16 with many more tags that all have one block for their value."""
    head, word = (16, "Q") if big else (8, "I")
    block = head + 256
    entries = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, head), (277, 3, 1, 1), (278, 3, 1, 16), (279, 4, 1, 256)]
    entries += [(1000 + i, 7, size, block) for i in range(tags)]
    rows = b"".join(_entry(order, word, *entry) for entry in entries)
    start = struct.pack(
        order + ("HHHHQ" if big else "HHI"), *_magic(order), *((43, 8, 0) if big else (42,)), block + size
    )
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return start + b"\x55" * 256 + b"A" * size + count + rows + bytes(struct.calcsize(word))


def _magic(order: str) -> tuple[int]:
    return (0x4949 if order == "<" else 0x4D4D,)


def _entry(order: str, word: str, tag: int, type_: int, count: int, value: int) -> bytes:
    room = struct.calcsize(order + word)
    small = struct.pack(order + "H", value).ljust(room, b"\0") if (type_, count) == (3, 1) else None
    return struct.pack(order + "HH" + word, tag, type_, count) + (small or struct.pack(order + word, value))


def scans_jpeg(side: int, scans: int) -> bytes:
    """A flat gray progressive JPEG: one scan of averages, then very many that are empty."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body

    blocks = (-(-side // 8)) ** 2
    frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    head = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    head += segment(0xC4, b"\0\1" + bytes(16)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    averages = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    empty = segment(0xDA, b"\1\1\0\1\x3f\0") + bytes((blocks // 16384 + 1) * 15 // 8 + 1)
    return b"\xff\xd8" + head + averages + empty * scans + b"\xff\xd9"


@cache
def _shared() -> bytes:
    return shared_directory(1000, 1 << 18)


@cache
def _page() -> bytes:
    return deflated_zeros(200_000_000)


def _small(format: str, exif: bytes) -> bytes:
    return encode(Image.new("RGB", (64, 64), "teal"), format, exif=exif)


def _chunks(name: bytes, body: bytes, count: int = 1) -> bytes:
    return flat_png((64, 64), 8, 2, png_chunk(name, body) * count)


# File name → what makes its bytes, at most 1 MB.
BOMBS: dict[str, Callable[[], bytes]] = {
    "directory.tif": _shared,
    "big_endian_directory.tif": lambda: shared_directory(1000, 1 << 18, ">"),
    "bigtiff_directory.tif": lambda: shared_directory(1000, 1 << 18, big=True),
    "many_tags.tif": lambda: shared_directory(30_000, 100_000),
    "exif.png": lambda: _chunks(b"eXIf", _shared()),
    "exif.webp": lambda: _small("WEBP", b"Exif\0\0" + _shared()),
    "exif.avif": lambda: _small("AVIF", _shared()),
    "many_comments.gif": lambda: dot_gif(64, 64, b"!\xfe\1a\0" * 200_000),
    "long_comment.gif": lambda: dot_gif(64, 64, b"!\xfe" + b"\1a" * 400_000 + b"\0"),
    "many_texts.png": lambda: _chunks(b"tEXt", b"a\0b", 60_000),
    "profile.png": lambda: _chunks(b"iCCP", b"x\0\0" + _page()),
    "text.png": lambda: _chunks(b"iTXt", b"x\0\1\0\0\0" + _page()),
    "many_empty_chunks.png": lambda: _chunks(b"IDAT", b"", 60_000),
    "flat.webp": lambda: flat_webp(16_383, 10_900),
    "dot.gif": lambda: dot_gif(SIDE, SIDE),
    "rgba.png": lambda: flat_png((SIDE, SIDE), 8, 6),
    "rgba_16_bit.png": lambda: flat_png((9000, 9000), 16, 6),
    "tall.png": lambda: flat_png((1, 178_000_000), 8, 0),
    "flat.tif": lambda: encode(Image.new("1", (SIDE, SIDE)), "TIFF", compression="group4"),
    "scans.jpg": lambda: scans_jpeg(13_000, 1000),
    "fewer_scans.jpg": lambda: scans_jpeg(13_000, 95),
}
