"""Drawn values of the columns of views: pictures in a picture, crops, and detail."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from id2core.store import schemas

NAMES = tuple(name for name, _ in schemas.VIEWS)
_TYPES = dict(schemas.VIEWS)


def draw(rows: int, latent: int, seed: int = 0) -> dict[str, pa.Array]:
    """Return the columns: of some rows nobody looked, in others nothing or up to three pictures were seen."""
    rng = np.random.default_rng(seed)

    def inset(number: int) -> dict[str, object]:
        sides = rng.random(4).astype(np.float32).tolist()
        values = rng.normal(size=latent).astype(np.float16)
        box = dict(zip(("left", "top", "right", "bottom"), sides, strict=True))
        return {"view": f"half-{number}", **box, "latent": values}

    counts = rng.integers(-1, 4, rows)
    insets = [None if count < 0 else [inset(i) for i in range(count)] for count in counts]
    octets = [None if rng.random() < 0.3 else rng.bytes(5) for _ in range(2 * rows)]
    information = [row and [_shown(one["view"], rng) for one in row] for row in insets]
    return {
        "crops": pa.array(octets[:rows], _TYPES["crops"]),
        "detail": pa.array(octets[rows:], _TYPES["detail"]),
        "insets": pa.array(insets, _TYPES["insets"]),
        "inset_information": pa.array(information, _TYPES["inset_information"]),
        "finder": pa.array([None if row is None else "frames-v0" for row in insets]),
    }


def _shown(view: object, rng: np.random.Generator) -> dict[str, object]:
    return {"view": view, "information": None if rng.random() < 0.3 else rng.random()}
