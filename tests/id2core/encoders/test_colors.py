from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from id2core.encoders import colors
from id2core.encoders.images import Decoded, decode
from tests import colored
from tests.broken import encode, picture
from tests.colored import ADOBE_RGB, BT709, BT2020, DISPLAY_P3, HLG, PQ, PROPHOTO, SRGB, SRGB_CURVE, Space

SIDE = 128
BEST = {"quality": 95, "subsampling": 0}
PROFILE_FORMATS = [("JPEG", BEST), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
PROFILE_FORMATS += [
    ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ("HEIF", {"quality": 95, "chroma": 444}),
]


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return picture(SIDE, SIDE)


def pixels(data: bytes) -> np.ndarray:
    result = decode(data, SIDE)
    assert isinstance(result, Decoded), result
    return result.pixels.astype(int)


def difference(data: bytes, image: Image.Image) -> float:
    return float(np.abs(pixels(data) - np.asarray(image.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize("space", [DISPLAY_P3, ADOBE_RGB, PROPHOTO], ids=["p3", "adobe", "prophoto"])
@pytest.mark.parametrize(("format", "options"), PROFILE_FORMATS, ids=[f for f, _ in PROFILE_FORMATS])
def test_a_profile_is_obeyed_in_every_format(scene, format, options, space):
    assert difference(colored.profiled(scene, format, space, **options), scene) < 2


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 2, 1)])
def test_swapped_channels_with_a_profile_to_match_are_swapped_back(scene, order):
    data = colored.profiled(scene, "PNG", SRGB, order)
    assert difference(encode(colored.stored(scene, SRGB, order), "PNG"), scene) > 20
    assert difference(data, scene) < 2


def test_a_large_picture_is_converted_as_well_after_the_resize_as_before():
    grain = np.random.default_rng(0).normal(0, 20, (700, 900, 1))
    photo = Image.fromarray(np.clip(np.asarray(picture(900, 700)) + grain, 0, 255).astype(np.uint8))
    small = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert difference(colored.profiled(photo, "PNG", DISPLAY_P3), small) < 1.5
    assert difference(colored.profiled(photo, "PNG", PROPHOTO), small) < 1.5


def test_alpha_and_palettes_keep_their_meaning_under_a_profile(scene):
    half = Image.linear_gradient("L").resize(scene.size)
    over_white = Image.new("RGB", scene.size, "white")
    over_white.paste(scene, mask=half)
    stored = colored.stored(scene, DISPLAY_P3)
    stored.putalpha(half)
    assert difference(encode(stored, "PNG", icc_profile=colored.profile(DISPLAY_P3)), over_white) < 2
    few = scene.quantize(32)
    palette = Image.frombytes("RGB", (32, 1), bytes(few.getpalette()[:96]))
    shown = few.convert("RGB")
    few.putpalette(colored.stored(palette, ADOBE_RGB).tobytes())
    assert difference(encode(few, "PNG", icc_profile=colored.profile(ADOBE_RGB)), shown) < 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_gray_profile_is_obeyed(scene, format):
    gray = scene.convert("L")
    linear = np.rint(colored.light(gray)[..., 0] * 255).astype(np.uint8)
    data = encode(Image.fromarray(linear), format, icc_profile=colored.gray_profile(1.0))
    # Linear light of 8 bit is coarse where it is dark.
    assert difference(data, gray) < 3


def test_a_press_profile_is_obeyed(scene):
    inks = np.zeros((SIDE, SIDE, 4), np.uint8)
    inks[..., 3] = np.linspace(0, 255, SIDE).astype(np.uint8)
    for format in ("TIFF", "JPEG"):
        data = encode(Image.fromarray(inks, "CMYK"), format, icc_profile=colored.press_profile())
        row = pixels(data)[SIDE // 2].mean(-1)
        assert row[0] < 10 and row[-1] > 245 and (np.diff(row) > -4).all()


def test_a_profile_of_srgb_changes_no_pixel(scene):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = pixels(encode(scene, "JPEG", **BEST))
    assert np.array_equal(pixels(encode(scene, "JPEG", icc_profile=profile, **BEST)), plain)
    assert colors.from_profile(profile, "RGB") is colors.SRGB


def test_what_is_no_usable_profile_counts_as_none(scene):
    good = colored.profile(DISPLAY_P3)
    bad = {
        "noise": bytes(range(256)) * 4,
        "cut off": good[:200],
        "no tags": good[:128] + bytes(4),
        "tags outside": good[:132] + good[132:].replace(b"XYZ\0", b"XYZ\xff"),
        "of gray": colored.gray_profile(1.8),
        "of a press": colored.press_profile(),
        "too large": good + bytes(colors.MAX_PROFILE_BYTES),
    }
    for name, profile in bad.items():
        assert difference(encode(scene, "PNG", icc_profile=profile), scene) == 0, name
    gray = scene.convert("L")
    assert difference(encode(gray, "TIFF", icc_profile=colored.press_profile()), gray) == 0


def test_damaged_profiles_never_spoil_a_picture(scene):
    rng = np.random.default_rng(0)
    for profile in (colored.profile(PROPHOTO), colored.press_profile(), colored.gray_profile(1.8)):
        for _ in range(8):
            damaged = np.frombuffer(profile, np.uint8).copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}[profile[16:20]]
            result = decode(
                encode(scene.resize((16, 16)).convert(mode), "TIFF", icc_profile=damaged.tobytes()), 8
            )
            assert isinstance(result, Decoded)


CODES = [(BT2020, PQ), (BT2020, HLG), (DISPLAY_P3, PQ), (DISPLAY_P3, SRGB_CURVE), (BT2020, BT709)]


@pytest.mark.parametrize("make", [colored.heic, colored.avif], ids=["heic", "avif"])
@pytest.mark.parametrize(("space", "transfer"), CODES)
def test_nclx_is_obeyed(scene, make, space, transfer):
    # PQ has few of an AVIF's 256 steps below paper white, and a lossy codec takes some.
    assert difference(make(scene, space, transfer), scene) < (4 if make is colored.avif else 2)


def test_an_avif_of_10_bit_gets_no_tint():
    shown = decode(colored.AVIF_OF_10_BIT, 24)
    assert isinstance(shown, Decoded)
    tint = (shown.pixels.astype(int) - np.asarray(picture(24, 24))).mean((0, 1))
    assert np.abs(tint).max() < 1


@pytest.mark.parametrize(("space", "transfer"), CODES)
def test_cicp_is_obeyed_in_png(scene, space, transfer):
    codes = (b"cICP", bytes((space.code, transfer, 0, 1)))
    assert difference(colored.png(colored.coded_pixels(scene, space, transfer), codes), scene) < 2


def test_an_hdr_profile_is_read_by_its_codes(scene):
    profile = colored.profile(BT2020, cicp=(9, PQ))
    data = encode(colored.coded_pixels(scene, BT2020, PQ), "JPEG", icc_profile=profile, **BEST)
    assert difference(data, scene) < 3  # few steps, as above


def test_highlights_beyond_white_darken_a_picture_evenly_where_there_are_many(scene):
    bright = np.clip(colored.light(scene, BT2020) * 4, 0, None)
    signal = np.rint(np.clip(colored.coded(bright, PQ), 0, 1) * 255).astype(np.uint8)
    shown = pixels(colored.png(Image.fromarray(signal), (b"cICP", bytes((9, PQ, 0, 1)))))
    scale = np.clip(colored.light(scene).max(-1), 0, 1)
    scale = np.percentile(scale, 99)
    expected = colored.coded(np.clip(colored.light(scene) / scale, 0, 1), SRGB_CURVE) * 255
    assert np.abs(shown - expected).mean() < 2


def test_gamma_and_chromaticities_are_obeyed_in_png(scene):
    def gamma(space: Space) -> tuple[bytes, bytes]:
        return b"gAMA", round(100_000 / space.gamma).to_bytes(4, "big")

    linear = Space(SRGB.primaries, gamma=1.0)
    assert difference(colored.png(colored.stored(scene, linear), gamma(linear)), scene) < 2
    for space in (DISPLAY_P3, PROPHOTO):
        chunks = (gamma(space), (b"cHRM", colored.chromaticities(space)))
        assert difference(colored.png(colored.stored(scene, space), *chunks), scene) < 2
    senseless = (b"cHRM", bytes(32))
    assert difference(colored.png(scene, (b"gAMA", bytes(4)), senseless), scene) == 0
    assert isinstance(decode(colored.png(scene, gamma(linear), senseless)), Decoded)


def test_of_several_chunks_the_first_of_the_standards_order_counts(scene):
    gamma = (b"gAMA", (100_000).to_bytes(4, "big"))
    srgb = (b"sRGB", b"\0")
    adobe = (b"iCCP", b"a\0\0" + zlib.compress(colored.profile(ADOBE_RGB)))
    broken = (b"iCCP", b"a\0\0" + b"no zlib")
    codes = (b"cICP", bytes((12, SRGB_CURVE, 0, 1)))
    unknown = (b"cICP", bytes((99, 99, 0, 1)))
    assert difference(colored.png(scene, gamma, srgb), scene) == 0
    assert difference(colored.png(scene, gamma, broken, srgb), scene) == 0
    stored = colored.stored(scene, ADOBE_RGB)
    assert difference(colored.png(stored, gamma, srgb, adobe), scene) < 2
    assert difference(colored.png(stored, unknown, adobe), scene) < 2
    p3 = colored.coded_pixels(scene, DISPLAY_P3, SRGB_CURVE)
    assert difference(colored.png(p3, gamma, adobe, srgb, codes), scene) < 2


def test_threads_share_transforms(scene):
    files = [colored.profiled(scene, "PNG", space) for space in (DISPLAY_P3, ADOBE_RGB, PROPHOTO)] * 8
    expected = [pixels(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for answer, one in zip(pool.map(pixels, files), expected, strict=True):
            assert np.array_equal(answer, one)
