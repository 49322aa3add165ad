"""Pictures that show nothing are told from those that do."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from id2core.encoders import information, pdq
from id2core.verdicts.content import LEAST, MOST, PDQ_LEAST
from tests.drawing import scene


def pixels(image: Image.Image, side: int = information.SIDE) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def noise(tone: int, spread: float) -> Image.Image:
    drawn = np.random.default_rng(0).normal(tone, spread, (300, 300, 3))
    return Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8))


def ramp(low: int, high: int) -> Image.Image:
    tones = np.linspace(low, high, 300).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(tones[:, None, None], (300, 300, 3)).copy())


def logo(ground: str, ink: str) -> Image.Image:
    image = Image.new("RGB", (400, 400), ground)
    ImageDraw.Draw(image).ellipse([150, 120, 250, 220], fill=ink)
    ImageDraw.Draw(image).text((140, 240), "ACME", fill=ink, font=ImageFont.load_default(40))
    return image


def page(ground: str, ink: str, size: int) -> Image.Image:
    draw = random.Random(size)
    image = Image.new("RGB", (600, 800), ground)
    for y in range(40, 760, int(1.4 * size)):
        line = " ".join("x" * draw.randint(2, 9) for _ in range(10))[: 1000 // size]
        ImageDraw.Draw(image).text((40, y), line, fill=ink, font=ImageFont.load_default(size))
    return image


EMPTY = {
    "white": Image.new("RGB", (300, 300), "white"),
    "red": Image.new("RGB", (300, 300), (200, 30, 30)),
    "noise": noise(128, 4),
    "dark_noise": noise(30, 2),
    "ramp": ramp(100, 125),
    "logo": logo("white", "navy"),
    "white_logo": logo("black", "white"),
    "page": page("white", "black", 14),
    "dark_page": page("black", "white", 20),
}
SHOWN = {
    "scene": scene(0, (256, 256)),
    "soft_scene": scene(1, (256, 256)).filter(ImageFilter.GaussianBlur(6)),
    "gray_scene": scene(2, (256, 256)).convert("L"),
    "pale_scene": scene(3, (256, 256)).point(lambda v: 200 + v // 6),
    "object_on_white": Image.new("RGB", (256, 256), "white"),
}
SHOWN["object_on_white"].paste(scene(4, (110, 130)), (70, 60))


@pytest.mark.parametrize("name", EMPTY)
def test_a_picture_that_shows_nothing_is_below_every_threshold(name: str) -> None:
    assert information.measure(pixels(EMPTY[name])) < LEAST
    assert information.measure(pixels(EMPTY[name], 512)) < LEAST


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_that_shows_something_is_above_every_threshold(name: str) -> None:
    assert information.measure(pixels(SHOWN[name])) > MOST


def test_the_quality_of_pdq_is_that_of_its_64_by_64_tones() -> None:
    for name in ("white", "red", "noise", "ramp"):
        assert pdq.quality(pixels(EMPTY[name], pdq.SIDE)) < 100 * PDQ_LEAST
    assert pdq.quality(pixels(SHOWN["scene"], pdq.SIDE)) == 100
    # 63 × 64 steps from black to white, of a checkerboard as fine as the grid.
    board = np.kron(np.indices((64, 64)).sum(0) % 2, np.ones((8, 8), int)) * 255
    assert pdq.quality(np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)) == 100
