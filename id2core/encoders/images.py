"""Picture files: bytes in, a square RGB array out, or a `Reject` that says why not."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from id2core.encoders import bitmaps, budget, tiffs
from id2core.encoders.budget import DEFAULT_LIMITS as DEFAULT_LIMITS
from id2core.encoders.budget import Limits as Limits
from id2core.encoders.colors import ColorSpace, color_space, from_signal
from id2core.encoders.containers import UnsupportedError, check_size, codec, without_extras
from id2core.encoders.views import MOST_DEPTH, MOST_INSETS, WHOLE, Box
from id2core.store.rejects import Reason, Reject

# Part of preprocess_id: change it whenever a change here can alter a decoded pixel.
RECIPE: Final = "stretch-bilinear-aa-white-srgb-v2"


@dataclass(frozen=True)
class Inset:
    """A picture that is seen inside another one.

    Attributes:
        box: where it is.
        pixels: uint8 RGB of shape (size, size, 3), as of the whole picture.
        information: how much it shows, where that was measured.
    """

    box: Box
    pixels: NDArray[np.uint8]
    information: float | None = None


@dataclass(frozen=True)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: uint8 RGB of shape (size, size, 3), values 0–255.
        width: width of the whole picture in pixels, after EXIF orientation.
        height: height of the whole picture in pixels, after EXIF orientation.
        format: jpeg, png, webp, gif, bmp, tiff, avif or heif, from the content and never from a name.
        insets: the parts that were asked for.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str
    insets: tuple[Inset, ...] = ()


# Pixels of a picture, and how many found parts it lies in → which parts of it are wanted as well.
Look = Callable[[NDArray[np.uint8], int], Sequence[Box]]


def nowhere(pixels: NDArray[np.uint8], depth: int) -> Sequence[Box]:
    """Find no part."""
    return ()


def decode(
    data: bytes, size: int = 256, limits: Limits = DEFAULT_LIMITS, look: Look = nowhere
) -> Decoded | Reject:
    """Decodes a picture file and stretches it to a square.

    EXIF orientation is applied and transparency is laid over white; the resize is bilinear with
    antialias and ignores the aspect ratio. Animations and multi-page files give their first frame,
    multi-picture JPEGs of phones their main picture. Colors become sRGB, by the space that the file
    names (see `colors`). CMYK without a profile is converted by Pillow's plain formula. Large JPEGs are
    decoded at a reduced scale, never below 2 × `size`, which moves a pixel by less than 0.5 on average.

    Depths above 8 bit are scaled thus, grays after the resize:

    * 16-bit color keeps its high byte. HEIF of 10 or 12 bit is rounded after the conversion to sRGB.
    * 16-bit grays (`I;16`, `I;16B`): 0–65535 becomes 0–255.
    * Other depths of TIFF: see `tiffs.to_bytes`.

    Thread-safe, and the same bytes always give the same answer. Memory and time are not limited here:
    `decoder_pool.decode` is this function for files of strangers.

    Args:
        data: the whole file.
        size: side of the square in pixels, at least 1.
        limits: larger files are rejected; the pixel limit is checked before a pixel is decoded.
        look: parts that it finds are stretched to squares as well, from the picture as it was loaded, so
            they have more detail than the same part of `pixels`. It looks at them, too, and parts of a part
            replace it, `MOST_DEPTH` deep and `MOST_INSETS` at most.

    Returns:
        The picture, or a `Reject` with one of the reasons EMPTY, TOO_LARGE_FILE, NOT_AN_IMAGE,
        UNSUPPORTED, TOO_MANY_PIXELS, OVER_BUDGET, TRUNCATED or CORRUPT. No content of `data` makes it raise.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if not data:
        return Reject(Reason.EMPTY)
    if len(data) > limits.max_bytes:
        return Reject(Reason.TOO_LARGE_FILE, f"{len(data)} bytes, limit {limits.max_bytes}")
    kind = _kind_of(data)
    if isinstance(kind, Reject):
        return kind
    if over := budget.check_structure(data, kind):
        return over
    _silence_pillow()
    try:
        return _decode(data, kind, size, limits, look)
    # Uploads are hostile and decoders raise nearly every exception type on them, MemoryError and
    # RecursionError included. One bad file must cost one reject, never a batch or a worker.
    except Exception as error:
        return _explain(error, data, kind)


