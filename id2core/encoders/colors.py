"""Color spaces of picture files: finds the one that a file names and converts its pixels to sRGB.

What counts is what a browser shows. An ICC profile is obeyed by LittleCMS, perceptually, as Chromium
does. Code points of ITU-T H.273 (PNG's cICP, AVIF's and HEIF's nclx, an ICC profile's cicp) and PNG's
gAMA and cHRM are a curve and a matrix, applied here.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from id2core.encoders import bitmaps
from id2core.encoders.containers import coding, png_chunks

# Profiles of presses are 0.5 to 3 MB. Whatever is larger counts as no profile.
MAX_PROFILE_BYTES: Final = 4 << 20
Floats = NDArray[np.floating]
Chromaticities = tuple[tuple[float, float], ...]


class ColorSpace(Protocol):
    """What a file says of its colors."""

    @property
    def mode(self) -> str:
        """Pillow's mode of the pixels that it describes: L, RGB or CMYK."""

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Converts a picture of mode L, RGB, RGBA or CMYK to RGB, or RGBA where it has alpha."""


class Srgb:
    """The space of a file that names none, or none that can be used: pixels stay as they are."""

    mode: Final = "RGB"

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Returns the picture."""
        return image


SRGB: Final = Srgb()


def color_space(image: Image.Image, kind: str, data: bytes) -> ColorSpace:
    """Finds the color space of an opened picture.

    Args:
        image: the picture, as opened from the file.
        kind: its format, as `images.decode` names it.
        data: the whole file.
    """
    if kind == "png":
        return _of_png(image.mode, data)
    profile = bitmaps.profile(data) if kind == "bmp" else image.info.get("icc_profile")
    space = from_profile(profile, image.mode)
    # An ICC profile goes before nclx, as in Chromium: it says more than a number.
    if space is None and kind in ("avif", "heif"):
        coded = coding(data)
        if coded.primaries is not None and coded.transfer is not None:
            space = from_codes(coded.primaries, coded.transfer, unspecified=SRGB_CODES)
        colored = image.mode in ("RGB", "RGBA")
        if kind == "avif" and colored and isinstance(space, Curved) and coded.bits in (10, 12):
            space = replace(space, cut=coded.bits - 8)
    return space or SRGB


# --- ICC profiles ---------------------------------------------------------------------------------

_FAMILIES: Final = {"RGB ": ("RGB", "L"), "GRAY": ("L",), "CMYK": ("CMYK",)}


@dataclass(frozen=True, eq=False)
class Profiled:
    """A space that an ICC profile describes.

    Attributes:
        transform: LittleCMS's way to sRGB, safe to share between threads.
        mode: that of the pixels which it takes: L, RGB or CMYK.
    """

    transform: ImageCms.ImageCmsTransform
    mode: str

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Converts the pixels; alpha stays as it is."""
        # A gray picture with alpha has three equal channels by now.
        gray = self.mode == "L" and image.mode != "L"
        colors = image.getchannel(0) if gray else image.convert(self.mode)
        shown = ImageCms.applyTransform(colors, self.transform)
        assert shown is not None  # None is for conversions in place
        return _with_alpha_of(image, shown)


def from_profile(profile: object, mode: str) -> ColorSpace | None:
    """Makes a color space of the bytes of an ICC profile.

    Args:
        profile: the profile, or what stands in its place.
        mode: Pillow's mode of the picture.

    Returns:
        The space; None where there is no usable profile of at most `MAX_PROFILE_BYTES` that fits the mode.
    """
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    space = profile[16:20].decode("latin-1")
    if profile[36:40] != b"acsp" or _family(mode) not in _FAMILIES.get(space, ()):
        return None
    codes = _codes_of_profile(profile) if space == "RGB " else None
    return codes or _CACHE.get(profile, space)


def _family(mode: str) -> str | None:
    if mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16"):
        return "L"
    return {"CMYK": "CMYK", "LAB": None}.get(mode, "RGB")


def _codes_of_profile(profile: bytes) -> ColorSpace | None:
    """The HDR space that a profile's cicp tag names: tables of a profile end at white."""
    (count,) = struct.unpack_from(">I", profile, 128) if len(profile) >= 132 else (0,)
    for at in range(132, min(132 + 12 * min(count, 100), len(profile) - 11), 12):
        name, start, length = struct.unpack_from(">4sII", profile, at)
        if name == b"cicp" and length >= 12 and start + 12 <= len(profile):
            primaries, transfer = profile[start + 8 : start + 10]
            return from_codes(primaries, transfer) if transfer in _HDR else None
    return None


