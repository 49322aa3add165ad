"""The best references of uploads under all views, see `looks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.search import flat, indexes, looks, products, scoring, shards
from id2core.search.indexes import Index
from id2core.search.looks import Looks
from id2core.search.products import Factor
from id2core.search.topk import MARGIN
from id2core.transforms import details
from id2core.transforms.crop_rows import COLUMNS, SLOPE

Scores = NDArray[np.float32]

if TYPE_CHECKING:
    from id2core.search.coded import CodedShard
    from id2core.search.shards import Shard


@dataclass(frozen=True, eq=False)
class _View:
    """A view of looks: columns that meet rows of references.

    Attributes:
        left: float32[L,c], of the looks.
        right: float32[N,c], of the references.
        index: over `right`.
        slopes: float64[L], of the look and the view, that products are multiplied by before.
        look_costs: float32[L], subtracted from all scores of the look.
        cost: of the view, subtracted besides.
        move: number of the move, 0 for none.
        crop: share of the reference that is met; None for the whole.
    """

    left: Scores
    right: Scores
    index: Index
    slopes: NDArray[np.float64]
    look_costs: Scores
    cost: float = 0.0
    move: int = 0
    crop: float | None = None

    @property
    def factor(self) -> Factor:
        """What the best references are proposed by, costs of looks left out."""
        slopes = self.slopes[:, None].astype(np.float32)
        return self.left if (slopes == 1).all() else self.left * slopes, self.right, self.cost

    def scores(self, products: Scores, looks: NDArray[np.int64] | slice = slice(None)) -> Scores:
        """Return comparable scores of exact products float32[l,K] of some looks."""
        costs = self.look_costs[looks] + np.float32(self.cost)
        scores = self.slopes[looks][:, None] * products.astype(np.float64) - costs[:, None]
        return np.asarray(scores, np.float32)


@dataclass(frozen=True, eq=False)
class _Met:
    """P pairs of a look and a reference, under one view each.

    Attributes:
        looks, rows, views: int64[P], of looks, references, and views.
        scores: float32[P].
    """

    looks: NDArray[np.int64]
    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    scores: Scores

    @staticmethod
    def together(parts: Sequence[_Met]) -> _Met:
        """Return the pairs of all parts."""
        names = ("looks", "rows", "views", "scores")
        return _Met(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def search(shard: Shard, asked: Looks, k: int) -> pa.Table:
    """Return the k best references of each upload in a shard, under the best view of each pair.

    Args:
        shard: with the rows that views meet, if the looks have bits.
        asked: looks at uploads.
        k: references of each upload.

    Returns:
        A `shards.CANDIDATES` table, ordered by query_row and falling score, equal scores by id and URI.
    """
    k = min(k, len(shard))
    if not k or not len(asked):
        return shards.CANDIDATES.empty_table()
    views = _views(shard, asked)
    if shard.viewed is None or asked.bits is None or flat.on_gpu():
        met = _each(shard, views, np.arange(len(asked)), k)
    else:
        met = _at_once(shard, asked, views, k)
    return _best(shard, asked, views, met, k)


def _views(shard: Shard, asked: Looks) -> list[_View]:
    """Return the views of looks: the whole, then crops of references, then mirrored and turned."""
    slopes, costs = asked.slopes, asked.costs
    whole = _View(asked.descriptors, shard.descriptors, shard.index, slopes, costs)
    if asked.bits is None:
        return [whole]
    if shard.viewed is None:
        raise ValueError("a shard without rows for views meets whole looks only")
    heads = np.ascontiguousarray(asked.descriptors[:, :COLUMNS])
    steeper = slopes * SLOPE
    crops = [
        _View(heads, rows.rows, rows.index, steeper, costs, crop.cost, crop=crop.share)
        for crop, rows in shard.viewed.by_crop
    ]
    steeper, wholes = slopes * looks.MOVED_SLOPE, shard.heads
    moved = [
        _View(each.heads, wholes.rows, wholes.index, steeper, costs, each.cost, number)
        for number, each in enumerate(asked.moved, 1)
    ]
    return [whole, *crops, *moved]


def _each(shard: Shard, views: list[_View], of: NDArray[np.int64], k: int) -> _Met:
    """Return the k best references of some looks under each view: among them are the best under any."""
    parts = []
    for number, view in enumerate(views):
        products, rows = indexes.best(view.index, view.left[of], view.right, shard.places, k)
        held = rows >= 0
        owners = np.broadcast_to(of[:, None], rows.shape)[held]
        scores = view.scores(products, of)[held]
        parts.append(_Met(owners, rows[held], np.full(len(owners), number), scores))
    return _Met.together(parts)


def _at_once(shard: Shard, asked: Looks, views: list[_View], k: int) -> _Met:
    """Return the k best references of looks under the best of all views.

    Products in float32 propose a few references more, which are scored exactly. A look for which a reference
    that was left out may belong to the best is searched under each view.
    """
    depth = min(k + MARGIN, len(shard))
    factors = [view.factor for view in views]
    proposed, rows = products.propose(factors, depth)
    # Twice: for the product, which slopes enlarge, and for sums with costs.
    doubt = 2 * SLOPE * asked.slopes * scoring.tolerance(shard.descriptors.shape[1])
    about = products.pairs(factors, rows)
    may_win = about >= (about.max(axis=0) - 2 * doubt[:, None])
    best = np.full(rows.shape, -np.inf, np.float32)
    chosen = np.zeros(rows.shape, np.int64)
    for number, view in enumerate(views):
        looked, place = np.nonzero(may_win[number])
        exact = scoring.dots(view.left, looked, view.right, rows[looked, place])
        scores = view.scores(exact[:, None], looked)[:, 0]
        better = scores > best[looked, place]
        at = looked[better], place[better]
        best[at], chosen[at] = scores[better], number
    of = np.broadcast_to(np.arange(len(asked))[:, None], rows.shape)
    if depth == len(shard):
        return _Met(of.ravel(), rows.ravel(), chosen.ravel(), best.ravel())
    kth = np.partition(best + asked.costs[:, None], depth - k, axis=1)[:, depth - k]
    in_doubt = proposed[:, -1] >= kth - doubt
    sure = ~in_doubt
    met = _Met(of[sure].ravel(), rows[sure].ravel(), chosen[sure].ravel(), best[sure].ravel())
    if not in_doubt.any():
        return met
    return _Met.together([met, _each(shard, views, np.flatnonzero(in_doubt), k)])


def _best(shard: Shard, asked: Looks, views: list[_View], met: _Met, k: int) -> pa.Table:
    """Return the k best references of each upload: of each pair the best view, the first of equals."""
    owners = asked.owners[met.looks]
    order = np.lexsort((met.views, asked.names[met.looks], -met.scores, met.rows, owners))
    pairs = np.stack([owners[order], met.rows[order]])
    chosen = order[np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))]
    chosen = chosen[_in_order(shard, owners[chosen], met.scores[chosen], met.rows[chosen])]
    chosen = chosen[shards.ranks(owners[chosen]) < k]
    of, rows, view = met.looks[chosen], met.rows[chosen], met.views[chosen]
    names = pa.array(_names(asked, views, of, view), pa.string())
    agreement = _agreement(shard, asked, views, of, view, rows)
    query_rows = owners[chosen].astype(np.int32)
    return shard.candidates(query_rows, met.scores[chosen], rows, names, agreement)


def _in_order(
    shard: Shard, owners: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the order of pairs by upload and falling score, ties by id. Ids are compared only there."""
    order = np.lexsort((-scores, owners))
    same = (owners[order][1:] == owners[order][:-1]) & (scores[order][1:] == scores[order][:-1])
    tied = order[np.append(same, False) | np.append(False, same)]
    if not len(tied):
        return order
    places = np.zeros(len(rows), np.int64)
    places[tied] = shard.places(rows[tied])
    return np.lexsort((places, -scores, owners))


