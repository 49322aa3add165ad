"""A folder of photos in memory, and the split that no training run may cross."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.errors import ExperimentError

SIZE = 256
HELD_OUT = 500
# Tiles of the pictures that the bundled demo is cut from. Training on them would flatter the demo.
NEVER_TRAINED = ("wallpaper_",)


@dataclass(frozen=True)
class Split:
    """File names of a photo folder: `train` for learning, `held_out` for measuring only.

    `never` are those that are not trained on for the demo's sake.
    """

    train: list[str]
    held_out: list[str]
    never: list[str]


def split(folder: Path) -> Split:
    """Split a folder's photos by the hash of their names, the same way on every machine.

    The 500 names whose SHA-256 comes first are held out of every training run of the project;
    files named like `NEVER_TRAINED` are kept out of training too.
    """
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(names) <= HELD_OUT:
        raise ExperimentError(f"{folder} has {len(names)} photos; training needs more than {HELD_OUT}")
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = ranked[:HELD_OUT]
    kept = set(held_out)
    rest = [n for n in names if n not in kept]
    train = [n for n in rest if not n.startswith(NEVER_TRAINED)]
    return Split(train, held_out, [n for n in rest if n.startswith(NEVER_TRAINED)])


def load(folder: Path, names: list[str]) -> NDArray[np.uint8]:
    """Decode photos to uint8[N,256,256,3] RGB, stretched to the square where they are not."""
    out = np.empty((len(names), SIZE, SIZE, 3), np.uint8)
    for i, name in enumerate(names):
        with Image.open(folder / name) as image:
            rgb = image.convert("RGB")
            out[i] = np.asarray(rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE)))
    return out


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8[N,H,W,3] → float32[N,3,H,W] in [−1,1], channels-last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def random_crops(
    photos: NDArray[np.uint8], count: int, size: int, generator: np.random.Generator
) -> torch.Tensor:
    """`count` random crops, half of them mirrored: float32[count,3,size,size] in [−1,1]."""
    picks = generator.integers(0, len(photos), count)
    corners = generator.integers(0, SIZE - size + 1, (count, 2))
    mirrored = generator.random(count) < 0.5
    crops = np.empty((count, size, size, 3), np.uint8)
    for i, (photo, (top, left), flip) in enumerate(zip(picks, corners, mirrored, strict=True)):
        crop = photos[photo, top : top + size, left : left + size]
        crops[i] = crop[:, ::-1] if flip else crop
    return to_tensor(crops)
