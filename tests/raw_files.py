"""BMPs, TIFFs and GIFs written byte by byte, as Pillow would not write them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.broken import encode

Lines = NDArray[np.uint8]


def bmp(
    size: tuple[int, int],
    bits: int,
    compression: int,
    pixels: bytes,
    palette: bytes = b"",
    masks: Sequence[int] = (),
) -> bytes:
    """A BMP with a 40-byte header, or with a 56-byte one where there are masks."""
    masked = struct.pack("<4I", *masks, *[0] * (4 - len(masks))) if masks else b""
    start = 54 + len(masked) + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40 + len(masked), *size, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + masked + palette + pixels


def masked_bmp(image: Image.Image, bits: int, masks: Sequence[int]) -> bytes:
    """A BMP with a channel of the picture under each mask."""
    words = np.zeros((image.height, image.width), np.uint64)
    for channel, mask in zip(np.moveaxis(np.asarray(image, np.uint64), -1, 0), masks, strict=False):
        most = (1 << mask.bit_count()) - 1
        words |= (channel * most // 255) << ((mask & -mask).bit_length() - 1)
    line = words[::-1].astype("<u8").view(np.uint8).reshape(image.height, image.width, 8)[..., : bits // 8]
    line = line.reshape(image.height, -1)
    padded = np.pad(line, ((0, 0), (0, -line.shape[1] % 4)))
    return bmp(image.size, bits, 3, padded.tobytes(), masks=masks)


Coder = Callable[[list[int]], bytes]


def run_length_bmp(few: Image.Image, bits: int, coder: Coder) -> bytes:
    """A BMP of a palette picture whose lines `coder` has written."""
    palette = np.resize(np.array(few.getpalette()[: 3 << bits], np.uint8), (1 << bits, 3))
    packed = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()
    lines = b"".join(coder(row.tolist()) for row in np.asarray(few)[::-1])
    return bmp(few.size, bits, 2 if bits == 4 else 1, lines + b"\0\1", packed)


def absolute(bits: int, run: int) -> Coder:
    """Writes lines as stored pixels, `run` at a time."""

    def code(row: list[int]) -> bytes:
        out = b""
        for i in range(0, len(row), run):
            part = row[i : i + run]
            if len(part) < 3:
                out += b"".join(bytes((1, p << 4 if bits == 4 else p)) for p in part)
                continue
            even = part + [0] * (len(part) % 2)
            stored = (
                bytes(a << 4 | b for a, b in zip(even[::2], even[1::2], strict=True))
                if bits == 4
                else bytes(part)
            )
            out += bytes((0, len(part))) + stored + bytes(len(stored) % 2)
        return out + b"\0\0"

    return code


def repeated(bits: int) -> Coder:
    """Writes lines as repeats, in RLE4 of two colors in turn, and leaves out the first color by steps."""

    def code(row: list[int]) -> bytes:
        out, at = b"", 0
        while at < len(row):
            end = at + 1
            while end < len(row) and row[end] == row[at] and end - at < 255:
                end += 1
            if row[at]:
                out += bytes((end - at, row[at] * 17 if bits == 4 else row[at]))
            else:
                out += bytes((0, 2, end - at, 0))
            at = end
        return out + b"\0\0"

    return code


def predicted(lines: NDArray[np.generic], predictor: int) -> bytes:
    """The bytes of a block (rows, columns, channels) after a TIFF's predictor."""
    if predictor == 2:
        whole = lines.astype(lines.dtype.newbyteorder("="))
        ints = whole.view(f"u{whole.dtype.itemsize}").copy()
        ints[:, 1:] -= ints[:, :-1].copy()
        return ints.view(whole.dtype).astype(lines.dtype).tobytes()
    if predictor == 3:
        rows, columns, channels = lines.shape
        wide = lines.astype(lines.dtype.newbyteorder(">")).reshape(rows, -1)
        planes = (
            wide.view(np.uint8).reshape(rows, columns * channels, -1).transpose(0, 2, 1).reshape(rows, -1)
        )
        out = planes.copy()
        out[:, channels:] -= planes[:, :-channels]
        return out.tobytes()
    return lines.tobytes()


def _blocks(samples: NDArray[np.generic], planar: bool, tile: int) -> list[NDArray[np.generic]]:
    planes = [samples[..., i : i + 1] for i in range(samples.shape[2])] if planar else [samples]
    height, width = samples.shape[:2]
    if not tile:  # strips of 50 lines
        return [plane[top : top + 50] for plane in planes for top in range(0, height, 50)]
    edges = ((0, -height % tile), (0, -width % tile), (0, 0))
    planes = [np.pad(plane, edges) for plane in planes]
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    return [plane[top : top + tile, left : left + tile] for plane in planes for top, left in corners]


def tiff(
    samples: NDArray[np.generic],
    *,
    planar: bool = False,
    tile: int = 0,
    packed: bool = False,
    predictor: int = 1,
    big: bool = False,
    photometric: int = 2,
    extra: int | None = None,
    compression: int | None = None,
    coded: Sequence[bytes] = (),
    orientation: int = 1,
) -> bytes:
    """A TIFF of samples (height, width, channels), in their byte order; `coded` replaces its blocks."""
    height, width, channels = samples.shape
    order = ">" if samples.dtype.byteorder == ">" else "<"
    blocks = [predicted(np.ascontiguousarray(b), predictor) for b in _blocks(samples, planar, tile)]
    blocks = list(coded) or [zlib.compress(b) if packed else b for b in blocks]
    start, offsets, body = (16 if big else 8), [], b""
    for block in blocks:
        offsets.append(start + len(body))
        body += block + bytes(len(block) % 2)
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    tags = {256: [width], 257: [height], 258: [samples.dtype.itemsize * 8] * channels, 262: [photometric]}
    tags |= {
        259: [compression or (8 if packed else 1)],
        274: [orientation],
        277: [channels],
        317: [predictor],
    }
    tags |= {284: [2 if planar else 1], 339: [kind] * channels}
    tags |= {338: [extra]} if extra is not None else {}
    lengths = [len(block) for block in blocks]
    tags |= (
        {322: [tile], 323: [tile], 324: offsets, 325: lengths}
        if tile
        else {278: [50], 273: offsets, 279: lengths}
    )
    word, entry = ("Q", "HHQ") if big else ("I", "HHI")
    rows = b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}I", *values)
        if len(data) > struct.calcsize(word):
            data, body = struct.pack(order + word, start + len(body)), body + data
        rows += struct.pack(order + entry, tag, 4, len(values)) + data.ljust(struct.calcsize(word), b"\0")
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0) if big else (42,)), start + len(body))
    return head + body + struct.pack(order + ("Q" if big else "H"), len(tags)) + rows + bytes(8)


def small_frame_gif(frame: Image.Image, canvas: tuple[int, int], corner: tuple[int, int]) -> bytes:
    """A GIF whose only frame is a part of its canvas."""
    data = encode(frame, "GIF")
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, *frame.size))
    return (
        data[:6]
        + struct.pack("<HH", *canvas)
        + data[10 : at + 1]
        + struct.pack("<HH", *corner)
        + data[at + 5 :]
    )
