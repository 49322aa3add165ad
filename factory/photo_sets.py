"""The makers' folder of photos: its split, and photos in memory.

The demo is cut from the pictures whose tiles are named `wallpaper_…` here. Nothing that ships was trained on
them, which would flatter the demo; in an evaluation set they are distractors. Run `python -m
factory.photo_sets --photos DIR --data DIR` before `id2 experiment data` with the same folders, which then
keeps their role.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.experiments import photo_bench, photo_folders
from id2core.experiments.photo_folders import Split

SIZE = 256
NEVER_TRAINED = ("wallpaper_",)


def split(folder: Path) -> Split:
    """Split a folder's photos as every user's, less the demo's pictures in training."""
    whole = photo_folders.split(folder)
    return replace(whole, train=[name for name in whole.train if not name.startswith(NEVER_TRAINED)])


def never_trained(folder: Path) -> list[str]:
    """Return the names of the demo's pictures outside the held-out photos."""
    return [name for name in photo_folders.split(folder).train if name.startswith(NEVER_TRAINED)]


def load(folder: Path, names: list[str]) -> NDArray[np.uint8]:
    """Decode photos to uint8[N,256,256,3] RGB, stretched to the square where they are not."""
    out = np.empty((len(names), SIZE, SIZE, 3), np.uint8)
    for i, name in enumerate(names):
        with Image.open(folder / name) as image:
            rgb = image.convert("RGB")
            out[i] = np.asarray(rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE)))
    return out


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn uint8[N,H,W,3] into float32[N,3,H,W] in [−1,1], channels-last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def random_crops(
    photos: NDArray[np.uint8], count: int, size: int, generator: np.random.Generator
) -> torch.Tensor:
    """Draw `count` crops, half of them mirrored: float32[count,3,size,size] in [−1,1]."""
    picks = generator.integers(0, len(photos), count)
    corners = generator.integers(0, SIZE - size + 1, (count, 2))
    mirrored = generator.random(count) < 0.5
    crops = np.empty((count, size, size, 3), np.uint8)
    for i, (photo, (top, left), flip) in enumerate(zip(picks, corners, mirrored, strict=True)):
        crop = photos[photo, top : top + size, left : left + size]
        crops[i] = crop[:, ::-1] if flip else crop
    return to_tensor(crops)


def main() -> None:
    """Lay out an evaluation set with the demo's pictures among the distractors, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photos", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    photo_bench.lay_out(args.photos, args.data, distractors=never_trained(args.photos))


if __name__ == "__main__":
    main()
