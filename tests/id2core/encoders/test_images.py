from __future__ import annotations

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from id2core.encoders.images import Decoded, Limits, decode
from id2core.store.rejects import Reason, Reject
from tests.broken import HEIGHT, WIDTH, broken_files, encode, good_files, picture, raw_png, see_through

GOOD, BROKEN = good_files(), broken_files()

EXPECTED = {
    Reason.EMPTY: "empty.jpg",
    Reason.NOT_AN_IMAGE: "one_byte.jpg text_named.jpg text_like_bmp.bmp html_error_page.png json.jpg "
    "zip.zip gzip.gz wav.wav zeros.png random.jpg",
    Reason.UNSUPPORTED: "pdf.pdf svg.svg psd.psd ico.ico eps.eps jpeg2000.jp2 jpeg_xl.jxl "
    "video.mp4 video.avi video.mkv",
    Reason.TRUNCATED: "jpeg_half.jpg jpeg_progressive_half.jpg png_half.png gif_half.gif bmp_half.bmp "
    "webp_half.webp tiff_half.tif avif_half.avif heif_half.heic jpeg_header_only.jpg "
    "jpeg_without_last_bytes.jpg png_header_only.png",
    Reason.CORRUPT: "png_bad_crc.png png_garbled_pixels.png png_zero_width.png png_without_pixels.png "
    "jpeg_header_then_noise.jpg bmp_zero_width.bmp tiff_broken_directory.tif gif_without_frames.gif "
    "webp_garbled.webp avif_garbled.avif",
    Reason.TOO_MANY_PIXELS: "png_bomb.png png_just_above_the_limit.png bmp_absurd_size.bmp "
    "gif_absurd_size.gif",
}
REASON_OF = {name: reason for reason, names in EXPECTED.items() for name in names.split()}


def decoded(data: bytes, size: int = 256) -> Decoded:
    result = decode(data, size)
    assert isinstance(result, Decoded), result
    return result


def rejected(data: bytes, limits: Limits) -> Reason:
    result = decode(data, limits=limits)
    assert isinstance(result, Reject)
    return result.reason


def pixels(data: bytes, size: int = 256) -> np.ndarray:
    return decoded(data, size).pixels.astype(int)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def stretched(image: Image.Image, size: int = 256) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)


def plain(data: bytes) -> np.ndarray:
    return stretched(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_rejected_for_the_right_reason(name):
    result = decode(BROKEN[name])
    assert isinstance(result, Reject)
    assert result.reason == REASON_OF[name]
    assert "0x" not in result.detail  # an address would differ from run to run
    assert result == decode(BROKEN[name])


@pytest.mark.parametrize("name", GOOD)
def test_good_file_decodes_to_its_size_and_format(name):
    result = decoded(GOOD[name])
    assert result.format == name.partition("_")[0]
    assert (result.width, result.height) == ((HEIGHT, WIDTH) if "turned" in name else (WIDTH, HEIGHT))
    assert result.pixels.shape == (256, 256, 3)
    assert result.pixels.dtype == np.uint8


SPECIAL = ("gray", "1bit", "int32", "float", "alpha", "rgba", "_la.", "transparent", "turned")


@pytest.mark.parametrize("name", [name for name in GOOD if not any(word in name for word in SPECIAL)])
def test_color_file_shows_the_scene_it_was_made_of(name):
    # Covers CMYK and LAB, and that an animation or a phone's JPEG gives its first picture:
    # the later ones are black and white.
    assert mean_difference(pixels(GOOD[name]), stretched(picture())) < 5


@pytest.mark.parametrize(
    "name", [name for name in GOOD if "gray" in name or "int32" in name or "float" in name]
)
def test_deep_gray_is_scaled_to_eight_bit(name):
    expected = stretched(picture().convert("L"))[..., None]
    assert mean_difference(pixels(GOOD[name]), expected) < 1.5


def test_one_bit_keeps_the_brightness():
    assert abs(pixels(GOOD["png_1bit.png"]).mean() - stretched(picture().convert("L")).mean()) < 5


@pytest.mark.parametrize(
    "name", ["png_rgba.png", "webp_alpha.webp", "gif_transparent.gif", "avif_alpha.avif", "heif_alpha.heic"]
)
def test_transparency_is_laid_over_white(name):
    over_white = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    over_white.alpha_composite(see_through())
    result = pixels(GOOD[name])
    assert mean_difference(result, stretched(over_white.convert("RGB"))) < 3
    assert result[:, 150:].min() >= 250


def test_half_transparent_black_becomes_gray():
    assert (
        decoded(encode(Image.new("RGBA", (9, 9), (0, 0, 0, 128)), "PNG")).pixels[5, 5].tolist() == [127] * 3
    )
    assert decoded(encode(Image.new("LA", (9, 9), (0, 128)), "PNG")).pixels[5, 5].tolist() == [127] * 3


def test_soft_edge_over_white_is_the_same_before_and_after_the_resize():
    alpha = Image.linear_gradient("L").resize((300, 200))
    image = picture(300, 200)
    image.putalpha(alpha)
    over_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.abs(pixels(encode(image, "PNG")) - stretched(over_white)).max() <= 2


@pytest.mark.parametrize(
    ("depth", "color", "row", "key"),
    [
        (1, 0, b"\x40", struct.pack(">H", 0)),
        (2, 0, b"\x10", struct.pack(">H", 0)),
        (2, 0, b"\x60", struct.pack(">H", 1)),
        (4, 0, b"\x53", struct.pack(">H", 5)),
        (8, 0, b"\x05\x0a", struct.pack(">H", 5)),
        (16, 0, b"\x12\x34\x40\x00", struct.pack(">H", 0x1234)),
        (8, 2, b"\x01\x02\x03\x04\x05\x06", struct.pack(">3H", 1, 2, 3)),
        (16, 2, b"\x11\x22\x33\x44\x55\x66" + b"\x10" * 6, struct.pack(">3H", 0x1122, 0x3344, 0x5566)),
    ],
)
def test_color_key_of_every_depth_becomes_white(depth, color, row, key):
    result = pixels(raw_png((2, 1), depth, color, [row], key), size=2)
    assert result[0, 0].tolist() == [255] * 3
    if depth > 1:
        assert result[0, 1].max() < 200


def test_values_outside_the_usual_range_are_stretched_from_minimum_to_maximum():
    ramp = np.linspace(-50_000, 900_000, 64).reshape(8, 8)
    for dtype in (np.float32, np.int32):
        result = pixels(encode(Image.fromarray(ramp.astype(dtype)), "TIFF"), size=8)
        assert (result.min(), result.max()) == (0, 255)


def test_not_a_number_counts_as_black_and_spoils_nothing_else():
    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0], values[7, 7] = np.nan, np.inf
    result = pixels(encode(Image.fromarray(values), "TIFF"), size=8)
    assert result[0, 0, 0] == result[7, 7, 0] == 0
    assert result[3, 3, 0] == 128


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_all_orientations_give_the_same_upright_picture(format):
    upright = picture(90, 60)
    turn_back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # values of Image.Transpose
    for orientation, method in turn_back.items():
        stored = upright if method is None else upright.transpose(Image.Transpose(method))
        exif = Image.Exif()
        exif[0x0112] = orientation
        result = decoded(encode(stored, format, exif=exif.tobytes(), quality=95))
        assert (result.width, result.height) == (90, 60)
        assert mean_difference(result.pixels, stretched(upright)) < 3, orientation


