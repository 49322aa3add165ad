"""Frames in frames: the innermost pictures are found, clear frames alone, and adversaries gain no time."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from id2core.encoders import images, views
from id2core.encoders.images import Decoded, Look
from id2core.encoders.views import MOST_DEPTH, MOST_INSETS, WHOLE, Box
from id2core.experiments.upload_edits import EDITS
from tests.drawing import collage, framed, scene

COLORS = st.sampled_from(["white", "black", "#404040", "#a03010"])


def decoded(picture: Image.Image, look: Look = views.insets, kind: str = "JPEG") -> Decoded:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    found = images.decode(buffer.getvalue(), look=look)
    assert isinstance(found, Decoded)
    return found


def far(some: Decoded | images.Inset, others: Decoded) -> float:
    return float(np.abs(some.pixels.astype(float) - others.pixels).mean())


@pytest.mark.parametrize(
    "names",
    [
        ("border-plain-thick", "screenshot"),
        ("letterbox", "border-plain-thick"),
        ("border-plain-thick", "pillarbox", "screenshot"),
    ],
)
def test_the_innermost_picture_is_seen(names: Sequence[str]) -> None:
    for seed in range(4):
        picture = upload = scene(seed, (600, 450))
        for name in names:
            upload = EDITS[name](upload, f"{name}{seed}", picture)
        seen, plain = decoded(upload), decoded(picture)

        assert len(seen.insets) == 1
        assert far(seen.insets[0], plain) < 0.3 * far(seen, plain)


@pytest.mark.parametrize("colors", [("white", "white"), ("white", "#702020"), ("black", "white")])
def test_a_collage_of_framed_pictures_shows_both(colors: tuple[str, str]) -> None:
    pair = [scene(seed, (240, 320)) for seed in (2, 3)]
    upload = Image.new("RGB", (560, 360))
    for place, one, color in zip((0, 280), pair, colors, strict=True):
        upload.paste(ImageOps.expand(one, 20, color), (place, 0))

    shows(upload, pair)


def test_a_framed_collage_shows_both() -> None:
    shows(framed(collage(2, 3), "black", 40, 40), [scene(seed, (240, 320)) for seed in (2, 3)])


def shows(upload: Image.Image, pair: Sequence[Image.Image]) -> None:
    """Check that the pictures of an upload are these."""
    seen = decoded(upload)
    assert len(seen.insets) == len(pair)
    for inset, one in zip(seen.insets, pair, strict=True):
        assert far(inset, decoded(one)) < 10


@pytest.mark.parametrize("seed", range(6))
def test_a_horizon_in_a_frame_is_no_seam(seed: int) -> None:
    horizon = scene(seed, (400, 300))
    sky = Image.linear_gradient("L").resize((400, 140)).convert("RGB")
    horizon.paste(sky, (0, 0))
    # Water shows the tones of the sky above it, a little darker.
    horizon.paste(ImageOps.flip(sky).point([round(0.8 * tone) for tone in range(256)] * 3), (0, 142))
    seen = decoded(framed(horizon, "#2040a0", 40, 40))

    assert len(seen.insets) == 1
    assert far(seen.insets[0], decoded(horizon)) < 6


def test_a_look_is_told_how_deep_it_is_and_has_an_end() -> None:
    depths: list[int] = []

    def everywhere(pixels: np.ndarray, depth: int) -> list[Box]:
        depths.append(depth)
        return [Box(0.2, 0.1, 0.5, 1.0)]

    (inset,) = decoded(scene(1, (1, 1)), everywhere).insets

    assert depths == list(range(MOST_DEPTH))
    assert inset.box.right - inset.box.left == pytest.approx(0.3**MOST_DEPTH)
    assert Box(0.5, 0, 1, 1).of(Box(0.5, 0.5, 1, 1)) == Box(0.75, 0.5, 1, 1)
    assert Box(0.1, 0.1, 0.9, 0.9).of(WHOLE) == Box(0.1, 0.1, 0.9, 0.9)


def test_halves_have_no_halves() -> None:
    halves = [Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)]
    seen = decoded(scene(1), lambda pixels, depth: halves)

    assert [inset.box for inset in seen.insets] == halves


@settings(max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 3),
    st.lists(st.tuples(COLORS, st.integers(0, 30), st.integers(0, 30)), max_size=12),
    st.booleans(),
)
def test_wild_frames_in_frames_cost_little(
    width: int, height: int, seed: int, frames: list[tuple[str, int, int]], doubled: bool
) -> None:
    picture = scene(seed, (width, height))
    for color, left, top in frames:
        picture = ImageOps.expand(picture, (left, top, left, top), color)
        if doubled:
            twice = Image.new("RGB", (2 * picture.width, picture.height))
            twice.paste(picture, (0, 0))
            twice.paste(picture, (picture.width, 0))
            picture = twice.resize((min(twice.width, 400), min(twice.height, 400)))
    looks = 0

    def look(pixels: np.ndarray, depth: int) -> Sequence[Box]:
        nonlocal looks
        looks += 1
        return views.insets(pixels, depth)

    seen = decoded(picture, look, "PNG")

    assert looks <= 1 + MOST_INSETS * (MOST_DEPTH - 1) and len(seen.insets) <= MOST_INSETS
    for inset in seen.insets:
        assert 0 <= inset.box.left < inset.box.right <= 1 and 0 <= inset.box.top < inset.box.bottom <= 1


def test_a_thousand_frames_are_three_looks() -> None:
    picture = Image.new("RGB", (2001, 2001))
    for side in range(1000):
        tone = 255 * (side % 2)
        picture.paste((tone, tone, tone), (side, side, 2001 - side, 2001 - side))
    depths: list[int] = []

    def look(pixels: np.ndarray, depth: int) -> Sequence[Box]:
        depths.append(depth)
        return views.insets(pixels, depth)

    assert len(decoded(picture, look, "PNG").insets) <= 1
    assert depths == list(range(len(depths))) and len(depths) <= MOST_DEPTH