class _TransformCache:
    """The last few profiles' transforms, by digest. A camera's or a site's profile is met all the time."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._spaces: OrderedDict[tuple[bytes, str], ColorSpace | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, profile: bytes, space: str) -> ColorSpace | None:
        key = (hashlib.sha256(profile).digest(), space)
        with self._lock:
            if key in self._spaces:
                self._spaces.move_to_end(key)
                return self._spaces[key]
        built = _build(profile, space)
        with self._lock:
            self._spaces[key] = built
            while len(self._spaces) > self._entries:
                self._spaces.popitem(last=False)
        return built


# A press's transform holds a table of up to 2 MB.
_CACHE: Final = _TransformCache(32)


def _build(profile: bytes, space: str) -> ColorSpace | None:
    mode = _FAMILIES[space][0]
    try:
        # NOCACHE, as LittleCMS asks of transforms that threads share.
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            flags=ImageCms.Flags.NOCACHE,
        )
        built = Profiled(transform, mode)
        return SRGB if _changes_nothing(built) else built
    # Profiles are as hostile as pixels. Browsers show a picture with a bad one as if it had none.
    except Exception:
        return None


def _changes_nothing(space: Profiled) -> bool:
    """True for sRGB itself, under any of its many profiles; 2 of 255 are their rounding."""
    if space.mode == "CMYK":
        return False
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    axes = np.meshgrid(steps, steps, steps, indexing="ij") if space.mode == "RGB" else [steps] * 3
    probe = np.stack([axis.ravel() for axis in axes], -1)[None]
    given = Image.fromarray(probe)
    shown = space.to_srgb(given if space.mode == "RGB" else given.convert("L"))
    return int(np.abs(np.asarray(shown).astype(int) - probe).max()) <= 2


# --- curves and matrices --------------------------------------------------------------------------

_D65: Final = (0.3127, 0.3290)
_C: Final = (0.310, 0.316)
_BT709: Final = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
_BT601: Final = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)
_PRIMARIES: Final[dict[int, Chromaticities]] = {
    1: _BT709,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: _BT601,
    7: _BT601,
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    10: ((1, 0), (0, 1), (0, 0), (1 / 3, 1 / 3)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
# The light of paper white in BT.2408: 203 of PQ's 10,000 cd/m², and 75% of HLG's signal.
_PQ_WHITE: Final = 203 / 10_000
_HLG_WHITE: Final = 0.265


def _srgb_light(signal: Floats) -> Floats:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _bt709_light(signal: Floats) -> Floats:
    return np.where(signal < 0.081243, signal / 4.5, ((signal + 0.099297) / 1.099297) ** (1 / 0.45))


def _smpte240_light(signal: Floats) -> Floats:
    return np.where(signal < 0.0913, signal / 4, ((signal + 0.1115) / 1.1115) ** (1 / 0.45))


def _pq_light(signal: Floats) -> Floats:
    root = signal ** (32 / 2523)
    top, below = np.maximum(root - 3424 / 4096, 0), 2413 / 128 - 2392 / 128 * root
    return np.asarray((top / below) ** (16384 / 2610) / _PQ_WHITE)


def _hlg_light(signal: Floats) -> Floats:
    upper = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.asarray(np.where(signal <= 0.5, signal**2 / 3, upper) / _HLG_WHITE)


def _power(gamma: float) -> Callable[[Floats], Floats]:
    return lambda signal: signal**gamma


_LIGHT: Final[dict[int, Callable[[Floats], Floats]]] = {
    1: _bt709_light,
    4: _power(2.2),
    5: _power(2.8),
    6: _bt709_light,
    7: _smpte240_light,
    8: _power(1),
    13: _srgb_light,
    14: _bt709_light,
    15: _bt709_light,
    16: _pq_light,
    17: lambda signal: signal**2.6 * (52.37 / 48),
    18: _hlg_light,
}
_HDR: Final = (16, 18)
SRGB_CODES: Final = (1, 13)
_UNSPECIFIED: Final = 2


# What one step of Y, Cb and Cr together adds to red, green and blue by the matrix of BT.2020.
_TINT: Final = np.array((1 + 1.4746, 1 - 0.1646 - 0.5714, 1 + 1.8814))


@dataclass(frozen=True, eq=False)
class Curved:
    """A space of one curve for all channels and three primaries.

    Attributes:
        light: from a signal of 0–1 to linear light, 1 being white.
        matrix: (3, 3), from linear light of this space to that of sRGB.
        hdr: light may go far beyond white.
        cut: how many bits of Y, Cb and Cr the decoder dropped.
    """

    light: Callable[[Floats], Floats]
    matrix: Floats
    hdr: bool = False
    cut: int = 0
    mode: str = "RGB"

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Converts the pixels; alpha stays as it is."""
        pixels = np.asarray(image.convert("RGB"))
        table = self.light(self._signals()).astype(np.float32)
        light = np.stack([table[:, channel][pixels[..., channel]] for channel in range(3)], axis=-1)
        return _with_alpha_of(image, self._shown(light))

    def _signals(self) -> Floats:
        """The signal that each of 256 values of red, green and blue stands for, (256, 3)."""
        values = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
        if not self.cut:
            return values / 255
        steps = 1 << self.cut
        # What a cut sample stands for is half a step higher, in all of Y, Cb and Cr: a tint that the eye
        # misses, but not PQ's steep curve.
        missing = (steps - 1) / (2 * steps)
        shifted = (values + missing * _TINT) * (steps / (256 * steps - 1))
        return np.clip(shifted, 0, 1)

    def from_signal(self, signal: Floats) -> Image.Image:
        """Converts a picture of more than 8 bit; (height, width, 3), 0–1."""
        return self._shown(self.light(signal).astype(np.float32))

    def _shown(self, light: Floats) -> Image.Image:
        light = light @ self.matrix.T
        if self.hdr:
            # As one exposes a photo: evenly, and darker only where more than highlights would burn out.
            light /= max(1.0, float(np.percentile(light.max(axis=-1), 99)))
        light = np.clip(light, 0, 1)
        signal = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        return Image.fromarray(np.rint(signal * 255).astype(np.uint8))


