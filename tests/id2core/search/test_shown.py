"""A pair has the information of the look that it was found by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from id2core.search import shown
from id2core.store import schemas


def inset(view: str, information: float | None) -> dict[str, object]:
    return {"view": view, "information": information}


def test_a_pair_has_the_information_of_its_look() -> None:
    wholes = pa.chunked_array([[0.1, 0.2], [0.3, None]], pa.float32())
    insets = pa.chunked_array(
        [
            [[inset("inset", 0.9)], [inset("half-1", 0.4), inset("half-2", 0.6), inset("parent", 0.8)]],
            [None, [inset("inset", None)]],
        ],
        pa.list_(schemas.INSET_INFORMATION),
    )
    pairs = [
        (0, "whole", 0.1),
        (0, "whole+crop-0.5", 0.1),
        (0, "inset+mirrored", 0.9),
        (0, "covered", 0.9),
        (1, "half-1", 0.4),
        (1, "half-2+crop-0.75", 0.6),
        (1, "parent", 0.8),
        (1, "covered", 0.6),
        (2, "whole", 0.3),
        (2, "inset", 0.3),  # of an upload that nobody measured the inside of
        (3, "inset", np.nan),
        (3, "covered", np.nan),
    ]
    rows, views, wanted = zip(*pairs, strict=True)
    found = shown.information(wholes, insets, np.array(rows), pa.chunked_array([list(views)]))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_without_uploads_nothing_is_shown() -> None:
    none = pa.chunked_array([], pa.list_(schemas.INSET_INFORMATION))
    nobody = pa.chunked_array([], pa.float32())
    found = shown.information(nobody, none, np.empty(0, np.int64), pa.chunked_array([], pa.string()))
    assert found.shape == (0,)
