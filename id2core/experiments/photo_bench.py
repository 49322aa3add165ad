"""A small OriPID from any folder of photos: who is trained on, who is looked for, and among whom.

The paper's data (Section 3) has training origins, test origins with one query by each of seven models,
and a million distractors. Here the two bundled models translate: W learns from `mini-a` and never sees
`mini-b`. No photo has two roles, and no prompt is used both in training and in a test.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from id2core.errors import ExperimentError
from id2core.experiments import captions, photo_folders
from id2core.translation import models

SEEN, UNSEEN = "mini-a", "mini-b"
TRAIN, TEST, CALIBRATION, FRESH, DISTRACTORS = "train", "test", "calibration", "fresh", "distractors"
# Some of the test's photos, translated in more ways.
SOME = "some"
PARTS = (SOME,)
TRAIN_COUNT, WITHOUT_ORIGIN, SOME_COUNT = 2000, 500, 100
# Views of a photo beside the whole, each an origin of its own: the mirror image, then crops. A matrix is
# learned from many origins rather than from many translations of few.
VIEWS = {TRAIN: 5, DISTRACTORS: 2}
_CROP_SIDES = (0.6, 0.9)


@dataclass(frozen=True)
class TranslationRun:
    """One run of `id2 translate`.

    Attributes:
        role: whose photos.
        model: `mini-a` or `mini-b`.
        per_image: translations of each photo.
        steps: of denoising at strength 1; a third of the usual in training, where number counts for more. A
            multiple of 10, so that a strength begins at the same noise everywhere.
        seed: of prompts and pictures.
        strength: of the editing; by default the model's.
        paradigm: another way to translate with the model's weights: a row of `models.TABLE`.
    """

    role: str
    model: str
    per_image: int
    steps: int
    seed: int
    strength: float | None = None
    paradigm: str | None = None

    @property
    def name(self) -> str:
        """Return the name of its folder and its prompts."""
        if self.strength is not None:
            return f"strength-{self.strength}-{self.model}"
        return f"{TEST}-{self.paradigm}" if self.paradigm else f"{self.role}-{self.model}"

    @property
    def source(self) -> str | None:
        """Return the weights, where they are not those of the row of `models.TABLE`."""
        if not self.paradigm:
            return None
        from id2core.translation import loading  # imports torch

        return str(loading.locate(models.find(self.model))[0])


RUNS = (
    *(
        TranslationRun(role, model, per_image, steps, 100 * place + number)
        for place, (role, per_image, steps) in enumerate(
            ((TRAIN, 1, 10), (TEST, 2, 30), (CALIBRATION, 2, 30), (FRESH, 2, 30))
        )
        for number, model in enumerate((SEEN, UNSEEN))
    ),
    *(
        TranslationRun(SOME, model, 1, 30, 400 + number, strength=tenth / 10)
        for tenth in range(1, 11)
        for number, model in enumerate((SEEN, UNSEEN))
    ),
    TranslationRun(SOME, SEEN, 1, 30, 500, paradigm="edict"),
    TranslationRun(SOME, SEEN, 1, 30, 501, paradigm="plug-and-play"),
)


def roles(photos: Path, distractors: Collection[str] = ()) -> dict[str, list[str]]:
    """Return role → names of whole photos, the same on every machine.

    `test` has the photos that no training run of the project has seen. `calibration` and `fresh` are photos
    whose translations have no origin among the references: to set thresholds by, and to check them.

    Args:
        photos: the folder.
        distractors: names of photos that get no other role, unless they are held out for the test.

    Raises:
        ExperimentError: there are too few photos.
    """
    split = photo_folders.split(photos)
    others = [name for name in split.train if name not in distractors]
    ranked = sorted(others, key=lambda name: hashlib.sha256(f"role {name}".encode()).digest())
    needed = TRAIN_COUNT + 2 * WITHOUT_ORIGIN
    rest = ranked[needed:] + [name for name in split.train if name in distractors]
    if len(ranked) < needed or not rest:
        raise ExperimentError(f"{photos} has {len(ranked)} photos to train on; more than {needed} are needed")
    calibration = TRAIN_COUNT + WITHOUT_ORIGIN
    return {
        TRAIN: ranked[:TRAIN_COUNT],
        CALIBRATION: ranked[TRAIN_COUNT:calibration],
        FRESH: ranked[calibration:needed],
        TEST: split.held_out,
        SOME: split.held_out[:SOME_COUNT],
        DISTRACTORS: rest,
    }


def lay_out(photos: Path, out: Path, distractors: Collection[str] = ()) -> None:
    """Make OUT/photos/ROLE with links to photos and views of them, and OUT/prompts/ROLE-MODEL.csv.

    A second call changes nothing: a photo that OUT has among its distractors stays one.

    Args:
        photos: folder of at least 3,500 photos, with a captions.csv that names subjects.
        out: local directory.
        distractors: as of `roles`.

    Raises:
        ExperimentError: there are too few photos, no captions.csv, or one of fewer than two captions.
    """
    subjects = sorted(set(captions.read(photos).values()))
    if len(subjects) < 2:
        raise ExperimentError(
            f"{photos / captions.FILE} has {len(subjects)} different captions: training and test take "
            "theirs apart, so give it two or more, and many for prompts that differ"
        )
    (out / "prompts").mkdir(parents=True, exist_ok=True)
    earlier = out / "photos" / DISTRACTORS
    linked = {path.name for path in earlier.iterdir()} if earlier.exists() else set()
    for role, names in roles(photos, linked.union(distractors)).items():
        folder = out / "photos" / role
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (folder / name).exists():
                (folder / name).symlink_to((photos / name).absolute())
            for number in range(VIEWS.get(role, 0)):
                _write_view(folder, name, number)
        own = subjects[::2] if role == TRAIN else subjects[1::2]
        for run in RUNS:
            if run.role == role:
                pictures = sorted(path.name for path in folder.iterdir())
                write_prompts(pictures, own, run, out / "prompts" / f"{run.name}.csv")


def _write_view(folder: Path, name: str, number: int) -> None:
    path = folder / _view_name(name, number)
    if path.exists():
        return
    with Image.open(folder / name) as image:
        photo = image.convert("RGB")
    view(photo, name, number).save(path, quality=95)


def _view_name(name: str, number: int) -> str:
    return f"view{number}-{name}"


def view(photo: Image.Image, name: str, number: int) -> Image.Image:
    """Return a view of an RGB photo: number 0 mirrors it, others are crops drawn by name and number."""
    rng = np.random.default_rng(list(hashlib.sha256(_view_name(name, number).encode()).digest()))
    side = 1.0 if number == 0 else rng.uniform(*_CROP_SIDES)
    wide, high = photo.width * side, photo.height * side
    left, top = rng.random(2) * (photo.width - wide, photo.height - high)
    shown = photo.resize(photo.size, Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high))
    return ImageOps.mirror(shown) if number == 0 or rng.random() < 0.5 else shown


def write_prompts(names: list[str], subjects: list[str], run: TranslationRun, file: Path) -> None:
    """Write `run.per_image` different prompts for each photo, as `id2 translate --prompts` reads them."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["uri", "prompt"])
        for number, name in enumerate(names):
            for prompt in _different(subjects, number, run):
                writer.writerow([name, prompt])


def _different(subjects: list[str], number: int, run: TranslationRun) -> Iterator[str]:
    seen: set[str] = set()
    draw = number * 10_000
    while len(seen) < run.per_image:
        prompt = captions.invented(subjects, draw, run.seed)
        draw += 1
        if prompt not in seen:
            seen.add(prompt)
            yield prompt
