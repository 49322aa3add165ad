"""Pictures stored in other color spaces than sRGB, so that they look the same to whoever obeys the file."""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from tests.broken import encode, png_chunk

Point = tuple[float, float]
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
RGB_ORDER = (0, 1, 2)


@dataclass(frozen=True)
class Space:
    """Chromaticities of red, green, blue and white; the exponent of its curve; its H.273 primaries."""

    primaries: tuple[Point, Point, Point]
    white: Point = D65
    gamma: float = 2.2
    code: int = 0


SRGB = Space(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), code=1)
DISPLAY_P3 = Space(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), code=12)
ADOBE_RGB = Space(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), gamma=563 / 256)
PROPHOTO = Space(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, 1.8)
BT2020 = Space(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), code=9)


def xyz(point: Point) -> NDArray[np.float64]:
    return np.array((point[0] / point[1], 1.0, (1 - sum(point)) / point[1]))


def to_d50(space: Space) -> NDArray[np.float64]:
    """Matrix from linear RGB to XYZ under D50."""
    columns = np.stack([xyz(point) for point in space.primaries], 1)
    scaled = columns * np.linalg.solve(columns, xyz(space.white))
    gain = (BRADFORD @ xyz(D50)) / (BRADFORD @ xyz(space.white))
    return np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD @ scaled


def light(image: Image.Image, space: Space = SRGB) -> NDArray[np.float64]:
    """Linear light of an sRGB picture in another space, clipped to what it can hold."""
    signal = np.asarray(image.convert("RGB")) / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return np.clip(linear @ (np.linalg.inv(to_d50(space)) @ to_d50(SRGB)).T, 0, 1)


def _fixed(values: Any) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def packed_profile(tags: dict[bytes, bytes], space: bytes = b"RGB ", version: int = 2) -> bytes:
    """An ICC profile of given tags."""
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    between = b"Lab " if space == b"CMYK" else b"XYZ "
    head = struct.pack(">I4xI4s4s4s", start + len(body), version << 24, kind, space, between)
    head = head + bytes(12) + b"acsp" + bytes(28) + _fixed(xyz(D50)) + bytes(48)
    return head + table + body


def curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"


