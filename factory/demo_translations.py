"""Add translated uploads to the bundled demo: 40 by `mini-a` and 40 by `mini-b`.

Run as `python -m factory.demo_translations --demo id2core/data/demo` after `demo_set`.
Which references are translated is drawn from hashes of their names, none of them twice; the strengths are
those at which raw latents find about half of the origins. Run again, it replaces what it added.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from factory.demo_set import TRUTH_COLUMNS, draw, encode
from id2core.translation import loading, models

EACH = 40
QUALITY = 90
STEPS = 30
STRENGTHS = {"mini-a": 0.9, "mini-b": 0.9}
# Words that the small models know: light, color, and what some of their training photos show.
PROMPTS = (
    "a dark mostly blue photo of a rainy sky",
    "a bright mostly orange painting of a sunrise",
    "a dark mostly green image of a forest",
    "a bright grey photo of a cloudy sky",
    "a mostly red painting of a dress",
    "a dark mostly purple photo of a castle",
    "a bright mostly yellow image of a sunny sky",
    "a mostly teal painting of a boat",
)
COLUMNS = ("query_uri", "edit", "source", "prompt")

Row = dict[str, str]


@dataclass(frozen=True)
class Upload:
    """A translated picture that is added to the demo."""

    reference: str
    model: str
    strength: float
    prompt: str
    jpeg: bytes


def chosen(references: list[str], taken: set[str]) -> dict[str, list[str]]:
    """Which references each model translates: none that has another upload already."""
    free = sorted((r for r in references if r not in taken), key=lambda r: draw("translated", r))
    if len(free) < EACH * len(STRENGTHS):
        raise ValueError(f"{len(free)} references have no upload yet; {EACH * len(STRENGTHS)} are needed")
    return {model: free[i * EACH : (i + 1) * EACH] for i, model in enumerate(STRENGTHS)}


def translated(folder: Path, model: str, references: list[str]) -> Iterator[Upload]:
    """Translate each reference under a drawn prompt."""
    strength = STRENGTHS[model]
    translator = loading.load(models.find(model, strength=strength, steps=STEPS))
    pictures = []
    for reference in references:
        with Image.open(folder / reference) as image:
            pictures.append(image.convert("RGB"))
    prompts = [PROMPTS[draw("prompt", r) % len(PROMPTS)] for r in references]
    made = translator.translate(pictures, prompts, [draw("seed", r) >> 1 for r in references])
    for reference, picture, prompt in zip(references, made, prompts, strict=True):
        yield Upload(reference, model, strength, prompt, encode(picture, QUALITY))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of the demo."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Write rows of a CSV file of the demo."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8")


def remove_uploads(demo: Path, is_added: Callable[[str], bool]) -> tuple[list[Row], list[Row]]:
    """Delete the pictures of uploads that an earlier run added.

    Args:
        demo: folder of the demo set.
        is_added: whether an upload of an edit was added.

    Returns:
        Rows of `uploads.csv` and of `truth.csv` of all others.
    """
    kinds = [row for row in read_rows(demo / "uploads.csv") if not is_added(row["edit"])]
    kept = {row["query_uri"] for row in kinds}
    for path in (demo / "uploads").iterdir():
        if f"uploads/{path.name}" not in kept:
            path.unlink()
    return kinds, [row for row in read_rows(demo / "truth.csv") if row["query_uri"] in kept]


def add(demo: Path) -> list[Upload]:
    """Translate, and write the pictures and their rows."""
    kinds, truth = remove_uploads(demo, lambda edit: edit.split("@")[0] in STRENGTHS)
    references = sorted(f"references/{p.name}" for p in (demo / "references").iterdir())
    plan = chosen(references, {row["reference_uri"] for row in truth})
    uploads = [u for model, prompts in plan.items() for u in translated(demo, model, prompts)]
    uploads.sort(key=lambda u: draw("upload", u.reference))
    for number, upload in enumerate(uploads, start=len(kinds)):
        uri = f"uploads/u{number:03d}.jpg"
        (demo / uri).write_bytes(upload.jpeg)
        source = re.sub(r"-\d+$", "", Path(upload.reference).stem)
        edit = f"{upload.model}@{upload.strength}"
        kinds.append({"query_uri": uri, "edit": edit, "source": source, "prompt": upload.prompt})
        truth.append({"query_uri": uri, "reference_uri": upload.reference, "group": upload.model})
    write_rows(demo / "uploads.csv", COLUMNS, kinds)
    write_rows(demo / "truth.csv", TRUTH_COLUMNS, truth)
    return uploads


def main() -> None:
    """Add from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder of the demo set")
    args = parser.parse_args()
    print(f"{len(add(args.demo))} translated uploads added to {args.demo}")


if __name__ == "__main__":
    main()