# Pillow would also try openers that run other programs or have had little testing, so the format is
# told from the signature first and only that one opener is tried.
_ACCEPTED: Final = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "gif": re.compile(rb"GIF8[79]a"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "tiff": re.compile(rb"II[*+]\0|MM\0[*+]"),
    # "BM" alone also begins ordinary text: the size of the second header must be a known one.
    "bmp": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    # mif1 and msf1 say "some picture in a box file"; the compatible brands then tell which.
    "avif": re.compile(rb".{4}ftyp(avi[fs]|m[is]f1(.{4}){1,16}?avi[fs])", re.DOTALL),
    "heif": re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|m[is]f1)", re.DOTALL),
}

_UNSUPPORTED: Final = {
    "PDF": re.compile(rb"%PDF-"),
    "SVG": re.compile(rb"(?is)(\xef\xbb\xbf)?\s*<(svg\b|(\?xml|!--|!doctype svg).*?<svg\b)"),
    "PSD": re.compile(rb"8BPS"),
    "ICO or CUR": re.compile(rb"\0\0[\x01\x02]\0[^\0]"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "JPEG XL": re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"),
    "PostScript": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "PNM": re.compile(rb"P[1-7]\s"),
    "low-overhead AVIF or HEIF": re.compile(rb".{4}ftypmif3", re.DOTALL),
    "camera raw": re.compile(rb"FUJIFILMCCD-RAW|II(RO|RS|U\0)|.{4}ftypcrx ", re.DOTALL),
    "MP4 or QuickTime video": re.compile(rb".{4}(ftyp|moov)", re.DOTALL),
    "AVI video": re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
    "Matroska or WebM video": re.compile(rb"\x1a\x45\xdf\xa3"),
}


def _kind_of(data: bytes) -> str | Reject:
    head = data[:1024]
    for kind, signature in _ACCEPTED.items():
        if signature.match(head):
            return kind
    for name, signature in _UNSUPPORTED.items():
        if signature.match(head):
            return Reject(Reason.UNSUPPORTED, name)
    return Reject(Reason.NOT_AN_IMAGE, f"begins with {head[:8].hex(' ')}")


pillow_heif.register_heif_opener()

_SILENCE: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    # Pillow warns of what Limits decide or of harmless metadata. catch_warnings swaps a list that all
    # threads share, so a filter stays instead, and moves to the front when another went before it.
    if tuple(warnings.filters[:1]) != (_SILENCE,):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode(data: bytes, kind: str, size: int, limits: Limits, look: Look) -> Decoded:
    with _opened(data, kind, limits.max_pixels) as image:
        width, height = image.size
        check_size(width, height, limits.max_pixels)
        space = color_space(image, kind, data)
        if _is_deep_heif(image):
            budget.admit(width * height)
            deep = from_signal(space, _deep_signal(data, size))

            def square(part: Box) -> Image.Image:
                return deep.resize((size, size), Image.Resampling.BILINEAR, part.within((0, 0, size, size)))

        else:
            loaded = _load(image, kind, size)
            stretchable = _stretchable(image, space)

            def square(part: Box) -> Image.Image:
                return _to_square(stretchable, size, part.within(loaded), space)

        orientation = _orientation(image)

        def upright(part: Box) -> NDArray[np.uint8]:
            # A stretch to a square commutes with turning, and the small picture is cheaper to turn.
            stretched = square(part.before(orientation))
            turn = _UPRIGHT.get(orientation)
            return np.array(stretched if turn is None else stretched.transpose(turn), dtype=np.uint8)

        pixels = upright(WHOLE)
        insets = tuple(_insets(Inset(WHOLE, pixels), upright, look, MOST_INSETS))
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return Decoded(pixels, width, height, kind, insets)


def _insets(
    outer: Inset, upright: Callable[[Box], NDArray[np.uint8]], look: Look, most: int, depth: int = 0
) -> list[Inset]:
    """Returns the innermost parts of a part that lies in `depth` others, `most` at most."""
    boxes = look(outer.pixels, depth) if depth < MOST_DEPTH else ()
    if len(boxes) > most:
        return []
    found = []
    for box in boxes:
        part = box.of(outer.box)
        inset = Inset(part, upright(part))
        found += _insets(inset, upright, look, most // len(boxes), depth + 1) or [inset]
    return found


def _opened(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Opens a picture. What Pillow would refuse or show wrong comes decoded already."""
    if kind == "bmp" and (bitmap := bitmaps.read(data, max_pixels)):
        return bitmap
    if kind == "tiff":
        return _opened_tiff(data, max_pixels)
    if kind == "gif":
        return _opened_gif(data, max_pixels)
    if kind == "webp":  # unpacked where others only read the header
        budget.admit(budget.webp_pixels(data))
    whole = without_extras(data) if kind == "png" else data
    return Image.open(io.BytesIO(whole), formats=[kind.upper()])


def _opened_tiff(data: bytes, max_pixels: int) -> Image.Image:
    tiff = tiffs.directory(data)
    if tiff is None or not tiffs.needs_care(tiff):
        try:
            return Image.open(io.BytesIO(data), formats=["TIFF"])
        except UnidentifiedImageError:
            if tiff is None:
                raise
    return tiffs.read(data, tiff, max_pixels)


def _opened_gif(data: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["GIF"])
    frame = image.tile[0].extents if image.tile else None
    if frame is None or frame == (0, 0, *image.size) or "transparency" in image.info:
        return image
    # The canvas around a small frame is clear, as browsers have it; Pillow gives it the first color.
    check_size(*image.size, max_pixels)
    budget.admit(image.width * image.height)
    whole = Image.new("RGBA", image.size)
    whole.paste(image.convert("RGB").crop(frame), frame[:2])
    return whole


def _load(image: Image.Image, kind: str, size: int) -> tuple[float, float, float, float]:
    """Decodes the pixels; returns the part of the loaded picture that holds the whole original."""
    if not isinstance(image, ImageFile.ImageFile):  # decoded already
        return (0, 0, *image.size)
    _mend_color_key(image)
    # Only for JPEG: on HEIF a draft picks the embedded thumbnail, which may show something else.
    stored = image.width * image.height
    draft = image.draft(image.mode, (2 * size, 2 * size)) if kind == "jpeg" else None
    budget.admit(image.width * image.height, stored if "progressive" in image.info else 0)
    image.load()
    # A scaled JPEG is rounded up to whole pixels: its true edge can lie inside the last one.
    return draft[1] if draft else (0, 0, *image.size)


# Above this many pixels, the 16-bit copy of a HEIF would cost more than its precision is worth.
_DEEP_PIXELS: Final = 1 << 25


def _is_deep_heif(image: Image.Image) -> bool:
    deep = image.info.get("bit_depth", 8) > 8
    return deep and image.mode == "RGB" and image.width * image.height <= _DEEP_PIXELS


def _deep_signal(data: bytes, size: int) -> NDArray[np.float32]:
    """The square of a HEIF of 10 or 12 bit, 0–1: the plugin cuts it to 8 bit, a visible tint in HDR."""
    deep = np.asarray(pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False))
    planes = (Image.fromarray(deep[..., channel].astype(np.float32)) for channel in range(3))
    small = [np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return np.asarray(np.stack(small, axis=-1) / 65535, dtype=np.float32)


def _mend_color_key(image: ImageFile.ImageFile) -> None:
    """Brings a PNG's transparent color to 8 bit, as its pixels are; Pillow keeps it as stored."""
    key = image.info.get("transparency")
    stored = image.tile[0].args if image.tile else None
    if stored == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif stored in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if stored == "L;2" else 17)


_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied (TIFF and HEIF apply theirs while loading)."""
    try:
        if budget.shares_blocks(image.info.get("exif", b"")):
            return 1
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Garbled metadata is common in pictures that are otherwise whole; viewers show them unturned.
    except Exception:
        return 1


def _stretchable(image: Image.Image, space: ColorSpace) -> Image.Image:
    """Converts a picture to a mode that can be stretched, once for all of its parts."""
    if _is_deep_gray(image):
        return _deep_gray(image)
    if image.has_transparency_data:
        return _with_alpha(image)
    return image if image.mode in ("L", "RGB", space.mode) else image.convert("RGB")


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_square(
    image: Image.Image, size: int, box: tuple[float, float, float, float], space: ColorSpace
) -> Image.Image:
    square = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if _is_deep_gray(square):
        square = _from_deep_gray(square)
    # After the resize, when it costs a few milliseconds whatever the size of the picture. Before it, pixels
    # would differ by 0.3 to 0.8 of 255 on average (photos in RGB spaces), and by 1.4 in PQ of 8 bit.
    square = space.to_srgb(square)
    return _over_white(square) if square.mode == "RGBA" else square.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    straight = image.convert("LA") if image.mode == "La" else image
    return straight if straight.mode == "RGBA" else straight.convert("RGBA")


def _over_white(image: Image.Image) -> Image.Image:
    # After the resize, which weights colors by alpha: the same as before it but for rounding.
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _deep_gray(image: Image.Image) -> Image.Image:
    # Pillow resizes big-endian I;16B as if it were little-endian; mode I is safe.
    deep = image.convert("I") if image.mode.startswith("I;16") else image
    key = image.info.get("transparency")
    if isinstance(key, int):
        values = np.asarray(deep)
        deep = Image.fromarray(np.where(values == key, values.dtype.type(65535), values))
    return deep


def _from_deep_gray(image: Image.Image) -> Image.Image:
    white = 1.0 if image.mode == "F" else 65535.0
    return Image.fromarray(tiffs.stretched(np.asarray(image), white))


def _explain(error: Exception, data: bytes, kind: str) -> Reject:
    if isinstance(error, Image.DecompressionBombError):
        return Reject(Reason.TOO_MANY_PIXELS, f"{kind}: {error}")
    if isinstance(error, UnsupportedError):
        return Reject(Reason.UNSUPPORTED, str(error))
    # Pillow keeps to itself why no opener took a file.
    told = _refusal(data, kind) if isinstance(error, UnidentifiedImageError) else str(error)
    # Decoders behind Pillow say so in words.
    if isinstance(error, MemoryError) or "memory" in told.lower():
        return Reject(Reason.OVER_BUDGET, f"{kind}: more memory than decoding it may take")
    detail = f"{kind}: {' '.join(told.split())[:200] or type(error).__name__}"
    if "truncated" in detail.lower() or not _is_whole(data, kind):
        return Reject(Reason.TRUNCATED, detail)
    if kind in ("avif", "heif") and (coded := codec(data)) and coded not in _CODECS:
        return Reject(Reason.UNSUPPORTED, f"{coded!r} in {kind}")
    return Reject(Reason.UNSUPPORTED if _NOT_READ.search(detail) else Reason.CORRUPT, detail)


# Item types that libheif and libavif were built to read: AV1, HEVC, and what is derived from them.
_CODECS: Final = frozenset(("av01", "hvc1", "hev1", "grid", "iden", "iovl", "tmap", "sato"))


# What decoders say of files that may be whole: 12-bit or lossless JPEG, codecs that were not built in.
_NOT_READ: Final = re.compile(r"(?i)unsupported|not supported|cannot handle|unknown compression")


def _refusal(data: bytes, kind: str) -> str:
    try:
        Image.OPEN[kind.upper()][0](io.BytesIO(data), "")
    except Exception as error:
        return str(error) or "unreadable header"
    return "unreadable header"


def _is_whole(data: bytes, kind: str) -> bool:
    """False where the file visibly ends before its format says it does."""
    if kind == "jpeg":
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if kind == "png":
        return b"IEND" in data
    if kind == "gif":
        return data.rstrip(b"\0").endswith(b";")
    if kind == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if kind == "bmp":
        return len(data) >= int.from_bytes(data[2:6], "little")
    if kind == "tiff":  # the directory, often the last thing in the file
        place = slice(8, 16) if 43 in data[2:4] else slice(4, 8)
        return len(data) > int.from_bytes(data[place], "little" if data[:1] == b"I" else "big")
    return _boxes_end(data) <= len(data)


def _boxes_end(data: bytes) -> int:
    """Where the outermost boxes of an ISO media file (AVIF, HEIF) say it ends, in bytes."""
    end = 0
    while end + 8 <= len(data):
        length = int.from_bytes(data[end : end + 4], "big")
        if length == 1:  # the length follows the name, in 64 bits
            length = int.from_bytes(data[end + 8 : end + 16], "big")
        if length < 8:  # 0 means "up to the end of the file"; the rest is damage
            return len(data)
        end += length
    return end
