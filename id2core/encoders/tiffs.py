"""TIFF files that Pillow refuses or shows wrong: deep samples, separate planes, WebP inside.

A strip or tile of any lossless compression is opened by Pillow as if it held gray bytes. What the bytes
mean, their order, predictor, depth and planes, is worked out here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffTags import TAGS_V2

from id2core.encoders import budget
from id2core.encoders.containers import UnsupportedError, check_size

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, ROWS, PLANAR, PREDICTOR = 274, 277, 278, 284, 317
STRIPS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 273, 279, 322, 323, 324, 325
EXTRA, FORMAT, PROFILE, FILL_ORDER = 338, 339, 34675, 266
_DEFAULTS: Final = {BITS: 1, COMPRESSION: 1, SAMPLES: 1, PLANAR: 1, PREDICTOR: 1, FORMAT: 1, FILL_ORDER: 1}
_TYPES: Final = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}

_LOSSLESS: Final = frozenset((1, 5, 8, 32773, 32946, 34925, 50000))
_PILLOWS: Final = _LOSSLESS | {2, 3, 4, 6, 7, 32771}
_WEBP: Final = 50001
_NAMES: Final = {
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_COLORS: Final = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4}
_MODES: Final = {(1, False): "L", (1, True): "LA", (3, False): "RGB", (3, True): "RGBA", (4, False): "CMYK"}


@dataclass(frozen=True)
class Directory:
    """The first directory of a TIFF.

    Attributes:
        order: "<" or ">", as `struct` has it.
        tags: tag → values, of those tags that describe pixels.
    """

    order: str
    tags: dict[int, tuple[int, ...]]

    def values(self, tag: int) -> tuple[int, ...]:
        """The values of a tag, or its default; empty where it has none."""
        return self.tags.get(tag) or ((_DEFAULTS[tag],) if tag in _DEFAULTS else ())

    def value(self, tag: int) -> int:
        """The first value of a tag, or its default. Raises ValueError where it has neither."""
        values = self.values(tag)
        if not values:
            raise ValueError(f"no {TAGS_V2[tag].name}")
        return values[0]


_READ: Final = frozenset(
    (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ROWS, PLANAR, PREDICTOR),
        *(
            STRIPS,
            STRIP_BYTES,
            TILE_WIDTH,
            TILE_HEIGHT,
            TILES,
            TILE_BYTES,
            EXTRA,
            FORMAT,
            PROFILE,
            FILL_ORDER,
        ),
    )
)


def directory(data: bytes) -> Directory | None:
    """Reads the first directory; None where there is none that is whole."""
    try:
        return _directory(data)
    except struct.error:
        return None


def _directory(data: bytes) -> Directory:
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    entry, inline = (order + "HHQ", 8) if big else (order + "HHI", 4)
    step = struct.calcsize(entry) + inline
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(at, at + step * min(count, 65_535), step):
        tag, kind, length = struct.unpack_from(entry, data, start)
        if tag not in _READ or tag in tags or kind not in _TYPES:
            continue
        # More values than the file has bytes make `unpack_from` fail, before it allocates any.
        form, place = f"{order}{length}{_TYPES[kind]}", start + struct.calcsize(entry)
        if struct.calcsize(form) > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        tags[tag] = struct.unpack_from(form, data, place)
    return Directory(order, tags)


def needs_care(tiff: Directory) -> bool:
    """True where Pillow would refuse a picture or show it wrong.

    Raises:
        UnsupportedError: neither Pillow nor this module can read such a picture.
    """
    compression, bits = tiff.value(COMPRESSION), max(tiff.values(BITS))
    if compression == _WEBP:
        return True
    if compression not in _PILLOWS:
        raise UnsupportedError(f"{_NAMES.get(compression, f'compression {compression}')} in TIFF")
    gray, apart = tiff.value(PHOTOMETRIC) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO), tiff.value(PLANAR) != 1
    one = tiff.value(SAMPLES) == 1
    if bits <= 8:
        return gray and apart and not one
    if bits != 16 or tiff.value(FORMAT) != 1:
        return True
    return not (one and tiff.value(PHOTOMETRIC) == _BLACK_IS_ZERO) if gray else apart


def describe(tiff: Directory) -> str:
    """Says in a few words what a picture is made of."""
    bits = "/".join(map(str, sorted(set(tiff.values(BITS)))))
    return f"TIFF of {tiff.value(SAMPLES)} samples of {bits} bit, photometric {tiff.values(PHOTOMETRIC)}"


def read(data: bytes, tiff: Directory, max_pixels: int) -> Image.Image:
    """Decodes the picture to L, LA, RGB, RGBA or CMYK of 8 bit, with its profile and its orientation.

    Raises:
        UnsupportedError: its depth, colors or compression are not among those known here.
        Exception: the file is damaged or too large.
    """
    check_size(tiff.value(WIDTH), tiff.value(HEIGHT), max_pixels)
    # What an ordinary picture takes is for three bytes a pixel.
    times = max(1, tiff.value(SAMPLES) * max(tiff.values(BITS)) // 24)
    budget.admit(tiff.value(WIDTH) * tiff.value(HEIGHT) * times)
    image = _from_webp(data, tiff) if tiff.value(COMPRESSION) == _WEBP else _from_samples(data, tiff)
    if tiff.values(PROFILE):
        image.info["icc_profile"] = bytes(value & 255 for value in tiff.values(PROFILE))
    if tiff.values(ORIENTATION):
        image.getexif()[ExifTags.Base.Orientation] = tiff.value(ORIENTATION)
    return image


# --- blocks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How a plane is cut: blocks of a width and a height, `across` of them side by side."""

    width: int
    height: int
    across: int
    tiled: bool


