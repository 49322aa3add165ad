"""Pictures inside a frame are found, others are left alone, and latents are mirrored like pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from id2core.encoders import images, latent_views, views
from id2core.encoders.images import Decoded
from id2core.encoders.latent_views import MIRRORED, MOVES, LatentView
from id2core.encoders.views import WHOLE, Box
from id2core.errors import EncoderError
from id2core.experiments.upload_edits import EDITS
from tests.drawing import collage, framed, scene

FRAMES = ("border-plain-thin", "border-plain-thick", "border-blurred-thick", "screenshot")


def saved(picture: Image.Image, quality: int = 80, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def decoded(file: bytes) -> Decoded:
    picture = images.decode(file, look=views.insets)
    assert isinstance(picture, Decoded)
    return picture


def far(some: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(some.astype(float) - others).mean())


@pytest.mark.parametrize("color", ["white", "black", "#407f20"])
@pytest.mark.parametrize(("left", "top"), [(20, 20), (80, 80), (0, 60), (60, 0), (9, 9)])
def test_the_picture_inside_a_plain_frame_is_cut_out(color: str, left: int, top: int) -> None:
    picture = scene(1, (480, 360))
    (box,) = views.insets(decoded(saved(framed(picture, color, left, top))).pixels)

    width, height = 480 + 2 * left, 360 + 2 * top
    true = (left / width, top / height, 1 - left / width, 1 - top / height)
    found = (box.left, box.top, box.right, box.bottom)
    assert np.abs(np.subtract(found, true)).max() < 2.5 / 256


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
@pytest.mark.parametrize(("left", "top", "right", "bottom"), np.eye(4, dtype=int).tolist())
def test_the_picture_beside_a_bar_is_cut_out(
    share: float, left: int, top: int, right: int, bottom: int
) -> None:
    picture = scene(1, (480, 360))
    width, height = round(480 * share), round(360 * share)
    bars = (left * width, top * height, right * width, bottom * height)
    upload = ImageOps.expand(picture, bars, "#f0e020")

    (box,) = views.insets(decoded(saved(upload)).pixels)
    true = np.divide((*bars[:2], bars[0] + 480, bars[1] + 360), upload.size * 2)
    assert np.abs(np.subtract((box.left, box.top, box.right, box.bottom), true)).max() < 2.5 / 256


def test_a_lettered_bar_is_cut_off_in_a_screenshot_too() -> None:
    seen = 0
    for seed in range(12):
        captioned = EDITS["caption"](scene(seed, (480, 360)), f"{seed}", scene(seed))
        for upload in (captioned, framed(captioned, "black", 30)):
            insets = decoded(saved(upload)).insets
            share = max(
                (inset.box.right - inset.box.left) * (inset.box.bottom - inset.box.top) for inset in insets
            )
            seen += abs(share - 480 * 360 / (upload.width * upload.height)) < 0.03
    assert seen >= 22


@pytest.mark.parametrize("color", ["white", "black"])
@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_a_border_of_a_pixel_is_cut_off(color: str, pixels: int) -> None:
    picture = framed(scene(4, (256, 256)), color, pixels, pixels)
    (box,) = views.insets(decoded(saved(picture, 90)).pixels)
    cut = np.array([box.left, box.top, 1 - box.right, 1 - box.bottom])
    assert (cut >= pixels / 262).all() and (cut <= (pixels + 3) / 256).all()
    # A picture on a ground of the same color has no border.
    assert not views.insets(decoded(saved(framed(Image.new("RGB", (256, 256), color), color))).pixels)


@pytest.mark.parametrize("name", FRAMES)
def test_an_inset_looks_like_the_picture_without_its_frame(name: str) -> None:
    for seed in range(6):
        picture = scene(seed, (400, 300))
        plain = decoded(saved(picture))
        upload = decoded(EDITS[name].upload(picture, f"{name}{seed}", picture))

        assert len(upload.insets) == 1
        assert far(upload.insets[0].pixels, plain.pixels) < 0.5 * far(upload.pixels, plain.pixels)


def test_a_collage_has_two_insets() -> None:
    pair = [scene(seed, (240, 320)) for seed in (1, 2)]
    upload = decoded(saved(collage(1, 2)))

    assert len(upload.insets) == 2
    for inset, one in zip(upload.insets, pair, strict=True):
        plain = decoded(saved(one)).pixels
        assert far(inset.pixels, plain) < 0.5 * far(upload.pixels, plain)


@pytest.mark.parametrize("paper", ["white", "black"])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("turn", [0, 90])
def test_an_object_on_paper_beside_a_picture_is_a_picture(paper: str, is_first: bool, turn: int) -> None:
    product = Image.new("RGB", (240, 320), paper)
    ImageDraw.Draw(product).ellipse((70, 90, 170, 230), "#b03050")
    pair = (product, scene(1, (240, 320))) if is_first else (scene(1, (240, 320)), product)
    upload = Image.new("RGB", (480, 320))
    for number, half in enumerate(pair):
        upload.paste(half, (240 * number, 0))

    first, second = views.insets(decoded(saved(upload.rotate(turn, expand=True))).pixels)
    # A picture is turned to the left, so that its left half is below.
    end, start = (second.top, first.bottom) if turn else (first.right, second.left)
    assert abs(end - 0.5) < 3 / 256 and abs(start - 0.5) < 3 / 256
    assert (first.left, first.top, second.right, second.bottom) == (0, 0, 1, 1)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_caption_with_an_emoji_leaves_both_pictures_of_a_collage(share: float) -> None:
    pair = collage(3, 4)
    bar = round(share * pair.height)
    upload = ImageOps.expand(pair, (0, bar, 0, 0), "white")
    ImageDraw.Draw(upload).ellipse((300, bar // 6, 300 + bar * 2 // 3, bar * 5 // 6), "#ffcc33")

    first, second = decoded(saved(upload, 95)).insets
    assert min(first.box.top, second.box.top) > bar / upload.height - 0.01
    assert first.box.right < 0.5 < second.box.left


@pytest.mark.parametrize("gap", [0, 6])
def test_a_dark_picture_beside_a_light_one_is_a_collage(gap: int) -> None:
    dark, light = (scene(seed, (240, 320)) for seed in (1, 2))
    dark, light = dark.point(lambda tone: tone // 3), light.point(lambda tone: 170 + tone // 3)
    upload = Image.new("RGB", (480 + gap, 320))
    upload.paste(dark, (0, 0))
    upload.paste(light, (240 + gap, 0))

    assert len(decoded(saved(upload, 95)).insets) == 2


def test_a_band_under_lettering_is_seldom_a_seam() -> None:
    seen = 0
    for seed in range(16):
        picture = scene(seed, (400, 300))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((8, 150, 392, 190), "black")
        draw.text((200, 170), "SOMEWHERE NICE", "white", anchor="mm", font_size=28)
        seen += len(decoded(saved(picture)).insets) > 0
    assert seen <= 8  # all of them, if a line need not reach a side of the picture


@pytest.mark.parametrize("seed", range(8))
def test_pictures_without_a_frame_are_left_alone(seed: int) -> None:
    picture = scene(seed, (400, 300))
    lines = picture.copy()
    ImageDraw.Draw(lines).line((0, 40, 400, 120), "black", 5)
    horizon = picture.copy()
    horizon.paste(
        Image.linear_gradient("L").rotate(90).resize((400, 140)).point(lambda tone: 225 + tone // 17)
    )
    blurred = picture.filter(ImageFilter.GaussianBlur(6))
    for one in (picture, lines, horizon, blurred):
        assert decoded(saved(one)).insets == ()


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 90), st.just(3))),
    st.integers(0, 40),
    st.integers(0, 2),
    st.booleans(),
)
def test_wild_pictures_give_boxes_inside_them(
    pixels: np.ndarray, frame: int, depth: int, doubled: bool
) -> None:
    wild = np.pad(pixels, ((frame, frame), (frame, frame), (0, 0)))
    wild = np.concatenate([wild, 255 - wild]) if doubled else wild
    for box in views.insets(wild, depth):
        assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_insets_follow_the_orientation(orientation: int) -> None:
    canvas = framed(scene(3, (400, 300)), "white", 30, 50)
    canvas.paste("white", (0, 0, 80, 400))
    upload = decoded(saved(canvas, 95, orientation))
    (box,) = views.insets(upload.pixels)
    left, top, right, bottom = (round(side) for side in box.within((0, 0, 256, 256)))
    part = Image.fromarray(upload.pixels[top:bottom, left:right]).resize(
        (256, 256), Image.Resampling.BILINEAR
    )

    assert len(upload.insets) == 1
    assert far(upload.insets[0].pixels, np.asarray(part)) < 8


def test_a_look_leaves_the_pixels_as_they_are() -> None:
    file = saved(framed(scene(4, (900, 700)), "black", 90, 70))
    plain = images.decode(file)

    assert isinstance(plain, Decoded) and plain.insets == ()
    assert np.array_equal(plain.pixels, decoded(file).pixels)
    assert WHOLE.within((0.0, 0.0, 33.5, 20.25)) == (0.0, 0.0, 33.5, 20.25)
    assert Box(0.1, 0.2, 0.5, 0.6).before(1) == Box(0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize("name", MOVES)
def test_a_filter_learns_what_moving_a_picture_does_to_its_latent(name: str) -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(40, 2 * 64)).astype(np.float32)
    taps = rng.normal(size=(9, 2, 2)).astype(np.float32)
    true = LatentView(name, taps)
    moved = true(latents)
    view = LatentView.fit(name, latents[:30], moved[:30], 2)

    assert np.abs(view.taps - taps).max() < 0.02
    assert np.allclose(view(latents[30:]), moved[30:], atol=0.1)
    weights = rng.normal(size=(128, 5)).astype(np.float32)
    assert np.allclose(latents @ view.fold(weights), view(latents).astype(np.float32) @ weights, atol=0.2)


def test_a_plain_view_only_moves_cells() -> None:
    latents = np.arange(2 * 3 * 16, dtype=np.float16).reshape(2, -1)
    mirrored = LatentView.plain(MIRRORED, 3)(latents)

    assert np.array_equal(mirrored.reshape(2, 3, 4, 4), latents.reshape(2, 3, 4, 4)[..., ::-1])
    with pytest.raises(ValueError, match="no square"):
        LatentView.plain(MIRRORED, 3)(np.zeros((1, 3 * 15), np.float16))


def test_views_of_an_encoder_are_kept_in_a_file(tmp_path: Path) -> None:
    kept = {MIRRORED: LatentView.plain(MIRRORED, 4)}
    latent_views.save(kept, tmp_path / "views.safetensors", "some-0123")
    loaded, encoder_id = latent_views.load(tmp_path / "views.safetensors")

    assert encoder_id == "some-0123" and np.array_equal(loaded[MIRRORED].taps, kept[MIRRORED].taps)
    (tmp_path / "broken").write_bytes(b"{}")
    for name in ("broken", "missing"):
        with pytest.raises(EncoderError):
            latent_views.load(tmp_path / name)


def test_the_bundled_encoder_has_all_views() -> None:
    views_of_mini = latent_views.bundled("mini-2087fb54ed81")

    assert views_of_mini.keys() == MOVES.keys()
    assert latent_views.bundled("another") == {}
