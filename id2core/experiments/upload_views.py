"""Matchers that look at an upload under several views: those of a search (`search.looks`), and parts of them.

Scores are those of the product: the best view of a pair, less its cost, and for the best candidates the
agreement of fine detail. The background goes through the same views, so one threshold holds for the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.encoders import images, views
from id2core.encoders.images import Decoded, Inset
from id2core.errors import ExperimentError
from id2core.experiments.evaluation_sets import KEPT
from id2core.experiments.methods import Methods
from id2core.experiments.upload_matchers import Background, Matcher, matchers, shipped_wholes
from id2core.experiments.upload_sets import WHOLE, Finder, PixelView, Uploads, UploadSet
from id2core.search import chance, match_rows, shards, viewed
from id2core.search.background_rows import background_means
from id2core.search.looks import Looks, Views
from id2core.search.shards import Shard
from id2core.search.viewed_rows import ViewedRows
from id2core.store import schemas
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

# References of an upload that get a score of their own; all others share one below.
DEPTH = 2 * KEPT


# Raise it when the rules that find frames alter a box in an edited upload.
_VERSION = 5


def _seen(data: bytes, size: int) -> tuple[Inset, ...]:
    decoded = images.decode(data, size, look=views.insets)
    if not isinstance(decoded, Decoded):
        raise ExperimentError(f"an upload that an edit made cannot be decoded: {decoded}")
    return decoded.insets


def _inset(number: int) -> PixelView:
    def look(data: bytes, size: int) -> NDArray[np.uint8] | None:
        seen = _seen(data, size)
        return seen[number].pixels if number < len(seen) else None

    return PixelView(f"inset-{number + 1}", _VERSION, look)


INSETS = (_inset(0), _inset(1))
BOXES = Finder("boxes", _VERSION, lambda data, size: [inset.box for inset in _seen(data, size)])


@dataclass(frozen=True, eq=False)
class Viewed:
    """The best score under any view.

    Attributes:
        name: of its row.
        views: of uploads.
        references: R pictures, with rows for the views.
        background: where scores are normalized: pictures, with rows for the views, and how.
        has_detail: whether the best candidates are scored again.
        depth: references of an upload that get a score of their own; all others share one below.
    """

    name: str
    views: Views
    references: Shard
    background: tuple[Shard, Background] | None = None
    has_detail: bool = True
    depth: int = DEPTH

    @property
    def shifted(self) -> bool:
        """Return whether a background is subtracted."""
        return self.background is not None

    def scores(self, uploads: Uploads) -> NDArray[np.float32]:
        """Return the scores of the best references, less the best of the background."""
        asked = self.looks(uploads)
        found = viewed.search(self.references, asked, self.depth)
        if self.has_detail:
            found = match_rows.rescored(found, self.depth)
        rows, kept = found["query_row"].to_numpy(), found["score"].to_numpy()
        scores = np.full((asked.uploads, len(self.references)), kept.min(initial=0) - 1, np.float32)
        scores[rows, np.array(found["reference_uri"].to_pylist(), np.int64)] = kept
        if self.background is None:
            return scores
        shard, how = self.background
        wholes = self.looks(uploads, self.views.of_wholes)
        beside = viewed.search(shard, wholes, how.k)["score"].to_numpy().reshape(-1, how.k)
        return np.asarray(scores - how.factor * background_means(beside, how.k)[:, None], np.float32)

    def looks(self, uploads: Uploads, views: Views | None = None) -> Looks:
        """Return the looks at uploads; by default under all views."""
        views = views or self.views
        latents = uploads.latents(WHOLE)[0]
        table = pa.table(
            {
                "latent": schemas.vectors_to_array(latents, latents.shape[1]),
                "insets": pa.array(_insets(uploads), pa.list_(schemas.INSET)),
            }
        )
        return chance.looks_of(views, table, views.transform.apply(latents))


def _insets(uploads: Uploads) -> list[list[dict[str, object]]]:
    """Return the column `insets` of uploads."""
    found = [uploads.latents(view) for view in INSETS]
    shown = np.flatnonzero(found[0][1]).tolist()
    boxes = dict(zip(shown, uploads.take(shown).boxes(BOXES), strict=True))
    rows = []
    for row in range(len(uploads.sources.uris)):
        latents = [latents[row] for latents, seen in found if seen[row]]
        names = views.HALVES if len(latents) == len(views.HALVES) else (views.INSET,)
        rows.append(
            [
                {"view": name, "latent": latent, **asdict(box)}
                for name, latent, box in zip(names, latents, boxes.get(row, ()), strict=False)
            ]
        )
    return rows


def shard_of(latents: NDArray[np.float16], transform: Transform) -> Shard:
    """Return pictures, with rows for views, as a search has them; their URIs are their numbers."""
    numbers = pa.array([f"{i:08d}" for i in range(len(latents))])
    make = ReferenceRows.of(transform, latents.shape[1])
    rows = ViewedRows(*make(latents)) if make else None
    return shards.build(
        transform.apply(latents), pa.table({"image_id": numbers, "uri": numbers}), viewed=rows
    )


@matchers
def shipped_with_views(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield the W that ships: with frames removed, then under all views, then with detail, normalized."""
    wholes = list(shipped_wholes(uploads))
    if not wholes:
        return
    every = Views.of(wholes[0].transform, uploads.data.ids["encoder_id"])
    references = shard_of(uploads.references, every.transform)
    for held in wholes:
        if held.background is None:
            yield Viewed("W that ships, frames", replace(every, moves=()), references)
            if every.has_rows:
                yield Viewed("W that ships, views without detail", every, references, has_detail=False)
                yield Viewed("W that ships, all views", every, references)
        elif every.has_rows and held.background.viewed:
            beside = (held.background.viewed, held.background)
            yield Viewed("W that ships, all views, normalized", every, references, beside)