# Pixels. A small picture may claim a huge tile, which the decoder holds whole.
_MOST_OF_A_TILE: Final = 1 << 24


def _layout(tiff: Directory) -> _Layout:
    width, height = tiff.value(WIDTH), tiff.value(HEIGHT)
    if tiff.values(TILE_WIDTH):
        check_size(tiff.value(TILE_WIDTH), tiff.value(TILE_HEIGHT), _MOST_OF_A_TILE)
        across = -(-width // tiff.value(TILE_WIDTH))
        return _Layout(tiff.value(TILE_WIDTH), tiff.value(TILE_HEIGHT), across, True)
    rows = tiff.values(ROWS)
    return _Layout(width, min(rows[0] or height, height) if rows else height, 1, False)


def _blocks(tiff: Directory, tiled: bool) -> list[tuple[int, int]]:
    """Where each block begins and how many bytes it has."""
    starts = tiff.values(TILES if tiled else STRIPS)
    lengths = tiff.values(TILE_BYTES if tiled else STRIP_BYTES)
    if not starts or len(starts) != len(lengths):
        raise ValueError("the list of strips or tiles is damaged")
    return list(zip(starts, lengths, strict=True))


def _from_webp(data: bytes, tiff: Directory) -> Image.Image:
    """Pastes blocks together, each of which is a WebP file."""
    layout = _layout(tiff)
    alpha = tiff.value(SAMPLES) == 4
    if tiff.value(PLANAR) != 1 or tiff.value(SAMPLES) not in (3, 4):
        raise UnsupportedError(describe(tiff))
    whole = Image.new("RGBA" if alpha else "RGB", (tiff.value(WIDTH), tiff.value(HEIGHT)))
    for number, (start, length) in enumerate(_blocks(tiff, layout.tiled)):
        row, column = divmod(number, layout.across)
        with Image.open(io.BytesIO(data[start : start + length]), formats=["WEBP"]) as block:
            if block.width > layout.width or block.height > layout.height:
                raise ValueError("a WebP block is larger than its place")
            whole.paste(block.convert(whole.mode), (column * layout.width, row * layout.height))
    return whole


# --- samples --------------------------------------------------------------------------------------


def _from_samples(data: bytes, tiff: Directory) -> Image.Image:
    channels, colors = tiff.value(SAMPLES), _COLORS.get(tiff.value(PHOTOMETRIC), 0)
    dtype = _dtype(tiff)
    if not colors or channels < colors or tiff.value(COMPRESSION) not in _LOSSLESS:
        raise UnsupportedError(describe(tiff))
    alpha = colors < 4 and channels > colors and tiff.values(EXTRA)[:1] in ((1,), (2,))
    samples = _samples(data, tiff, dtype)[..., : colors + alpha]
    values = to_bytes(samples, dtype)
    if tiff.value(PHOTOMETRIC) == _WHITE_IS_ZERO:
        values[..., 0] = 255 - values[..., 0]
    mode = _MODES[colors, alpha]
    image = Image.fromarray(np.ascontiguousarray(values[..., 0] if mode == "L" else values), mode)
    premultiplied = alpha and tiff.value(EXTRA) == 1
    # Relabeled, not converted: Pillow's RGBa is what the file holds.
    return image.convert("RGBA") if not premultiplied else _straight(image)


def _straight(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.frombytes("RGBa", rgba.size, rgba.tobytes()).convert("RGBA")


def _dtype(tiff: Directory) -> np.dtype[Any]:
    bits, formats = set(tiff.values(BITS)), set(tiff.values(FORMAT))
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(next(iter(formats)), "")
    size = next(iter(bits)) // 8
    known = len(bits) == len(formats) == 1 and letter and next(iter(bits)) in (8, 16, 32, 64)
    if not known or (letter == "f" and size == 1) or (letter != "f" and size == 8):
        raise UnsupportedError(describe(tiff))
    return np.dtype(f"{tiff.order}{letter}{size}")


def to_bytes(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """Scales samples of any depth to 0–255.

    Unsigned integers keep their high byte, but 32-bit ones of at most 65535 are read as 16-bit ones. Signed
    integers and floats of 0 to 32767, 65535 (32 bit) and 1 become 0–255. Where values lie outside, the
    picture is stretched from its own minimum and maximum. NaN and infinity count as 0.
    """
    if dtype.kind == "u":
        deep = dtype.itemsize == 4 and int(values.max(initial=0)) > 65535
        shift = 24 if deep else {1: 0, 2: 8, 4: 8}[dtype.itemsize]
        return (values >> shift).astype(np.uint8)
    white = 1.0 if dtype.kind == "f" else {1: 127.0, 2: 32767.0, 4: 65535.0}[dtype.itemsize]
    return stretched(values, white)


def stretched(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Scales 0–`white` to 0–255, or from minimum to maximum where values lie outside."""
    floats: NDArray[Any] = values.astype(
        np.float32 if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else np.float64
    )
    floats = np.where(np.isfinite(floats), floats, 0)
    low, high = float(floats.min()), float(floats.max())
    if low >= 0 and high <= white:
        low, high = 0.0, white
    scale = 255 / ((high - low) or 1.0)
    return np.asarray(np.rint((floats - low) * scale), dtype=np.uint8)


def _samples(data: bytes, tiff: Directory, dtype: np.dtype[Any]) -> NDArray[Any]:
    """All samples of the picture, (height, width, channels)."""
    layout, channels = _layout(tiff), tiff.value(SAMPLES)
    blocks = _blocks(tiff, layout.tiled)
    if tiff.value(PLANAR) == 1:
        return _plane(data, tiff, layout, blocks, channels, dtype)
    each = len(blocks) // channels
    planes = (
        _plane(data, tiff, layout, blocks[i * each : (i + 1) * each], 1, dtype) for i in range(channels)
    )
    return np.concatenate(list(planes), axis=-1)


def _plane(
    data: bytes,
    tiff: Directory,
    layout: _Layout,
    blocks: list[tuple[int, int]],
    channels: int,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """The samples of one plane, (height, width, channels), in the machine's byte order."""
    row = layout.width * channels * dtype.itemsize
    file = _as_gray(data, tiff, layout, blocks, row)
    with Image.open(io.BytesIO(file), formats=["TIFF"]) as gray:
        raw = np.asarray(gray).reshape(tiff.value(HEIGHT), layout.across, row)
    columns = layout.across * layout.width
    samples = _unpredicted(raw, tiff.value(PREDICTOR), channels, dtype)
    return samples.reshape(tiff.value(HEIGHT), columns, channels)[:, : tiff.value(WIDTH)]


def _unpredicted(raw: NDArray[np.uint8], predictor: int, channels: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undoes the differences between neighbors in each line of each block, which are (…, bytes)."""
    if predictor == 3:
        lines = np.add.accumulate(raw.reshape(*raw.shape[:-1], -1, channels), axis=-2, dtype=np.uint8)
        # Then the first bytes of all numbers come first, most significant ones ahead.
        planes = lines.reshape(*raw.shape[:-1], dtype.itemsize, -1)
        whole = np.ascontiguousarray(np.moveaxis(planes, -2, -1))
        return whole.view(dtype.newbyteorder(">"))[..., 0].astype(dtype.newbyteorder("="))
    native = np.ascontiguousarray(raw).view(dtype).astype(dtype.newbyteorder("="))
    if predictor != 2:
        return native
    whole_numbers = native.view(f"u{dtype.itemsize}").reshape(*native.shape[:-1], -1, channels)
    summed = np.add.accumulate(whole_numbers, axis=-2, dtype=whole_numbers.dtype)
    return summed.reshape(native.shape).view(native.dtype)


def _as_gray(data: bytes, tiff: Directory, layout: _Layout, blocks: list[tuple[int, int]], row: int) -> bytes:
    """The same file with another directory: the blocks as a gray picture of 8 bit, `row` bytes a block."""
    starts, lengths = zip(*blocks, strict=True)
    tags: dict[int, tuple[int, ...]] = {
        WIDTH: (layout.across * row,),
        HEIGHT: (tiff.value(HEIGHT),),
        BITS: (8,),
        COMPRESSION: (tiff.value(COMPRESSION),),
        PHOTOMETRIC: (_BLACK_IS_ZERO,),
        FILL_ORDER: (tiff.value(FILL_ORDER),),
        SAMPLES: (1,),
    }
    if layout.tiled:
        tags |= {TILE_WIDTH: (row,), TILE_HEIGHT: (layout.height,), TILES: starts, TILE_BYTES: lengths}
    else:
        tags |= {ROWS: (layout.height,), STRIPS: starts, STRIP_BYTES: lengths}
    end = len(data) + len(data) % 2
    table = b"".join(_entries(tags, end + 6 + 12 * len(tags)))
    head = b"II*\0" + struct.pack("<I", end)
    count = struct.pack("<H", len(tags))
    return b"".join((head, memoryview(data)[8:], bytes(end - len(data)), count, table))


def _entries(tags: dict[int, tuple[int, ...]], at: int) -> Iterator[bytes]:
    """The entries of a directory, its end, and the values that do not fit into it, which begin at `at`."""
    outside = []
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        where = packed if len(values) == 1 else struct.pack("<I", at)
        if len(values) > 1:
            outside.append(packed)
            at += len(packed)
        yield struct.pack("<HHI", tag, 4, len(values)) + where
    yield bytes(4)
    yield from outside