def from_signal(space: ColorSpace, signal: Floats) -> Image.Image:
    """Converts a picture of more than 8 bit to sRGB.

    Args:
        space: its color space.
        signal: (height, width, 3), 0–1.
    """
    if isinstance(space, Curved):
        return space.from_signal(signal)
    return space.to_srgb(Image.fromarray(np.rint(signal * 255).astype(np.uint8)))


def from_codes(
    primaries: int, transfer: int, unspecified: tuple[int, int] | None = None
) -> ColorSpace | None:
    """Makes a color space of code points of ITU-T H.273; None where they name none.

    Args:
        primaries: `ColourPrimaries`.
        transfer: `TransferCharacteristics`.
        unspecified: what code 2 stands for in either; None where it stands for nothing.
    """
    if unspecified:
        primaries = unspecified[0] if primaries == _UNSPECIFIED else primaries
        transfer = unspecified[1] if transfer == _UNSPECIFIED else transfer
    if primaries not in _PRIMARIES or transfer not in _LIGHT:
        return None
    if (primaries, transfer) == SRGB_CODES:
        return SRGB
    return _curved(_PRIMARIES[primaries], _LIGHT[transfer], transfer in _HDR)


def _curved(points: Chromaticities, light: Callable[[Floats], Floats], hdr: bool = False) -> Curved:
    to_srgb = np.linalg.inv(_to_xyz(_BT709)) @ _adapted(points)
    return Curved(light, to_srgb.astype(np.float32), hdr)


def _xyz(point: tuple[float, float]) -> NDArray[np.float64]:
    x, y = point
    return np.array((x, y, 1 - x - y))


def _to_xyz(points: Chromaticities) -> NDArray[np.float64]:
    """Matrix from linear RGB to XYZ, for chromaticities of red, green, blue and white."""
    columns, white = np.stack([_xyz(point) for point in points[:3]], 1), _xyz(points[3])
    return np.asarray(columns * np.linalg.solve(columns, white / white[1]))


_BRADFORD: Final = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))


def _adapted(points: Chromaticities) -> NDArray[np.float64]:
    """`_to_xyz`, with its white moved to that of sRGB."""
    ours, theirs = (_BRADFORD @ (_xyz(white) / white[1]) for white in (_D65, points[3]))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(ours / theirs) @ _BRADFORD @ _to_xyz(points))


# --- PNG ------------------------------------------------------------------------------------------

_COLOR_CHUNKS: Final = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")


def _of_png(mode: str, data: bytes) -> ColorSpace:
    """The space of a PNG: the first usable of cICP, iCCP, sRGB, and gAMA with cHRM."""
    said: dict[bytes, bytes] = {}
    for chunk in png_chunks(data):
        if chunk.name == b"IDAT":
            break
        if chunk.name in _COLOR_CHUNKS:
            said.setdefault(chunk.name, data[chunk.body : chunk.body + chunk.length])
    codes = said.get(b"cICP", b"")
    space = from_codes(codes[0], codes[1]) if len(codes) == 4 else None
    if space is None and b"iCCP" in said:
        space = from_profile(_unpacked(said[b"iCCP"]), mode)
    if space is None and b"sRGB" not in said:
        space = _from_gamma(said.get(b"gAMA", b""), said.get(b"cHRM", b""))
    return space or SRGB


def _unpacked(body: bytes) -> bytes:
    """The profile in an iCCP chunk; empty where it is damaged or too large."""
    start = body[:81].find(b"\0") + 2
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(body[start:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    return profile if unpacker.eof and len(profile) <= MAX_PROFILE_BYTES else b""


def _from_gamma(gamma: bytes, points: bytes) -> ColorSpace | None:
    if len(gamma) != 4:
        return None
    exponent = int.from_bytes(gamma, "big") / 100_000
    if not 0.1 <= exponent <= 10:
        return None
    if len(points) != 32:
        return _curved(_BT709, _power(1 / exponent))
    white, *primaries = np.array(struct.unpack(">8I", points)).reshape(4, 2) / 100_000
    try:
        with np.errstate(all="ignore"):
            space = _curved((*map(tuple, primaries), tuple(white)), _power(1 / exponent))
    except np.linalg.LinAlgError:
        return None
    return space if np.isfinite(space.matrix).all() else None


def _with_alpha_of(image: Image.Image, colors: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        colors.putalpha(image.getchannel("A"))
    return colors
