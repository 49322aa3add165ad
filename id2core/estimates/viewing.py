"""What views of uploads add to each unit of work, and to each row.

Whole pictures and pictures inside of them are *looks*, with any encoder. Where W allows it, a look also meets
rows of cropped references, and is mirrored and turned (`search.looks`). Only looks cost encoder calls.
"""

from __future__ import annotations

from typing import Final

from id2core.estimates import rates
from id2core.estimates.rates import Lookup
from id2core.estimates.workload import Workload
from id2core.search.looks import MOVED_COSTS
from id2core.transforms.reference_rows import MOVED_COLUMNS

# Pictures inside a picture: 0.013 in 1,999 plain photos of docs/estimate.md, and 0.00 to 0.04 in other sets
# of photos. Screenshots and collages have more.
INSETS_EACH: Final = 0.02
# Bytes of an inset beside its latent: a name and a box.
_BOX_BYTES: Final = 20


def looks_each(load: Workload) -> float:
    """Return the looks at a picture: it, and what is seen inside of it."""
    return 1 + INSETS_EACH if load.sees_insets else 1.0


def looking_seconds(rate: Lookup, load: Workload) -> float:
    """Return the vCPU-seconds of a picture for the look for pictures inside of it."""
    return rate("embed_look") if load.sees_insets else 0.0


def rows_seconds(rate: Lookup, load: Workload) -> float:
    """Return the vCPU-seconds of a latent for its rows of crops and its detail."""
    return rate("embed_rows") * load.latent_size / rates.LATENT_SIZE if load.has_rows else 0.0


def looks_seconds(rate: Lookup, load: Workload) -> float:
    """Return the vCPU-seconds of an upload and a shard for all that is made of the upload's latent."""
    if not load.has_rows:
        return 0.0
    return looks_each(load) * rate("search_look") * load.latent_size * load.descriptor_size / rates.W_NUMBERS


def met_numbers(load: Workload) -> int:
    """Return the numbers of a reference that a look meets in an exact search."""
    if not load.meets_rows:
        return load.descriptor_size
    return load.descriptor_size + load.crops_bytes + len(MOVED_COSTS) * MOVED_COLUMNS


def stored_bytes(rate: Lookup, load: Workload) -> float:
    """Return the bytes of a row of `embeddings/` for crops, detail, and insets."""
    insets = (looks_each(load) - 1) * (load.latent_size * rate("latent_number_bytes") + _BOX_BYTES)
    return insets + (load.rows_bytes * rate("embedding_view_bytes") if load.has_rows else 0.0)
