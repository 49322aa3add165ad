"""Photo-like pictures that differ from seed to seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Smooth random colors with some fine noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-12, 13, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def framed(picture: Image.Image, color: str = "white", left: int = 30, top: int = 50) -> Image.Image:
    """A picture inside a frame of one color."""
    return ImageOps.expand(picture, (left, top, left, top), color)


def collage(*seeds: int) -> Image.Image:
    """Two scenes beside each other, with a gap."""
    canvas = Image.new("RGB", (488, 320), "white")
    for i, seed in enumerate(seeds):
        canvas.paste(scene(seed, (240, 320)), (248 * i, 0))
    return canvas


def draw_photos(folder: Path, count: int, first_seed: int = 0) -> Path:
    """`count` JPEG files of different scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene(first_seed + i).save(folder / f"p{first_seed + i:04d}.jpg", quality=90)
    return folder
