"""Matchers that look at an upload under several views, see `encoders.views` and `encoders.latent_views`.

A view that is seen in the pixels is encoded. One of the latent is a W of its own. The score of a pair is the
best under any view, less what the view costs. The background goes through the same: what is subtracted is the
mean of the best scores, under any view, among pictures that no upload comes from. So one threshold holds for
the maximum, and an upload's references keep the order of the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from id2core.encoders import images, latent_views, views
from id2core.encoders.images import Decoded
from id2core.encoders.latent_views import MIRRORED, TURNED_LEFT, TURNED_RIGHT
from id2core.errors import ExperimentError
from id2core.experiments.methods import Methods
from id2core.experiments.upload_matchers import Background, Matcher, matchers, shipped_wholes
from id2core.experiments.upload_sets import WHOLE, PixelView, Uploads, UploadSet
from id2core.search.background_rows import background_means
from id2core.transforms.linear import Transform

# What a view costs, chosen on validation uploads: it lifts false references as often as the true one.
COSTS = {MIRRORED: 0.02, TURNED_LEFT: 0.03, TURNED_RIGHT: 0.03}
# What the whole costs where a picture inside a frame is seen. A frame is like other frames, so the whole
# lifts framed references. It stays a view: of a reference with the same frame, a copy scores near 1.
FRAMED = 0.2


def _inset(number: int) -> PixelView:
    def look(data: bytes, size: int) -> NDArray[np.uint8] | None:
        decoded = images.decode(data, size, look=views.insets)
        if not isinstance(decoded, Decoded):
            raise ExperimentError(f"an upload that an edit made cannot be decoded: {decoded}")
        return decoded.insets[number] if number < len(decoded.insets) else None

    return PixelView(f"inset-{number + 1}", 1, look)


INSETS = (_inset(0), _inset(1))


@dataclass(frozen=True, eq=False)
class LatentW:
    """A W that sees latents under a view.

    Attributes:
        transform: the view, then W.
        cost: what is subtracted from its scores.
    """

    transform: Transform
    cost: float


@dataclass(frozen=True, eq=False)
class Views:
    """The best score under any view: of the whole and of pictures inside it, each by several Ws.

    Attributes:
        name: of its row.
        ws: W, then W under views of the latent.
        references: float32[R,m], descriptors by W.
        background: where scores are normalized.
    """

    name: str
    ws: Sequence[LatentW]
    references: NDArray[np.float32]
    background: Background | None = None

    @property
    def shifted(self) -> bool:
        """Return whether a background is subtracted."""
        return self.background is not None

    def scores(self, uploads: Uploads) -> NDArray[np.float32]:
        """Return the best cosines, less the best of the background."""
        looks = looked_at(uploads)
        scores = self._best(looks, self.references)
        if self.background is None:
            return scores
        means = background_means(self._best(looks, self.background.descriptors), self.background.k)
        return np.asarray(scores - self.background.factor * means[:, None], np.float32)

    def _best(self, looks: Sequence[Look], against: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the best score of each upload with each of B descriptors, float32[Q,B]."""
        best = np.full((len(looks[0].rows), len(against)), -np.inf, np.float32)
        for look in looks:
            for w in self.ws:
                costs = (look.costs + w.cost).astype(np.float32)[:, None]
                scores = w.transform.apply(look.latents) @ against.T - costs
                best[look.rows] = np.maximum(best[look.rows], scores)
        return best


@dataclass(frozen=True, eq=False)
class Look:
    """What is encoded of P uploads: the whole, or a picture inside.

    Attributes:
        rows: int64[P], which uploads.
        latents: float16[P,n].
        costs: float64[P], subtracted from their scores.
    """

    rows: NDArray[np.int64]
    latents: NDArray[np.float16]
    costs: NDArray[np.float64]


def looked_at(uploads: Uploads) -> list[Look]:
    """Return what is encoded of uploads: the whole of all, then one picture inside, then a second."""
    rows = np.arange(len(uploads.sources.uris))
    looks = [Look(rows, uploads.latents(WHOLE)[0], np.zeros(len(rows)))]
    for view in INSETS:
        if not len(rows):
            break
        latents, seen = Uploads(uploads.edit, uploads.sources.take(rows.tolist()), uploads.set).latents(view)
        rows = rows[seen]
        looks.append(Look(rows, latents[seen], np.zeros(len(rows))))
    # Two pictures are halves without a frame.
    for look, cost in zip(looks[1:], (FRAMED, 0.0), strict=False):
        looks[0].costs[look.rows] = cost
    return looks


@matchers
def shipped_with_views(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield the W that ships, with frames removed, then also mirrored, then also turned."""
    known = latent_views.bundled(uploads.data.ids["encoder_id"])
    for held in shipped_wholes(uploads):
        weights = held.transform.weights
        if weights is None:
            continue
        for title, names in (
            ("frames", ()),
            ("frames, mirrored", (MIRRORED,)),
            ("frames, mirrored, turned", (MIRRORED, TURNED_LEFT, TURNED_RIGHT)),
        ):
            if not all(name in known for name in names):
                continue
            ws = [LatentW(held.transform, 0.0)]
            for name in names:
                folded = known[name].fold(weights)
                ws.append(LatentW(Transform(folded), COSTS[name]))
            yield Views(f"{held.name}, {title}", ws, held.references, held.background)
