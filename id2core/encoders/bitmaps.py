"""BMP files that Pillow refuses or shows wrong: run-length encoding and color masks of any layout."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from id2core.encoders import budget
from id2core.encoders.containers import UnsupportedError, check_size

_RLE8, _RLE4, _MASKED, _MASKED_WITH_ALPHA = 1, 2, 3, 6
_OTHERS: Final = {4: "JPEG", 5: "PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
_FILE_HEADER: Final = 14
_OS2: Final = 64
_EMBEDDED: Final = 0x4D424544


@dataclass(frozen=True)
class Header:
    """What a BMP's headers say.

    Attributes:
        start: where the pixels begin.
        size: bytes of the second header.
        width, height: in pixels.
        top_down: the first line stored is the uppermost.
        bits: of a pixel.
        compression: Windows' code for it.
        colors: entries of the palette, 0 for as many as `bits` allow.
    """

    start: int
    size: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    colors: int


def header(data: bytes) -> Header | None:
    """Reads the headers; None where they are cut off or of the oldest kind, which has no compression."""
    if len(data) < _FILE_HEADER + 40:
        return None
    start, size, width, height = struct.unpack_from("<IIii", data, 10)
    bits, compression = struct.unpack_from("<HI", data, 28)
    (colors,) = struct.unpack_from("<I", data, 46)
    if size < 40:
        return None
    return Header(start, size, width, abs(height), height < 0, bits, compression, colors)


def profile(data: bytes) -> bytes:
    """The ICC profile that a header of version 5 points at; empty where there is none."""
    if len(data) < _FILE_HEADER + 124 or data[_FILE_HEADER] != 124:
        return b""
    (space,) = struct.unpack_from("<I", data, _FILE_HEADER + 56)
    start, length = struct.unpack_from("<II", data, _FILE_HEADER + 112)
    return data[_FILE_HEADER + start : _FILE_HEADER + start + length] if space == _EMBEDDED else b""


def read(data: bytes, max_pixels: int) -> Image.Image | None:
    """Decodes a picture to P, RGB or RGBA; None where Pillow reads it right.

    Raises:
        UnsupportedError: its compression or depth is not among those known here.
        Exception: the file is damaged or too large.
    """
    found = header(data)
    if found is None or found.compression == 0:
        return None
    check_size(found.width, found.height, max_pixels)
    budget.admit(found.width * found.height)
    if found.size == _OS2 and found.compression > _RLE4:
        raise UnsupportedError(f"compression {found.compression} of OS/2 in BMP")
    if (found.compression, found.bits) in ((_RLE8, 8), (_RLE4, 4)):
        return _run_lengths(data, found)
    if found.compression in (_MASKED, _MASKED_WITH_ALPHA) and found.bits in (16, 24, 32):
        return _masked(data, found)
    name = _OTHERS.get(found.compression, f"compression {found.compression}")
    raise UnsupportedError(f"{name} of {found.bits} bit in BMP")


# --- run lengths ----------------------------------------------------------------------------------


def _run_lengths(data: bytes, found: Header) -> Image.Image:
    indices = _Runs(data, found).decode()
    lines = np.frombuffer(indices, np.uint8).reshape(found.height, found.width)
    image = Image.fromarray(lines if found.top_down else lines[::-1])
    image.putpalette(_palette(data, found))
    return image


def _palette(data: bytes, found: Header) -> bytes:
    entries = min(found.colors or 1 << found.bits, 256)
    start = _FILE_HEADER + found.size
    stored = data[start : start + 4 * entries].ljust(4 * entries, b"\0")
    colors = np.frombuffer(stored, np.uint8).reshape(-1, 4)[:, 2::-1]
    return np.vstack((colors, np.zeros((256 - len(colors), 3), np.uint8))).tobytes()


class _Runs:
    """A picture in the making. Pixels that no run reaches have the first color, as in most programs."""

    def __init__(self, data: bytes, found: Header) -> None:
        self._data = data
        self._at = found.start
        self._width, self._height = found.width, found.height
        self._four = found.compression == _RLE4
        self._canvas = bytearray(found.width * found.height)
        self._x = self._y = 0

    def decode(self) -> bytes:
        """Runs all codes; raises ValueError where they end before the picture does."""
        while self._y < self._height:
            code = self._data[self._at : self._at + 2]
            if len(code) < 2:
                if self._y == self._height - 1 and self._x >= self._width:
                    break  # complete, only the mark of its end is missing
                raise ValueError("image file is truncated")
            self._at += 2
            if code[0]:
                self._put(self._repeated(code[1], code[0]))
            elif code[1] == 1:
                break
            else:
                self._escape(code[1])
        return bytes(self._canvas)

    def _escape(self, code: int) -> None:
        if code == 0:
            self._x, self._y = 0, self._y + 1
        elif code == 2:
            right, up = self._take(2)
            self._x, self._y = self._x + right, self._y + up
        else:
            stored = self._take((code + 1) // 2 if self._four else code)
            self._at += len(stored) % 2  # a run begins at an even place
            self._put((_nibbles(stored) if self._four else stored)[:code])

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("image file is truncated")
        self._at += count
        return taken

    def _repeated(self, value: int, count: int) -> bytes:
        if not self._four:
            return bytes((value,)) * count
        return (bytes((value >> 4, value & 15)) * ((count + 1) // 2))[:count]

    def _put(self, pixels: bytes) -> None:
        """Draws pixels on the line; what would go beyond its end is dropped."""
        room = max(0, self._width - self._x)
        place = self._y * self._width + self._x
        drawn = pixels[:room]
        self._canvas[place : place + len(drawn)] = drawn
        self._x += len(pixels)


def _nibbles(stored: bytes) -> bytes:
    return bytes(half for value in stored for half in (value >> 4, value & 15))


# --- masks ----------------------------------------------------------------------------------------

_LINES_AT_ONCE: Final = 1 << 20  # pixels; bounds what is held in 32 bit


def _masked(data: bytes, found: Header) -> Image.Image:
    masks = _masks(data, found)
    line = (found.width * found.bits // 8 + 3) // 4 * 4
    if len(data) < found.start + line * found.height:
        raise ValueError("image file is truncated")
    stored = np.frombuffer(data, np.uint8, line * found.height, found.start).reshape(found.height, line)
    stored = stored if found.top_down else stored[::-1]
    pixels = np.empty((found.height, found.width, len(masks)), np.uint8)
    step = max(1, _LINES_AT_ONCE // found.width)
    for top in range(0, found.height, step):
        words = _words(stored[top : top + step, : found.width * found.bits // 8], found.bits)
        for channel, mask in enumerate(masks):
            pixels[top : top + step, :, channel] = _channel(words, mask)
    # Many writers leave the alpha bits zero, and browsers then show an opaque picture.
    if pixels.shape[-1] == 4 and not pixels[..., 3].any():
        pixels = np.ascontiguousarray(pixels[..., :3])
    return Image.fromarray(pixels)


def _masks(data: bytes, found: Header) -> tuple[int, ...]:
    masks: tuple[int, ...] = struct.unpack("<4I", data[54:70].ljust(16, b"\0"))
    with_alpha = found.size >= 56 or found.compression == _MASKED_WITH_ALPHA
    if not any(masks[:3]):
        masks = (0xFF0000, 0xFF00, 0xFF, 0)
    return masks if with_alpha and masks[3] else masks[:3]


def _words(lines: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    whole = np.ascontiguousarray(lines)
    if bits != 24:
        words: NDArray[np.uint32] = whole.view(f"<u{bits // 8}").astype(np.uint32)
        return words
    red, green, blue = (whole[:, channel::3].astype(np.uint32) for channel in (2, 1, 0))
    return np.asarray(red << 16 | green << 8 | blue, dtype=np.uint32)


def _channel(words: NDArray[np.uint32], mask: int) -> Any:
    """The bits under a mask, scaled to 0–255."""
    if not mask:
        return 0
    lowest = (mask & -mask).bit_length() - 1
    most = mask >> lowest
    values = (words & mask) >> lowest
    # Only the highest bits of a deep channel matter, and more would overflow.
    extra = max(0, most.bit_length() - 16)
    values, most = values >> extra, most >> extra
    return ((values * 255 + most // 2) // most).astype(np.uint8)
