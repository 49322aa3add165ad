"""Bytes of the data sets."""

from __future__ import annotations

from id2core.estimates import viewing
from id2core.estimates.layout import SearchLayout
from id2core.estimates.rates import Lookup
from id2core.estimates.workload import Workload


def vector_bytes(rows: int, latent_size: int, descriptor_size: int) -> int:
    """Return the bytes of some float16 latents and float32 descriptors before compression."""
    return rows * (2 * latent_size + 4 * descriptor_size)


def embeddings_bytes(rate: Lookup, rows: int, latent_size: int, descriptor_size: int) -> float:
    """Return the stored bytes of some rows of `embeddings/`; NaN if not measured."""
    latent = latent_size * rate("latent_number_bytes")
    descriptor = descriptor_size * rate("descriptor_number_bytes")
    return rows * (latent + descriptor + rate("embedding_row_bytes"))


def data_sets(rate: Lookup, load: Workload, night: SearchLayout) -> dict[str, float]:
    """Return the stored bytes of each data set by name; those that grow are after the nights that are kept.

    `matches/` is an upper limit: all k pairs of every upload. A floor stores fewer. Staged candidates are
    those of one night, and are deleted at its end.
    """

    def embeddings(rows: int) -> float:
        each = viewing.stored_bytes(rate, load) if load.sees_insets else 0.0
        return embeddings_bytes(rate, rows, load.latent_size, load.descriptor_size) + rows * each

    def pair(name: str) -> float:
        return rate(f"{name}_row_bytes") + (rate("view_bytes") if load.sees_insets else 0.0)

    def index() -> dict[str, float]:
        if load.index is None:
            return {}
        form, size = load.index.form, load.descriptor_size
        codes = load.references * form.stored_bytes(size) * rate("index_code_bytes")
        return {"reference/index": codes + form.model_bytes(size)}

    pairs = load.kept_queries * min(load.top_k, load.references)
    return {
        "reference/embeddings": embeddings(load.references),
        **index(),
        "queries/embeddings": embeddings(load.kept_queries),
        "matches": pairs * pair("match"),
        "staged candidates": night.candidates(load.merged) * pair("candidate"),
    }
