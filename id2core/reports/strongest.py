"""The best match of an upload where several channels have one each.

Scores of channels are not comparable, and verdicts are. So the best match is that of the strongest verdict.
Of equal verdicts, it is that of the first channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from id2core.runs.keys import row_keys
from id2core.search.match_rows import CHANNEL
from id2core.verdicts.calibration import Verdict

COLUMNS: Final = ("query_uri", "query_generation", "verdict", "channel")
_ORDER: Final = (Verdict.MATCH.value, Verdict.REVIEW.value, Verdict.NONE.value)


def strengths(rows: pa.Table, channels: Sequence[str]) -> pa.Array:
    """Return int64[n], the smaller the stronger: by verdict, then by channel.

    Args:
        rows: of `matches/`.
        channels: their names, the first first.
    """
    verdicts = pc.index_in(rows["verdict"].cast(pa.string()), value_set=pa.array(_ORDER))
    places = pc.index_in(named(rows), value_set=pa.array(channels, pa.string()))
    order = pc.multiply(pc.fill_null(verdicts, len(_ORDER)), len(channels) + 1)
    return pc.add(order, pc.fill_null(places, len(channels))).cast(pa.int64())


def named(rows: pa.Table) -> pa.ChunkedArray:
    """Return the channel of each row; earlier versions knew one, and left it out."""
    return pc.fill_null(rows["channel"].cast(pa.string()), CHANNEL)


def best(first: pa.Table, channels: Sequence[str]) -> pa.Table:
    """Return the best match of each upload.

    Args:
        first: rows of rank 1, of each upload one of each channel at most; the uploads of a table of
            `CurrentMatches.tables`.
        channels: their names, the first first.
    """
    if len(channels) == 1:
        return first
    ordered = first.take(pc.sort_indices(strengths(first, channels)))
    _, places = np.unique(row_keys(ordered.select(["query_uri", "query_generation"])), return_index=True)
    return ordered.take(pa.array(np.sort(places)))


def of_channel(rows: pa.Table, channel: str) -> pa.Table:
    """Return the rows of a channel."""
    return rows.filter(pc.equal(named(rows), channel))
