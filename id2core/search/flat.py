"""The exact index: FAISS's inner product over all descriptors, or torch's where there is a GPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from id2core import environment
from id2core.errors import SearchError
from id2core.search import scoring

if TYPE_CHECKING:
    from id2core.search.gpu_index import GpuIndex  # imports torch

# Numbers of all queries from which a matrix product is faster than FAISS's loops over one query at a time.
# FAISS itself takes 128,000, and needs seven times as long for 60 queries of 512 numbers.
_PRODUCT_FROM = 2048


@functools.cache
def load_faiss() -> Any:
    """Import FAISS. Raises SearchError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise SearchError("search needs FAISS: pip install 'id2[cpu]' or 'id2[gpu]'") from error
    if faiss.cvar.distance_compute_blas_threshold > _PRODUCT_FROM:  # FAISS 1.14 counted queries, from 20 on
        faiss.cvar.distance_compute_blas_threshold = _PRODUCT_FROM
    return faiss


@functools.cache
def on_gpu() -> bool:
    """Return whether indexes are on a GPU."""
    return environment.sees_gpu()


class FlatIndex:
    """Descriptors as they are; every query meets every one of them."""

    def __init__(self, descriptors: NDArray[np.float32]) -> None:
        """Build the index over descriptors float32[N,m]; on the CPU it keeps no copy of them.

        Raises:
            SearchError: they do not fit in the memory of the GPU, or FAISS is not installed.
        """
        self._faiss = load_faiss()
        self._descriptors = np.ascontiguousarray(descriptors, np.float32)
        self._gpu: GpuIndex | None = None
        if on_gpu():
            from id2core.search.gpu_index import GpuIndex

            self._gpu = GpuIndex(self._descriptors)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best scores float32[Q,k] of queries float32[Q,m], best first, and their rows."""
        queries = np.ascontiguousarray(queries, np.float32)
        if self._gpu is not None:
            scores, rows = self._gpu.search(queries, k)
        else:
            metric = self._faiss.METRIC_INNER_PRODUCT
            scores, rows = self._faiss.knn(queries, self._descriptors, k, metric=metric)
        return scores, rows

    def pairs(self, queries: NDArray[np.float32], rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the exact scores of each query with some rows; see `scoring.pairs`."""
        if self._gpu is not None:
            return self._gpu.pairs(queries, rows)
        return scoring.pairs(queries, self._descriptors, rows)
