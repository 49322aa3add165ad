"""What a view in `matches/` means to a person: words, and the upload as it was looked at.

`search.looks.name_of` writes the names. A name that this version does not know is shown as it is, beside the
whole upload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow.compute as pc
from PIL import Image

from id2core.encoders.latent_views import MIRRORED, TURNED_LEFT, TURNED_RIGHT
from id2core.encoders.views import HALVES, INSET, PARENT, Box
from id2core.reports.inputs import rows_of
from id2core.search.looks import COVERED, LOOKS, WHOLE
from id2core.store.datasets import Dataset

_CROP: Final = "crop-"
# What was done to the upload before it met the reference.
_MOVES: Final = {
    MIRRORED: ("mirrored", Image.Transpose.FLIP_LEFT_RIGHT),
    TURNED_LEFT: ("turned a quarter to the left", Image.Transpose.ROTATE_90),
    TURNED_RIGHT: ("turned a quarter to the right", Image.Transpose.ROTATE_270),
}
_PARENT: Final = "by the picture’s Content Credentials: its stated parent"
# Looks that are a part of the upload, whose place `embeddings/` has.
_PARTS: Final = (INSET, *HALVES)

# URI of an upload and name of a look → where it is.
Boxes = dict[tuple[str, str], Box]


@dataclass(frozen=True)
class WinningView:
    """The view under which an upload scored best with a reference.

    Attributes:
        look: one of `LOOKS`; of a name that is not known, all of it.
        move: one of `latent_views.MOVES`; empty for none.
        crop: share of the reference's area that was met; None for the whole.
        box: where the look is in the upload; None where that is not known.
    """

    look: str = WHOLE
    move: str = ""
    crop: float | None = None
    box: Box | None = None

    @classmethod
    def of(cls, name: str | None, uri: str, boxes: Boxes) -> WinningView:
        """Return the view of a row of `matches/`.

        Args:
            name: of the view; None in files of earlier versions, which knew the whole alone.
            uri: of the upload.
            boxes: what `boxes_of` returned.
        """
        look, *parts = (name or WHOLE).split("+")
        move = parts.pop(0) if parts and parts[0] in _MOVES else ""
        crop = _share(parts.pop(0)) if parts else None
        if look not in LOOKS or parts or name not in (None, _spelled(look, move, crop)):
            return cls(look=name or "")
        return cls(look, move, crop, boxes.get((uri, look)))

    @property
    def words(self) -> str:
        """How the upload was found; empty for the whole upload and the whole reference."""
        if self.look not in LOOKS:
            return f"found under a view that this version does not know: {self.look}"
        parts = filter(None, (self._look_words(), self._move_words(), self._crop_words()))
        said = ", ".join(parts)
        return f"found {said}" if said else ""

    @property
    def is_part(self) -> bool:
        """Whether less than the upload is shown."""
        return self.look in _PARTS and self.box is not None

    @property
    def changes_upload(self) -> bool:
        """Whether the upload is shown otherwise than as it is. A parent cannot be cut from it."""
        return self.is_part or (self.look in (WHOLE, COVERED, *_PARTS) and bool(self.move))

    def shown(self, picture: Image.Image) -> Image.Image:
        """Return an upload in its own proportions as it was looked at."""
        if self.is_part and self.box:
            left, top, right, bottom = self.box.within((0, 0, *picture.size))
            size = max(1, round(right - left)), max(1, round(bottom - top))
            picture = picture.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))
        if self.changes_upload and self.move:
            picture = picture.transpose(_MOVES[self.move][1])
        return picture

    def _look_words(self) -> str:
        if self.look in HALVES:
            return f"as {self._half()} of a collage"
        return {INSET: "inside a frame", COVERED: "behind a frame", PARENT: _PARENT}.get(self.look, "")

    def _half(self) -> str:
        if self.box is None:
            return "one half"
        across, down = self.box.left + self.box.right, self.box.top + self.box.bottom
        if abs(across - 1) > abs(down - 1):
            return "the left half" if across < 1 else "the right half"
        return "the upper half" if down < 1 else "the lower half"

    def _move_words(self) -> str:
        return _MOVES[self.move][0] if self.move else ""

    def _crop_words(self) -> str:
        return "" if self.crop is None else f"as a crop of the reference (about {self.crop:.0%} of its area)"


WHOLE_UPLOAD: Final = WinningView()


def _share(part: str) -> float | None:
    try:
        share = float(part.removeprefix(_CROP))
    except ValueError:
        return None
    return share if 0 < share < 1 else None


def _spelled(look: str, move: str, crop: float | None) -> str:
    return "+".join(filter(None, (look, move, "" if crop is None else f"{_CROP}{crop:g}")))


def boxes_of(embeddings: Dataset, shown: Iterable[tuple[str, str | None]]) -> Boxes:
    """Read where the pictures are that were seen inside uploads.

    Args:
        embeddings: of the uploads.
        shown: URI of an upload and name of a view.
    """
    wanted = {uri for uri, name in shown if name and name.startswith(_PARTS)}
    if not wanted:
        return {}
    return dict(_boxes(embeddings, wanted))


def _boxes(embeddings: Dataset, wanted: set[str]) -> Iterator[tuple[tuple[str, str], Box]]:
    columns = ("view", "left", "top", "right", "bottom")
    for table in rows_of(embeddings, wanted, ["uri", "insets"]):
        for batch in table.to_batches():
            uris = batch["uri"].take(pc.list_parent_indices(batch["insets"]))
            insets = pc.list_flatten(batch["insets"])
            # Latents are most of the bytes, and are left where they are.
            facts = (pc.struct_field(insets, name).to_pylist() for name in columns)
            for uri, view, *sides in zip(uris.to_pylist(), *facts, strict=True):
                box = Box(*sides)
                if 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1:
                    yield (uri, view), box
