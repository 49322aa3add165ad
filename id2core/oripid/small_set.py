"""A small OriPID from any folder of photos: who is trained on, who is looked for, and among whom.

The paper's data (Section 3) has training origins, test origins with one query by each of seven models,
and a million distractors. Here the two bundled models translate: W learns from `mini-a` and never sees
`mini-b`. No photo has two roles, and no prompt is used both in training and in a test.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from id2core.training import captions
from id2core.training import photos as photo_folder

SEEN, UNSEEN = "mini-a", "mini-b"
TRAIN, TEST, CALIBRATION, FRESH, DISTRACTORS = "train", "test", "calibration", "fresh", "distractors"
TRAIN_COUNT, WITHOUT_ORIGIN = 2000, 500
# The kept part of a distractor's crop: far enough from the whole photo to be a picture of its own.
_CROP = (0.1, 0.1, 0.8, 0.8)


@dataclass(frozen=True)
class Translated:
    """One run of `id2 translate`.

    Attributes:
        role: whose photos.
        model: `mini-a` or `mini-b`.
        per_image: translations of each photo.
        steps: of denoising at strength 1; half as many in training, where number counts for more.
        seed: of prompts and pictures.
    """

    role: str
    model: str
    per_image: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its prompts."""
        return f"{self.role}-{self.model}"


RUNS = tuple(
    Translated(role, model, per_image, steps, 100 * place + number)
    for place, (role, per_image, steps) in enumerate(
        ((TRAIN, 4, 15), (TEST, 2, 30), (CALIBRATION, 2, 30), (FRESH, 2, 30))
    )
    for number, model in enumerate((SEEN, UNSEEN))
)


def roles(photos: Path) -> dict[str, list[str]]:
    """Role → file names, the same on every machine.

    `test` has the photos that no training run of the project has seen. `calibration` and `fresh` are photos
    whose translations have no origin among the references: to set thresholds by, and to check them.

    Raises:
        ValueError: too few photos.
    """
    split = photo_folder.split(photos)
    ranked = sorted(split.train, key=lambda name: hashlib.sha256(f"role {name}".encode()).digest())
    needed = TRAIN_COUNT + 2 * WITHOUT_ORIGIN
    if len(ranked) <= needed:
        raise ValueError(f"{photos} has {len(ranked)} photos to train on; more than {needed} are needed")
    train, calibration, fresh = TRAIN_COUNT, TRAIN_COUNT + WITHOUT_ORIGIN, needed
    return {
        TRAIN: ranked[:train],
        CALIBRATION: ranked[train:calibration],
        FRESH: ranked[calibration:fresh],
        TEST: split.held_out,
        DISTRACTORS: ranked[fresh:] + split.never,
    }


def lay_out(photos: Path, out: Path) -> None:
    """Make OUT/photos/ROLE with links to photos, and OUT/prompts/ROLE-MODEL.csv; a repetition is harmless.

    Args:
        photos: folder of at least 3,500 photos, with a captions.csv that names subjects.
        out: local directory.
    """
    for role, names in roles(photos).items():
        folder = out / "photos" / role
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (folder / name).exists():
                (folder / name).symlink_to((photos / name).absolute())
        if role == DISTRACTORS:
            _add_variants(folder, names)
    subjects = sorted(set(captions.read(photos).values()))
    (out / "prompts").mkdir(exist_ok=True)
    for run in RUNS:
        own = subjects[::2] if run.role == TRAIN else subjects[1::2]
        write_prompts(sorted(roles(photos)[run.role]), own, run, out / "prompts" / f"{run.name}.csv")


def _add_variants(folder: Path, names: list[str]) -> None:
    """Mirror images and mirrored crops of distractors, as distractors more."""
    for name in names:
        for kind, path in (("mirror", folder / f"mirror-{name}"), ("crop", folder / f"crop-{name}")):
            if path.exists():
                continue
            with Image.open(folder / name) as photo:
                turned = ImageOps.mirror(photo.convert("RGB"))
            if kind == "crop":
                left, top, wide, high = _CROP
                w, h = turned.size
                box = (left * w, top * h, (left + wide) * w, (top + high) * h)
                turned = turned.resize(turned.size, Image.Resampling.LANCZOS, box=box)
            turned.save(path, quality=95)


def write_prompts(names: list[str], subjects: list[str], run: Translated, file: Path) -> None:
    """So many different prompts for each photo, as `id2 translate --prompts` reads them."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["uri", "prompt"])
        for number, name in enumerate(names):
            for prompt in _different(subjects, number, run):
                writer.writerow([name, prompt])


def _different(subjects: list[str], number: int, run: Translated) -> Iterator[str]:
    seen: set[str] = set()
    draw = number * 10_000
    while len(seen) < run.per_image:
        prompt = captions.invented(subjects, draw, run.seed)
        draw += 1
        if prompt not in seen:
            seen.add(prompt)
            yield prompt