def _names(
    asked: Looks, views: list[_View], of: NDArray[np.int64], view: NDArray[np.int64]
) -> NDArray[np.object_]:
    """Return the names of the views of pairs."""
    moves = ["", *(moved.name for moved in asked.moved)]
    table = np.array(
        [[looks.name_of(look, moves[v.move], v.crop) for v in views] for look in range(len(looks.LOOKS))],
        dtype=object,
    )
    return np.asarray(table[asked.names[of], view])


def _agreement(
    shard: Shard,
    asked: Looks,
    views: list[_View],
    of: NDArray[np.int64],
    view: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float32] | None:
    """Return how far the details of pairs agree, under the view that won; None where there is no detail.

    An upload that shows a part of the reference is also compared with that part, wherever it is.
    """
    detail = shard.viewed.detail if shard.viewed else None
    if asked.bits is None or asked.latents is None or detail is None:
        return None
    moves = np.array([v.move for v in views])[view]
    made = np.empty(len(rows), np.float32)
    for number, bits in enumerate([asked.bits, *(moved.bits for moved in asked.moved)]):
        own = moves == number
        made[own] = details.agreement(bits[of[own]], detail[rows[own]])
    shares = np.array([v.crop or 1.0 for v in views])[view]
    for share in looks.ALIGNED:
        (own,) = np.nonzero(shares == share)
        shown, places = np.unique(of[own], return_inverse=True)
        parts = details.part_detail(asked.latents[shown], share)
        made[own] = np.maximum(made[own], details.aligned(parts, places, detail[rows[own]]))
    return made


def search_coded(shard: CodedShard, asked: Looks, k: int) -> pa.Table:
    """Return the k best references of each upload that a compressed index finds, under the best look.

    Codes are of whole descriptors: crops of references are not met, nor are looks mirrored or turned.

    Args:
        shard: of codes.
        asked: looks at uploads.
        k: references of each upload.

    Returns:
        As of `search`.
    """
    found = shard.search(asked.descriptors, k)
    of = found["query_row"].to_numpy()
    scores = (asked.slopes[of] * found["score"].to_numpy() - asked.costs[of]).astype(np.float32)
    names = [looks.name_of(look) for look in asked.names[of].tolist()]
    columns = {
        "query_row": pa.array(asked.owners[of].astype(np.int32)),
        "score": pa.array(scores),
        "view": pa.array(names, pa.string()),
    }
    for name, column in columns.items():
        found = found.set_column(found.column_names.index(name), shards.CANDIDATES.field(name), column)
    if len(asked) == asked.uploads:
        return found
    best: dict[tuple[int, str, str], tuple[float, int]] = {}
    pairs = zip(
        *(found[name].to_pylist() for name in ("query_row", "reference_id", "reference_uri")), strict=True
    )
    for place, (pair, score) in enumerate(zip(pairs, scores.tolist(), strict=True)):
        best[pair] = max(best.get(pair, (-np.inf, 0)), (score, -place))
    kept = sorted(-place for _, place in best.values())
    return shards.merge([found.take(pa.array(kept))], k)
