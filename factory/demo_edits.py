"""Add uploads as they come to the bundled demo: mirrored, cropped, framed, in a screenshot, and turned.

Run as `python -m factory.demo_edits --demo id2core/data/demo` after `demo_translations`. Each edit gets four
copies of references without an upload, four translations of the demo, and four uploads without an origin,
drawn from hashes of their names. Run again, it replaces what it added.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from factory.demo_set import NO_EDIT, TRUTH_COLUMNS, draw
from factory.demo_translations import COLUMNS, remove_uploads, write_rows
from id2core.experiments.upload_edits import EDITS

EACH = 4
CHOSEN = ("mirrored", "crop-0.75-centered", "border-blurred-thick", "screenshot", "quarter-turn")
COPIES, TRANSLATIONS = "edited copies", "edited translations"
MARK = "+"  # before the edit of an upload that has others
QUALITY = 88


@dataclass(frozen=True)
class Upload:
    """A picture that is edited and added.

    Attributes:
        file: below the demo's folder.
        edit: one of `CHOSEN`.
        kind: its row of `uploads.csv`.
        reference: its origin; empty for none.
        group: of the truth.
    """

    file: str
    edit: str
    kind: dict[str, str]
    reference: str
    group: str

    def jpeg(self, demo: Path) -> bytes:
        """Return the file that is added."""
        with Image.open(demo / self.file) as image:
            picture = image.convert("RGB")
        buffer = io.BytesIO()
        EDITS[self.edit](picture, self.file, picture).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


def chosen(demo: Path, kinds: list[dict[str, str]], truth: dict[str, dict[str, str]]) -> Iterator[Upload]:
    """Yield what is edited: each reference, and each upload, once."""
    count = EACH * len(CHOSEN)
    used = {row["reference_uri"] for row in truth.values()}
    free = (f"references/{path.name}" for path in (demo / "references").iterdir())
    copies = sorted((r for r in free if r not in used), key=lambda r: draw("edited copy", r))[:count]
    for number, reference in enumerate(copies):
        edit = CHOSEN[number % len(CHOSEN)]
        source = re.sub(r"-\d+$", "", Path(reference).stem)
        yield Upload(reference, edit, {"edit": MARK + edit, "source": source}, reference, COPIES)
    drawn = sorted(kinds, key=lambda row: draw("edited", row["query_uri"]))
    translated = [row for row in drawn if row["prompt"]][:count]
    strangers = [row for row in drawn if row["edit"] == NO_EDIT][:count]
    for number, row in enumerate([*translated, *strangers]):
        edit = CHOSEN[number % len(CHOSEN)]
        kind = row | {"edit": row["edit"] + MARK + edit}
        origin = truth[row["query_uri"]]["reference_uri"]
        yield Upload(row["query_uri"], edit, kind, origin, TRANSLATIONS if origin else "")


def add(demo: Path) -> int:
    """Edit, and write the pictures and their rows; return how many."""
    kinds, rows = remove_uploads(demo, lambda edit: MARK in edit)
    truth = {row["query_uri"]: row for row in rows}
    uploads = sorted(chosen(demo, kinds, truth), key=lambda u: draw("edited upload", u.file, u.edit))
    for number, upload in enumerate(uploads, start=len(kinds)):
        uri = f"uploads/u{number:03d}.jpg"
        (demo / uri).write_bytes(upload.jpeg(demo))
        kinds.append(upload.kind | {"query_uri": uri})
        truth[uri] = {"query_uri": uri, "reference_uri": upload.reference, "group": upload.group}
    write_rows(demo / "uploads.csv", COLUMNS, kinds)
    write_rows(demo / "truth.csv", TRUTH_COLUMNS, list(truth.values()))
    return len(uploads)


def main() -> None:
    """Add from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder of the demo set")
    args = parser.parse_args()
    print(f"{add(args.demo)} edited uploads added to {args.demo}")


if __name__ == "__main__":
    main()
