"""The exact index: FAISS's inner product over all descriptors, on the GPU where FAISS sees one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.errors import SearchError

# FAISS returns no more than this from a GPU.
_GPU_DEPTH = 2048
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


class FlatIndex:
    """Descriptors as they are; every query meets every one of them."""

    def __init__(self, descriptors: NDArray[np.float32]) -> None:
        """Build the index over descriptors float32[N,m]; on the CPU it keeps no copy of them."""
        faiss = self._faiss = load_faiss()
        self._descriptors = np.ascontiguousarray(descriptors, np.float32)
        self._gpu: Any = None
        if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
            index = faiss.IndexFlatIP(descriptors.shape[1])
            index.add(self._descriptors)
            self._gpu = faiss.index_cpu_to_all_gpus(index)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best scores float32[Q,k] of queries float32[Q,m], best first, and their rows."""
        queries = np.ascontiguousarray(queries, np.float32)
        if self._gpu is not None and k <= _GPU_DEPTH:
            scores, rows = self._gpu.search(queries, k)
        else:
            metric = self._faiss.METRIC_INNER_PRODUCT
            scores, rows = self._faiss.knn(queries, self._descriptors, k, metric=metric)
        return scores, rows
