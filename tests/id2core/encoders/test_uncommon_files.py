"""Whole files of uncommon make: shown right, or refused with a reason that is true."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from id2core.encoders.images import Decoded, Limits, decode
from id2core.store.rejects import Reason, Reject
from tests import colored, raw_files
from tests.broken import encode, good_files, picture
from tests.raw_files import absolute, masked_bmp, repeated, run_length_bmp, small_frame_gif, tiff

WIDTH, HEIGHT = 131, 97
SCENE = picture(WIDTH, HEIGHT)


def difference(data: bytes, image: Image.Image) -> float:
    result = decode(data)
    assert isinstance(result, Decoded), result
    assert (result.width, result.height) == image.size
    shown = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
    return float(np.abs(result.pixels.astype(int) - shown).mean())


def reject(data: bytes) -> Reject:
    result = decode(data)
    assert isinstance(result, Reject)
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("run", [3, 4, 5, 15, 30, 254, 255])
def test_stored_runs_of_any_length(bits, run):
    few = SCENE.quantize(1 << bits)
    assert difference(run_length_bmp(few, bits, absolute(bits, run)), few) == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_repeated_runs_and_steps(bits):
    few = SCENE.quantize(1 << bits)
    assert difference(run_length_bmp(few, bits, repeated(bits)), few) == 0


def test_steps_upwards_short_lines_and_early_ends_leave_the_first_color():
    palette = bytes((10, 20, 30, 0)) + bytes((200, 100, 50, 0)) * 255
    codes = b"\2\1\0\0" + b"\0\2\1\2" + b"\1\1" + b"\0\1"  # two pixels; a step by (1, 2); one pixel; the end
    result = decode(raw_files.bmp((4, 4), 8, 1, codes, palette), size=4)
    drawn = {(3, 0), (3, 1), (0, 1)}
    for row in range(4):
        for column in range(4):
            expected = [50, 100, 200] if (row, column) in drawn else [30, 20, 10]
            assert result.pixels[row, column].tolist() == expected, (row, column)


def test_runs_that_leave_the_picture_are_cut_and_missing_ones_are_truncation():
    few = SCENE.quantize(16)
    data = run_length_bmp(few, 4, absolute(4, 15))
    assert reject(data[:-900]).reason == Reason.TRUNCATED
    wild = raw_files.bmp((4, 2), 8, 1, b"\xff\1\0\2\xff\xff\4\1\0\1", bytes(1024))
    assert isinstance(decode(wild), Decoded)
    assert isinstance(decode(run_length_bmp(few, 4, absolute(4, 15)), limits=Limits(max_pixels=100)), Reject)


MASKS = [
    (32, (0xFF, 0xFF00, 0xFF0000), 0.5),
    (32, (0xFF00, 0xFF0000, 0xFF000000), 0.5),
    (32, (0x3FF00000, 0xFFC00, 0x3FF), 1.5),
    (24, (0xFF, 0xFF00, 0xFF0000), 0.5),
    (16, (0xF800, 0x7E0, 0x1F), 5),
    (16, (0x1F, 0x7E0, 0xF800), 5),
    (16, (0x7C00, 0x3E0, 0x1F), 5),
    (16, (0xF00, 0xF0, 0xF), 9),
]


@pytest.mark.parametrize(("bits", "masks", "limit"), MASKS)
def test_color_masks_of_any_layout(bits, masks, limit):
    assert difference(masked_bmp(SCENE, bits, masks), SCENE) < limit


def test_a_mask_of_alpha_counts_where_it_is_used():
    clear = SCENE.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(SCENE.size))
    over = Image.alpha_composite(Image.new("RGBA", SCENE.size, "white"), clear)
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    assert difference(masked_bmp(clear, 32, masks), over) < 1
    clear.putalpha(0)
    assert difference(masked_bmp(clear, 32, masks), SCENE) < 1


def test_a_bmp_keeps_its_profile():
    stored, profile = colored.stored(SCENE, colored.SRGB, (1, 2, 0)), colored.profile(colored.SRGB, (1, 2, 0))
    plain = encode(stored, "BMP")
    head = bytearray(124)
    head[:40] = plain[14:54]
    head[0], pixels = 124, plain[54:]
    head[56:60], head[112:120] = b"DEBM", struct.pack("<II", 124 + len(pixels), len(profile))
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + bytes(head) + pixels + profile
    assert difference(data, SCENE) < 1.5


def deep(dtype: str) -> np.ndarray:
    kind, pixels = np.dtype(dtype), np.asarray(SCENE)
    if kind.kind == "f":
        return (pixels / 255).astype(kind)
    return (pixels.astype(np.uint64) * (np.iinfo(kind).max // 255)).astype(kind)


@pytest.mark.parametrize("layout", [{}, {"tile": 48}], ids=["strips", "tiles"])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", "<f2", "<f4", ">f4", "<f8", "<i2"])
def test_samples_of_any_depth_order_and_cut(dtype, planar, layout):
    for packed in (False, True):
        assert difference(tiff(deep(dtype), planar=planar, packed=packed, **layout), SCENE) < 1


@pytest.mark.parametrize("tile", [0, 48])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize(("dtype", "predictor"), [("<u2", 2), (">u2", 2), ("<u4", 2), ("<f4", 3), (">f4", 3)])
def test_predictors_are_undone(dtype, predictor, planar, tile):
    data = tiff(deep(dtype), planar=planar, packed=True, predictor=predictor, tile=tile)
    assert difference(data, SCENE) < 1


def test_other_colors_alpha_and_orientation_of_deep_tiffs():
    gray = SCENE.convert("L")
    shades = np.asarray(gray)[..., None].astype("<u2") * 257
    assert difference(tiff(shades, photometric=1, packed=True), gray) < 1
    assert difference(tiff(65535 - shades, photometric=0), gray) < 1
    inks = 65535 - np.dstack([deep("<u2"), np.full((HEIGHT, WIDTH), 65535, "<u2")])
    assert difference(tiff(inks, photometric=5, planar=True), SCENE) < 1
    for extra in (1, 2):
        alpha = np.linspace(0, 65535, WIDTH).astype("<u2")[None, :, None] + np.zeros((HEIGHT, 1, 1), "<u2")
        values = (deep("<u2") * (alpha / 65535)).astype("<u2") if extra == 1 else deep("<u2")
        over = np.asarray(SCENE) * (alpha / 65535) + 255 * (1 - alpha / 65535)
        data = tiff(np.dstack([values, alpha]), planar=True, extra=extra)
        assert difference(data, Image.fromarray(over.astype(np.uint8))) < 1.5
    turned = SCENE.transpose(Image.Transpose.ROTATE_90)
    turned_samples = np.asarray(turned).astype("<u2") * 257
    assert difference(tiff(turned_samples, planar=True, orientation=6), SCENE) < 1


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_big_tiffs_of_both_byte_orders(order):
    assert difference(tiff(deep(order), big=True, packed=True), SCENE) < 1
    assert reject(tiff(deep(order), big=True)[:-3000]).reason == Reason.TRUNCATED


def test_webp_inside_tiff():
    blocks = [SCENE.crop((0, top, WIDTH, min(top + 50, HEIGHT))) for top in (0, 50)]
    coded = [encode(block, "WEBP", lossless=True) for block in blocks]
    assert difference(tiff(np.asarray(SCENE), compression=50001, coded=coded), SCENE) == 0


def test_the_limit_of_pixels_holds_for_deep_tiffs():
    result = decode(tiff(deep("<u2"), planar=True), limits=Limits(max_pixels=1000))
    assert isinstance(result, Reject) and result.reason == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("corner", [(0, 0), (20, 11), (31, 47)])
@pytest.mark.parametrize("colors", [2, 64, 256])
def test_the_canvas_around_a_small_gif_frame_is_clear(corner, colors):
    frame = picture(100, 50).quantize(colors)
    shown = Image.new("RGB", (WIDTH, HEIGHT), "white")
    shown.paste(frame.convert("RGB"), corner)
    assert difference(small_frame_gif(frame, (WIDTH, HEIGHT), corner), shown) < 0.1
    gray = picture(100, 50).convert("L")
    shown.paste(gray, corner)
    assert difference(small_frame_gif(gray, (WIDTH, HEIGHT), corner), shown) < 0.1


def test_long_texts_in_a_png_are_no_reason_to_refuse_it():
    for add in ("add_text", "add_itxt"):
        for packed in (False, True):
            texts = PngImagePlugin.PngInfo()
            getattr(texts, add)("workflow", '{"node": 1}' * 300_000, zip=packed)
            assert difference(encode(SCENE, "PNG", pnginfo=texts), SCENE) == 0


def test_what_nothing_here_reads_is_called_unsupported():
    good = good_files()
    jpeg, heif = good["jpeg_rgb.jpg"], good["heif_rgb.heic"]
    depth = jpeg.index(b"\xff\xc0") + 4
    cases = {
        "12-bit JPEG": jpeg[:depth] + b"\x0c" + jpeg[depth + 1 :],
        "VVC in HEIF": heif.replace(b"hvc1", b"vvc1"),
        "low-overhead AVIF": b"\0\0\0\x10ftypmif3avif\0\0\0\x20mini" + bytes(24),
        "JPEG in BMP": raw_files.bmp((8, 8), 0, 4, jpeg),
        "2-bit BMP": raw_files.bmp((8, 8), 2, 0, bytes(32), bytes(16)),
        "JPEG XL in TIFF": tiff(deep("u1"), compression=50002),
        "palette of 16 bit": tiff(deep("<u2")[..., :1], photometric=3),
        "64-bit integers": tiff(deep("<u4").astype("<u8")),
    }
    for name, data in cases.items():
        assert reject(data).reason == Reason.UNSUPPORTED, (name, reject(data))
