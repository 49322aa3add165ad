"""What pictures inside an upload score by chance, and cost for it.

A bland half of a collage lies near every reference, and the background of the whole upload does not say so.
Each picture inside an upload is therefore searched in the cohort of W, as the whole is. What it scores there
more than the whole is subtracted from its scores. So one background serves all looks: that of the whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.search import looks, viewed
from id2core.search.looks import Looks, Views
from id2core.search.shards import Shard
from id2core.transforms import cohorts


def looks_of(views: Views, uploads: pa.Table, descriptors: NDArray[np.float32]) -> Looks:
    """Return the looks of uploads, with what they cost.

    Args:
        views: of the search.
        uploads: their `views.columns`.
        descriptors: float32[Q,m], of the whole uploads.
    """
    asked = views.looks(uploads, descriptors)
    inside = np.arange(asked.uploads, len(asked))
    if views.cohort is None or not len(inside):
        return asked
    owners, owner_of = np.unique(asked.owners[inside], return_inverse=True)
    by_chance = _scores(views.cohort, asked.take(np.concatenate([owners, inside])))
    more = by_chance[len(owners) :] - by_chance[owner_of]
    costs = asked.costs.copy()
    costs[inside] += (looks.CHANCE_FACTOR * more).astype(np.float32)
    return replace(asked, costs=costs)


def _scores(cohort: Shard, asked: Looks) -> NDArray[np.float64]:
    """Return what each look scores by chance, float64[L]: the mean of its best in the cohort but one."""
    alone = replace(
        asked, uploads=len(asked), owners=np.arange(len(asked)), costs=np.zeros(len(asked), np.float32)
    )
    found = viewed.search(cohort, alone, cohorts.BEST)["score"].to_numpy().reshape(len(asked), -1)
    return np.asarray(found[:, 1:].mean(axis=1, dtype=np.float64))
