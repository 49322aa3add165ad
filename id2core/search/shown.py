"""How much the look at an upload shows that a pair was found by.

A photo on a blank page shows little as a whole, and much by itself. So a pair has the information of the
picture that met the reference: the whole, or the one that was seen inside of it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.encoders import views
from id2core.search import looks
from id2core.search.looks import LOOKS

_WHOLE, _COVERED = LOOKS.index(looks.WHOLE), LOOKS.index(looks.COVERED)
# Looks whose pictures are what is left of the whole without its frame.
_SEEN: Final = [LOOKS.index(name) for name in (views.INSET, *views.HALVES)]


def information(
    wholes: pa.ChunkedArray,
    insets: pa.ChunkedArray,
    rows: NDArray[np.integer[Any]],
    found_by: pa.ChunkedArray,
) -> NDArray[np.float32]:
    """Return how much the looks show that P pairs were found by, float32[P]; NaN where it is not known.

    Where nothing is known of a picture inside an upload, the whole speaks for it.

    Args:
        wholes: float32 of Q uploads.
        insets: `inset_information` of these.
        rows: int[P], the upload of each pair.
        found_by: names of views of P pairs, see `looks.name_of`.
    """
    table = np.repeat(wholes.to_numpy().astype(np.float32)[:, None], len(LOOKS), axis=1)
    owners = pc.list_parent_indices(insets).to_numpy()
    if len(owners):
        held = pc.list_flatten(insets)
        names = [LOOKS.index(name) for name in pc.struct_field(held, "view").to_pylist()]
        known = pc.struct_field(held, "information").to_numpy().astype(np.float32)
        shows = np.where(np.isnan(known), table[owners, _WHOLE], known)
        table[owners, names] = shows
        # What a frame leaves shows as much as the clearest picture inside of it.
        seen = np.isin(names, _SEEN)
        table[owners[seen], _COVERED] = np.nan
        np.fmax.at(table[:, _COVERED], owners[seen], shows[seen])
    return np.asarray(table[rows, _looks_of(found_by)])


def _looks_of(found_by: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the looks of views by name, int64[P], places in `LOOKS`."""
    parts = pc.list_element(pc.split_pattern(found_by, looks.JOINT), 0)
    return np.asarray(pc.index_in(parts, pa.array(LOOKS)).to_numpy(), np.int64)
