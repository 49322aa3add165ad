"""Prompts for training photos: what a data set's captions name, and what the pixels show.

Few of the photos have a caption and none has a sentence. Light and color can be read off the pixels, so
that every picture gets a prompt and a prompt has something to steer: "a dark mostly blue photo of a canoe".
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from id2core.errors import ExperimentError

FILE = "captions.csv"
# Upper ends of hue in degrees; red closes the circle.
HUES = tuple(
    zip(
        (15, 45, 70, 165, 195, 260, 290, 340, 361),
        ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "red"),
        strict=True,
    )
)
# Spelled as in the vocabulary of the bundled diffusion models.
GRAY = "grey"
DARK, BRIGHT = 80, 175
SATURATED, COLORED_SHARE = 60, 0.15
# Ways to begin; which one is drawn at random, so that no wording is tied to a kind of photo.
FORMS = ("a {} photo", "{} picture", "a {} image", "a {} painting")


def read(folder: Path) -> dict[str, str]:
    """Read file name → caption of the photos in `folder/captions.csv` that have one.

    Raises:
        ValueError: there is no such file, or not in this form.
    """
    path = folder / FILE
    try:
        with path.open(newline="") as file:
            return {row["file"]: row["caption"] for row in csv.DictReader(file) if row["caption"]}
    except (FileNotFoundError, KeyError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"has no column {error}"
        raise ExperimentError(
            f"{path} {what}: what photos show is read from it, a CSV with the columns `file` and `caption`, "
            "a line such as `0001.jpg,a canoe` for each photo that has a caption"
        ) from error


def describe(picture: NDArray[np.uint8]) -> str:
    """Describe light and main color of a picture in words.

    Args:
        picture: uint8[H,W,3] RGB.

    Returns:
        For example `dark mostly blue`, `bright grey`, `mostly green`.
    """
    small = Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX)
    light = float(np.asarray(small.convert("L")).mean())
    words = ["dark"] if light < DARK else ["bright"] if light > BRIGHT else []
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("HSV")).astype(int), -1, 0)
    colored = (saturation > SATURATED) & (value > SATURATED // 2)
    if colored.mean() < COLORED_SHARE:
        return " ".join([*words, GRAY])
    names = [name for _, name in HUES]
    kinds = np.searchsorted([top for top, _ in HUES], hue[colored] * 360 / 255, side="right")
    counts = {name: 0 for name in names}
    for kind, count in enumerate(np.bincount(kinds, minlength=len(HUES))):
        counts[names[kind]] += int(count)
    return " ".join([*words, "mostly", max(counts, key=lambda name: counts[name])])


def prompt(look: str, subject: str | None, generator: np.random.Generator) -> str:
    """Draw a wording for a picture of this look and subject; now and then it lacks one of them."""
    form = FORMS[generator.integers(len(FORMS))]
    shown = look if generator.random() < 0.8 else ""
    text = " ".join(form.format(shown).split())
    return f"{text} of {subject}" if subject and generator.random() < 0.9 else text


def corpus(subjects: list[str]) -> Iterator[str]:
    """Return every wording once, to make a tokenizer from."""
    looks = [f"{light} {color}" for light in ("dark", "bright") for color in (GRAY, "mostly")]
    for form in FORMS:
        for look in [*looks, *(name for _, name in HUES)]:
            yield form.format(look)
        yield from (f"{form.format('')} of {subject}" for subject in subjects)


def invented(subjects: list[str], number: int, seed: int = 0) -> str:
    """Return the `number`-th prompt of an endless list of random looks and subjects.

    They replace the creative prompts that a language model would write, because small models know no other
    words.
    """
    generator = np.random.default_rng((seed, number))
    light = ("", "dark ", "bright ")[generator.integers(3)]
    color = (GRAY, *(f"mostly {name}" for _, name in HUES))[generator.integers(len(HUES) + 1)]
    subject = subjects[generator.integers(len(subjects))]
    return f"{FORMS[generator.integers(len(FORMS))].format(light + color)} of {subject}"