def test_broken_metadata_does_not_spoil_a_good_picture():
    data = encode(picture(), "JPEG", quality=90, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40)
    assert mean_difference(pixels(data), plain(GOOD["jpeg_rgb.jpg"])) < 1


@pytest.mark.parametrize("size", [(2051, 1403), (1100, 3307)])
def test_scaled_decoding_of_a_large_jpeg_is_close_to_the_plain_path(size):
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 12, (size[1], size[0], 1))
    photo = np.clip(np.asarray(picture(*size)) + grain, 0, 255).astype(np.uint8)
    data = encode(Image.fromarray(photo), "JPEG", quality=90)
    result = decoded(data)
    assert (result.width, result.height) == size
    assert mean_difference(result.pixels, plain(data)) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (255, 257)])
def test_odd_shapes_decode(size):
    for format in ("JPEG", "PNG"):
        result = decoded(encode(picture(*size), format))
        assert (result.width, result.height) == size


def test_limits_hold_exactly():
    data = GOOD["png_rgb.png"]
    assert isinstance(decode(data, limits=Limits(len(data), WIDTH * HEIGHT)), Decoded)
    assert rejected(data, Limits(max_bytes=len(data) - 1)) == Reason.TOO_LARGE_FILE
    assert rejected(data, Limits(max_pixels=WIDTH * HEIGHT - 1)) == Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", ["png_rgb.png", "jpeg_rgb.jpg", "webp_lossy.webp", "heif_rgb.heic"])
def test_too_many_pixels_is_found_before_the_pixels_are_needed(name):
    data = GOOD[name] if name.startswith(("webp", "heif")) else GOOD[name][:-200]
    assert rejected(data, Limits(max_pixels=10)) == Reason.TOO_MANY_PIXELS


def test_nonsense_size_is_the_callers_error():
    with pytest.raises(ValueError, match="at least 1"):
        decode(GOOD["png_rgb.png"], size=0)


def test_warnings_of_pillow_do_not_leak_under_any_filter():
    large = raw_png((10_000, 10_000), 8, 0, [b""])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert decode(large).reason == Reason.TRUNCATED
        warnings.simplefilter("error")
        assert decode(large).reason == Reason.TRUNCATED
    assert not seen


def test_threads_get_the_same_answers_as_one_after_the_other():
    jobs = [*GOOD.values(), *BROKEN.values()] * 2
    with ThreadPoolExecutor(8) as pool:
        for data, answer in zip(jobs, pool.map(decode, jobs), strict=True):
            expected = decode(data)
            if isinstance(expected, Decoded) and isinstance(answer, Decoded):
                assert np.array_equal(answer.pixels, expected.pixels)
            else:
                assert answer == expected


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(GOOD[draw(st.sampled_from(sorted(GOOD)))])
    # Half of the damage goes to the first bytes, where a format keeps its structure.
    last = draw(st.sampled_from((min(200, len(data)), len(data)))) - 1
    for position in draw(st.lists(st.integers(0, last), max_size=6)):
        data[position] ^= draw(st.integers(1, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=150)
@given(damaged())
def test_no_damage_raises(data):
    result = decode(data, size=32, limits=Limits(max_pixels=2_000_000))
    if isinstance(result, Decoded):
        assert result.pixels.shape == (32, 32, 3)
    else:
        assert result.reason in Reason
