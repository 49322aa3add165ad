"""The best references of uploads under all views, see `looks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.search import indexes, looks, shards
from id2core.search.looks import Looks
from id2core.search.viewed_rows import RowIndex
from id2core.transforms import details
from id2core.transforms.crop_rows import COLUMNS, SLOPE

if TYPE_CHECKING:
    from id2core.search.coded import CodedShard
    from id2core.search.shards import Shard


@dataclass(frozen=True, eq=False)
class _Met:
    """Pairs of a look and a reference, under one view.

    Attributes:
        looks: int64[P].
        rows: int64[P], of references.
        scores: float32[P].
        move: number of the move, 0 for none.
        crop: share of the reference that was met; None for the whole.
    """

    looks: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    move: int = 0
    crop: float | None = None


def search(shard: Shard, asked: Looks, k: int) -> pa.Table:
    """Return the k best references of each upload in a shard, under the best view of each pair.

    The k best under any view are among the k best of each look under each view: no pair is missed.

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
    met = [
        _met(indexes.best(shard.index, asked.descriptors, shard.descriptors, shard.places, k), asked.costs)
    ]
    if asked.bits is not None:
        met += _met_rows(shard, asked, k)
    return _best(shard, asked, met, k)


def _met(
    found: tuple[NDArray[np.float32], NDArray[np.int64]],
    costs: NDArray[np.float32],
    slope: float = 1.0,
    move: int = 0,
    crop: float | None = None,
) -> _Met:
    """Return what looks have found under a view, with comparable scores.

    Args:
        found: products float32[L,k] and rows int64[L,k], below 0 for none.
        costs: float32[L], subtracted after the product was multiplied by `slope`.
        slope, move, crop: of the view.
    """
    products, rows = found
    scores = np.asarray(slope * products.astype(np.float64) - costs[:, None], np.float32)
    held = rows >= 0
    owners = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    return _Met(owners[held], rows[held], scores[held], move, crop)


def _met_rows(shard: Shard, asked: Looks, k: int) -> list[_Met]:
    """Return what looks have found among crops, and mirrored or turned among the wholes."""
    viewed = shard.viewed
    if viewed is None:
        raise ValueError("a shard without rows for views meets whole looks only")
    heads = np.ascontiguousarray(asked.descriptors[:, :COLUMNS])

    def found(rows: RowIndex, columns: NDArray[np.float32]) -> tuple[Any, Any]:
        return rows.best(columns, shard.places, k)

    met = [
        _met(found(rows, heads), asked.costs + np.float32(crop.handicap), SLOPE, crop=crop.share)
        for crop, rows in viewed.by_crop
    ]
    wholes = viewed.heads(shard.descriptors)
    for number, moved in enumerate(asked.moved, 1):
        costs = asked.costs + np.float32(moved.cost)
        met.append(_met(found(wholes, moved.heads), costs, looks.MOVED_SLOPE, number))
    return met


def _best(shard: Shard, asked: Looks, met: list[_Met], k: int) -> pa.Table:
    """Return the k best references of each upload: of each pair the best view, the first of equals."""
    of = np.concatenate([m.looks for m in met])
    rows = np.concatenate([m.rows for m in met])
    scores = np.concatenate([m.scores for m in met])
    view = np.repeat(np.arange(len(met)), [len(m.looks) for m in met])
    owners = asked.owners[of]
    order = np.lexsort((view, asked.names[of], -scores, rows, owners))
    pairs = np.stack([owners[order], rows[order]])
    first = np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))
    chosen = order[first]
    chosen = chosen[_in_order(shard, owners[chosen], scores[chosen], rows[chosen])]
    chosen = chosen[shards.ranks(owners[chosen]) < k]
    names = pa.array(_names(asked, met, of[chosen], view[chosen]), pa.string())
    agreement = _agreement(shard, asked, met, of[chosen], view[chosen], rows[chosen])
    return shard.candidates(owners[chosen].astype(np.int32), scores[chosen], rows[chosen], names, agreement)


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
    asked: Looks, met: list[_Met], of: NDArray[np.int64], view: NDArray[np.int64]
) -> NDArray[np.object_]:
    """Return the names of the views of pairs."""
    moves = ["", *(moved.name for moved in asked.moved)]
    table = np.array(
        [[looks.name_of(look, moves[m.move], m.crop) for m in met] for look in range(len(looks.LOOKS))],
        dtype=object,
    )
    return np.asarray(table[asked.names[of], view])


def _agreement(
    shard: Shard,
    asked: Looks,
    met: list[_Met],
    of: NDArray[np.int64],
    view: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float32] | None:
    """Return how far the details of pairs agree, under the view that won; None where there is no detail."""
    detail = shard.viewed.detail if shard.viewed else None
    if asked.bits is None or detail is None:
        return None
    moves = np.array([m.move for m in met])[view]
    made = np.empty(len(rows), np.float32)
    for number, bits in enumerate([asked.bits, *(moved.bits for moved in asked.moved)]):
        own = moves == number
        made[own] = details.agreement(bits[of[own]], detail[rows[own]])
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
    scores = found["score"].to_numpy() - asked.costs[of]
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