def profile(
    space: Space, order: tuple[int, int, int] = RGB_ORDER, cicp: tuple[int, int] | None = None
) -> bytes:
    """A matrix profile. Channel i of a file holds colorant order[i]."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(xyz(D50))}
    for name, colorant in zip((b"r", b"g", b"b"), to_d50(space)[:, list(order)].T, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(colorant)
        tags[name + b"TRC"] = curve(space.gamma)
    if cicp:
        tags[b"cicp"] = b"cicp\0\0\0\0" + bytes((*cicp, 0, 1))
    return packed_profile(tags, version=4 if cicp else 2)


def gray_profile(gamma: float) -> bytes:
    return packed_profile({b"wtpt": b"XYZ \0\0\0\0" + _fixed(xyz(D50)), b"kTRC": curve(gamma)}, b"GRAY")


def press_profile() -> bytes:
    """A CMYK profile that turns ink upside down: no ink is black, and black ink is white."""
    grid = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lab = np.full((16, 3), 128, np.uint8)
    lab[:, 0] = 255 * grid[:, 3]
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + _fixed(np.eye(3).ravel())
    return packed_profile({b"A2B0": table + ramp * 4 + lab.tobytes() + ramp * 3}, b"CMYK")


def stored(image: Image.Image, space: Space, order: tuple[int, int, int] = RGB_ORDER) -> Image.Image:
    """The pixels of a picture in another space."""
    signal = np.rint(light(image, space) ** (1 / space.gamma) * 255).astype(np.uint8)
    return Image.fromarray(signal[..., list(order)])


def profiled(
    image: Image.Image, format: str, space: Space, order: tuple[int, int, int] = RGB_ORDER, **options: Any
) -> bytes:
    """A file in another space, with its profile."""
    return encode(stored(image, space, order), format, icc_profile=profile(space, order), **options)


PQ, HLG, SRGB_CURVE, BT709 = 16, 18, 13, 1


def coded(linear: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    """The signal of linear light whose 1 is paper white: 203 cd/m² in PQ, 75% of the signal in HLG."""
    if transfer == PQ:
        y = (linear * 203 / 10_000) ** (2610 / 16384)
        return ((3424 + 2413 * 32 * y) / (4096 + 2392 * 32 * y)) ** (2523 / 32)
    if transfer == HLG:
        e = linear * 0.265
        upper = 0.17883277 * np.log(np.maximum(12 * e - 0.28466892, 1e-9)) + 0.55991073
        return np.where(e <= 1 / 12, np.sqrt(3 * e), upper)
    if transfer == BT709:
        return np.where(linear < 0.018, 4.5 * linear, 1.0993 * linear**0.45 - 0.0993)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def heic(image: Image.Image, space: Space, transfer: int) -> bytes:
    """A HEIF of 10 bit with an nclx box."""
    deep = np.rint(np.clip(coded(light(image, space), transfer), 0, 1) * 65535).astype(np.uint16)
    file, buffer = pillow_heif.from_bytes("RGB;16", image.size, deep.tobytes()), io.BytesIO()
    codes = {"color_primaries": space.code, "transfer_characteristics": transfer, "matrix_coefficients": 9}
    file.save(buffer, quality=95, save_nclx_profile=True, full_range_flag=1, chroma=444, **codes)
    return buffer.getvalue()


def coded_pixels(image: Image.Image, space: Space, transfer: int) -> Image.Image:
    """The pixels of a picture in a space of H.273, 8 bit."""
    signal = np.clip(coded(light(image, space), transfer), 0, 1)
    return Image.fromarray(np.rint(signal * 255).astype(np.uint8))


def avif(image: Image.Image, space: Space, transfer: int) -> bytes:
    """An AVIF of 8 bit with an nclx box."""
    data = encode(coded_pixels(image, space, transfer), "AVIF", quality=98, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", space.code, transfer) + data[at + 4 :]


def png(image: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks before its pixels."""
    data = encode(image, "PNG")
    return data[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + data[33:]


def chromaticities(space: Space) -> bytes:
    """The body of cHRM."""
    points = (space.white, *space.primaries)
    return struct.pack(">8I", *(round(value * 100_000) for point in points for value in point))


# `picture(24, 24)` in PQ as an AVIF of 10 bit, which Pillow cannot write; by libavif, 4:4:4, quality 95.
AVIF_OF_10_BIT = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAA"
    "AAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAABjQAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEA"
    "AGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAGAAAABgAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAA"
    "AAAAE2NvbHJuY2x4AAkAEAAJgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAABlW1kYXQSAAoIOBEvdvCRAJky/gIRAiNSgAggjyAA"
    "H8CR80NipPx97QfTqU8Y0NZGtkuR8UZtug4r1F1Q1Pn7/6J9ErU5n3khsC0inHogNrb0hMiXvaTeQzIcvlh/QdYFY1Up8sEm3JnU"
    "EGQu/ip/v2tT//I0VHn8tb8vHSyDPeY/sSmBgv581FDn0h7spZwCyjSlyX87knAei2kkRKt4rXE4uCdrsL268P3pI5xfyICSa65J"
    "ysoeeSTnEYhGULZHDa5my7GmOws8pVd90HM0oLykjzQfStsPdSPI9m5YEiGLe9kRYvcmHuy78XgTjRVfkjNGRR+aFEAJb0YYCzwl"
    "7YPcC9B8TyeOXA0lJS3YD+El837r2CSxR1ll1dNGw5qOxKnAQ293cEY/AlvZvnh/QbvVDgmUFgqCCKexYLCqH8bCAQY6JTSXXeup"
    "9zmE3eRyRiuwZc6nskYK+6kAjFa+OKwtRD6vBpbCNAfTNgTVv70z+obZf89EwyI4NXjjukUdlMHqQBqjQ24/etPzVs/MHtdQ"
)
