"""The split of a folder of photos that no training run may cross."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from id2core.errors import ExperimentError

HELD_OUT = 500


@dataclass(frozen=True)
class Split:
    """File names of a photo folder.

    Attributes:
        train: for learning.
        held_out: for measuring only.
    """

    train: list[str]
    held_out: list[str]


def split(folder: Path) -> Split:
    """Split a folder's photos by the hash of their names, the same way on every machine.

    The 500 names whose SHA-256 comes first are held out of every training run.

    Raises:
        ExperimentError: there are too few photos.
    """
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(names) <= HELD_OUT:
        raise ExperimentError(f"{folder} has {len(names)} photos; training needs more than {HELD_OUT}")
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = ranked[:HELD_OUT]
    return Split([name for name in names if name not in set(held_out)], held_out)
