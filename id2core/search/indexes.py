"""The indexes that a shard can be searched by: the setting `index`.

One is built over the descriptors that a worker holds: one row of `INDEXES` per kind. A new one is a module
like `flat` and a row there. Or it is the string of a compressed index, whose codes lie beside the references
(`index_strings`, `coded`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from id2core.errors import SearchError
from id2core.search import index_strings
from id2core.search.flat import FlatIndex
from id2core.search.topk import Places, best_references

# Exact, and the default.
FLAT: Final = "flat"


class Index(Protocol):
    """Descriptors that can be searched."""

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best scores float32[Q,k] of queries float32[Q,m], best first, and their rows.

        A row is below 0 where the index found fewer than k.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """An index that makes exact scores where its descriptors are."""

    def pairs(self, queries: NDArray[np.float32], rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the scores of each query with some rows, as `scoring.pairs` does: to the last bit."""
        ...


# Name → what builds the index over descriptors float32[N,m], rows of length 1.
INDEXES: Final[dict[str, Callable[[NDArray[np.float32]], Index]]] = {FLAT: FlatIndex}


def check_name(name: str) -> None:
    """Raise SearchError where no index has that name."""
    if is_built_at_once(name):
        return
    if "IVF" not in name:
        raise SearchError(f"no index {name!r}: choose {', '.join(INDEXES)}, or {index_strings.EXAMPLES}")
    index_strings.parse(name)


def is_built_at_once(name: str) -> bool:
    """Return whether an index is built over descriptors in memory, and not from codes that are stored."""
    return name in INDEXES


def build(name: str, descriptors: NDArray[np.float32]) -> Index:
    """Build the index of that name over descriptors float32[N,m], rows of length 1.

    Raises:
        SearchError: there is none of that name, or FAISS is not installed.
    """
    if name not in INDEXES:
        raise SearchError(f"no index {name!r}: choose {', '.join(INDEXES)}")
    return INDEXES[name](descriptors)


def best(
    index: Index, queries: NDArray[np.float32], vectors: NDArray[np.float32], places: Places, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k best rows of each query by exact scores, ties by place; see `best_references`.

    Args:
        index: over `vectors`.
        queries, vectors: float32[Q,m] and float32[N,m], no row longer than 1.
        places: decides between rows of equal scores.
        k: at most N.

    Returns:
        Scores float32[Q,k] and rows int64[Q,k], below 0 where an approximate index found fewer.
    """
    score = partial(index.pairs, queries) if isinstance(index, Scorer) else None
    return best_references(lambda depth: index.search(queries, depth), queries, vectors, places, k, score)
