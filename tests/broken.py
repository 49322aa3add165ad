"""Small picture files, good and broken, made in code. Keys are file names.

The part of a good file's name before the first underscore is the format it decodes to.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import wave
import zipfile
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageDraw

pillow_heif.register_heif_opener()

WIDTH, HEIGHT = 96, 64


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth RGB scene that looks different turned or mirrored in any way."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 40 + 180 * x, 60 + 140 * y, 200 - 120 * x * y
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.4, height * 0.5), fill=(220, 40, 30))
    draw.rectangle((width * 0.6, height * 0.55, width * 0.9, height * 0.75), fill=(20, 60, 140))
    return image


def see_through() -> Image.Image:
    """The scene in RGBA: opaque on the left half, invisible (over black) on the right half."""
    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    image.paste(picture().crop((0, 0, WIDTH // 2, HEIGHT)), (0, 0))
    return image


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(size: tuple[int, int], depth: int, color: int, rows: Sequence[bytes], key: bytes = b"") -> bytes:
    """A PNG of the given bit depth and color type; `key` is the body of its tRNS chunk."""
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"tRNS", key) if key else b"",
            png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            png_chunk(b"IEND", b""),
        )
    )


def _deep_png() -> bytes:
    deep = np.asarray(picture()).astype(">u2") * 257
    return raw_png((WIDTH, HEIGHT), 16, 2, [row.tobytes() for row in deep])


def _oriented(format: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), format, exif=exif.tobytes(), **options)


def _good_rasters() -> dict[str, bytes]:
    scene, gray, clear = picture(), picture().convert("L"), see_through()
    deep_gray = np.asarray(gray).astype(np.uint16) * 257
    later = [Image.new("RGB", scene.size, color) for color in ("black", "white")]
    palette = scene.quantize(64)
    return {
        "jpeg_rgb.jpg": encode(scene, "JPEG", quality=90),
        "jpeg_gray.jpg": encode(gray, "JPEG", quality=90),
        "jpeg_progressive.jpg": encode(scene, "JPEG", quality=90, progressive=True),
        "jpeg_cmyk.jpg": encode(scene.convert("CMYK"), "JPEG", quality=90),
        "jpeg_turned.jpg": _oriented("JPEG", 6, quality=90),
        "jpeg_of_a_phone.jpg": encode(scene, "MPO", save_all=True, append_images=later, quality=90),
        "jpeg_named.png": encode(scene, "JPEG", quality=92),
        "png_rgb.png": encode(scene, "PNG"),
        "png_rgba.png": encode(clear, "PNG"),
        "png_la.png": encode(clear.convert("LA"), "PNG"),
        "png_palette.png": encode(palette, "PNG"),
        "png_palette_transparent.png": encode(palette, "PNG", transparency=0),
        "png_1bit.png": encode(scene.convert("1"), "PNG"),
        "png_gray16.png": encode(Image.fromarray(deep_gray), "PNG"),
        "png_rgb16.png": _deep_png(),
        "png_color_key.png": encode(scene, "PNG", transparency=scene.getpixel((0, 0))),
        "png_animated.png": encode(scene, "PNG", save_all=True, append_images=later),
        "bmp_rgb.bmp": encode(scene, "BMP"),
        "bmp_palette.bmp": encode(palette, "BMP"),
    }


def _good_others() -> dict[str, bytes]:
    scene, clear = picture(), see_through()
    gray = np.asarray(scene.convert("L"))
    later = [Image.new("RGB", scene.size, color) for color in ("black", "white")]
    animation: dict[str, Any] = {"save_all": True, "append_images": later, "duration": 100}
    return {
        "webp_lossy.webp": encode(scene, "WEBP", quality=90),
        "webp_alpha.webp": encode(clear, "WEBP", lossless=True),
        "webp_animated.webp": encode(scene, "WEBP", **animation),
        "gif_still.gif": encode(scene, "GIF"),
        "gif_animated.gif": encode(scene, "GIF", **animation),
        "gif_transparent.gif": encode(clear, "GIF"),
        "tiff_rgb.tif": encode(scene, "TIFF", compression="tiff_lzw"),
        "tiff_cmyk.tif": encode(scene.convert("CMYK"), "TIFF"),
        "tiff_lab.tif": encode(scene.convert("LAB"), "TIFF"),
        "tiff_turned.tif": _oriented("TIFF", 6),
        "tiff_gray16_big_endian.tif": encode(Image.fromarray(gray.astype(">u2") * 257), "TIFF"),
        "tiff_int32.tif": encode(Image.fromarray(gray.astype(np.int32) * 257), "TIFF"),
        "tiff_float.tif": encode(Image.fromarray(gray.astype(np.float32) / 255), "TIFF"),
        "avif_rgb.avif": encode(scene, "AVIF", quality=85),
        "avif_alpha.avif": encode(clear, "AVIF", quality=85),
        "heif_rgb.heic": encode(scene, "HEIF", quality=85),
        "heif_alpha.heic": encode(clear, "HEIF", quality=85),
    }


@cache
def _good_items() -> tuple[tuple[str, bytes], ...]:
    return tuple({**_good_rasters(), **_good_others()}.items())


def good_files() -> dict[str, bytes]:
    """File name → bytes; each decodes to the scene of `picture` or `see_through`, some in gray."""
    return dict(_good_items())


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "not a picture")
    return file.getvalue()


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    return file.getvalue()


def _no_pictures() -> dict[str, bytes]:
    return {
        "empty.jpg": b"",
        "one_byte.jpg": b"\xff",
        "text_named.jpg": b"This is not a picture.\n",
        "text_like_bmp.bmp": b"BM was here, and left nothing but text.\n",
        "html_error_page.png": b"<!DOCTYPE html><html><body>404 <svg/></body></html>",
        "json.jpg": b'{"error": "not found"}',
        "zip.zip": _zip(),
        "gzip.gz": gzip.compress(encode(picture(), "PNG"), mtime=0),
        "wav.wav": _wav(),
        "zeros.png": bytes(4096),
        "random.jpg": random.Random(0).randbytes(4096),
    }


def _unsupported() -> dict[str, bytes]:
    scene = picture()
    return {
        "pdf.pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "svg.svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "psd.psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 96, 8, 3) + bytes(64),
        "ico.ico": encode(scene, "ICO"),
        "eps.eps": encode(scene, "EPS"),
        "jpeg2000.jp2": encode(scene, "JPEG2000"),
        "jpeg_xl.jxl": b"\xff\x0a" + random.Random(1).randbytes(200),
        "video.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64),
        "video.avi": b"RIFF" + struct.pack("<I", 100) + b"AVI LIST" + bytes(92),
        "video.mkv": b"\x1a\x45\xdf\xa3" + bytes(64),
    }


def _truncated() -> dict[str, bytes]:
    good = good_files()
    halves = {
        "jpeg_half.jpg": "jpeg_rgb.jpg",
        "jpeg_progressive_half.jpg": "jpeg_progressive.jpg",
        "png_half.png": "png_rgb.png",
        "gif_half.gif": "gif_still.gif",
        "bmp_half.bmp": "bmp_rgb.bmp",
        "webp_half.webp": "webp_lossy.webp",
        "tiff_half.tif": "tiff_rgb.tif",
        "avif_half.avif": "avif_rgb.avif",
        "heif_half.heic": "heif_rgb.heic",
    }
    return {
        **{name: good[source][: len(good[source]) // 2] for name, source in halves.items()},
        "jpeg_header_only.jpg": good["jpeg_rgb.jpg"][:100],
        "jpeg_without_last_bytes.jpg": good["jpeg_rgb.jpg"][:-10],
        "png_header_only.png": good["png_rgb.png"][:20],
    }


def _corrupt() -> dict[str, bytes]:
    good = good_files()
    png, bmp, tiff = good["png_rgb.png"], good["bmp_rgb.bmp"], good["tiff_rgb.tif"]
    avif = good["avif_rgb.avif"]
    directory = int.from_bytes(tiff[4:8], "little")
    noise = random.Random(2).randbytes(2000).replace(b"\xff", b"\0")
    return {
        "png_bad_crc.png": png[:29] + bytes(byte ^ 255 for byte in png[29:33]) + png[33:],
        "png_garbled_pixels.png": png[:60] + bytes(byte ^ 85 for byte in png[60:200]) + png[200:],
        "png_zero_width.png": raw_png((0, 5), 8, 2, []),
        "png_without_pixels.png": png[:33] + png_chunk(b"IEND", b""),
        "jpeg_header_then_noise.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + noise + b"\xff\xd9",
        "bmp_zero_width.bmp": bmp[:18] + struct.pack("<i", 0) + bmp[22:],
        "tiff_broken_directory.tif": tiff[:directory] + noise[: len(tiff) - directory],
        "gif_without_frames.gif": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";",
        "webp_garbled.webp": b"RIFF" + struct.pack("<I", 204) + b"WEBP" + noise[:200],
        "avif_garbled.avif": avif[:48] + noise[:60] + avif[108:],
    }


def _bombs() -> dict[str, bytes]:
    bmp, png = good_files()["bmp_rgb.bmp"], raw_png((60_000, 60_000), 8, 2, [])
    return {
        "png_bomb.png": png,
        "png_just_above_the_limit.png": raw_png((13_378, 13_378), 8, 2, []),
        "bmp_absurd_size.bmp": bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:],
        "gif_absurd_size.gif": b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x08\x01\0\0;",
    }


@cache
def _broken_items() -> tuple[tuple[str, bytes], ...]:
    groups = (_no_pictures(), _unsupported(), _truncated(), _corrupt(), _bombs())
    return tuple((name, data) for group in groups for name, data in group.items())


def broken_files() -> dict[str, bytes]:
    """File name → bytes; none of them may become a picture."""
    return dict(_broken_items())
