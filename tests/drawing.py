"""Photo-like pictures that differ from seed to seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Smooth random colors with some fine noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-12, 13, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def draw_photos(folder: Path, count: int, first_seed: int = 0) -> Path:
    """`count` JPEG files of different scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene(first_seed + i).save(folder / f"p{first_seed + i:04d}.jpg", quality=90)
    return folder
