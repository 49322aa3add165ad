"""Compressed indexes by FAISS: train a model, encode descriptors, and search codes.

A model is a trained FAISS index without rows. Codes are FAISS's own, so a row is encoded once, and any worker
can put any rows into an index. Codes of 4 bits and of single bits are searched by FAISS's fast scan, on CPUs.
Codes of 8 bits are searched on a GPU where FAISS sees one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.search.flat import load_faiss
from id2core.search.index_strings import Compressed

# Groups of numbers that FAISS has kernels for, on a GPU.
_GPU_GROUPS: Final = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
# Most candidates, and lists, of a search on a GPU.
_GPU_DEPTH: Final = 2048
# Rows of a block of fast scan.
_SCAN_ROWS = 32
# What mends a damaged index.
REBUILD: Final = "run id2 index --anew"
# Bytes of the tables that fast scan makes for all queries of a call. For RaBitQ it has a table for each query
# and list, with 4 bytes for each number. FAISS does not bound them, and crashes beyond 2 GiB.
_TABLES = 64 << 20
# Bytes that FAISS may allocate beside what the size of a model allows, and parts beside the lists.
_ROOM: Final = 1 << 20
_PARTS: Final = 64
# FAISS has one limit for all threads.
_READING: Final = threading.Lock()
# What of a part of an index follows from the string, by FAISS's names.
_GIVEN: Final = ("d", "d_in", "d_out", "have_bias", "metric_type", "nlist", "code_size", "by_residual")


@dataclass(frozen=True)
class Model:
    """What is trained of a compressed index.

    Attributes:
        form: the index.
        data: FAISS's serialized index, which has no row.
    """

    form: Compressed
    data: bytes
    _index: Any = field(repr=False, compare=False)

    def encode(self, descriptors: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes of descriptors float32[B,m]: uint8[B, stored_bytes]."""
        codes: NDArray[np.uint8] = self._index.sa_encode(np.ascontiguousarray(descriptors, np.float32))
        return codes

    def over(self, codes: Iterable[NDArray[np.uint8]]) -> CodeIndex:
        """Return the index of rows that are numbered in the order of their codes.

        Args:
            codes: uint8[B, stored_bytes], some rows at a time.

        Raises:
            DatasetError: codes are not of this model's length, or of a list that it has not.
        """
        whole = load_faiss().clone_index(self._index)
        rotation, inner = _parts(whole)
        rows = 0
        for some in codes:
            if some.ndim != 2 or some.shape[1] != inner.sa_code_size():
                raise DatasetError(f"codes of another index than {self.form.text}: {REBUILD}")
            try:
                inner.add_sa_codes(np.ascontiguousarray(some), np.arange(rows, rows + len(some)))
            except RuntimeError as error:
                raise DatasetError(
                    f"codes of lists that index {self.form.text} has not: {REBUILD}"
                ) from error
            rows += len(some)
        gpu, resources = _on_gpu(inner)
        return CodeIndex(_fast(inner), rotation, (whole, inner, resources), gpu)


@dataclass(frozen=True)
class CodeIndex:
    """Codes that can be searched."""

    _inner: Any
    _rotation: list[Any]
    # What the two are parts of: Python frees a part with its owner.
    _owners: tuple[Any, ...]
    _gpu: Any = None

    def search(
        self, queries: NDArray[np.float32], depth: int, probes: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the rows whose codes score best, float32[Q,depth] and int64[Q,depth].

        Scores are estimates. A row is below 0 where the lists have fewer.

        Args:
            queries: float32[Q,m], rows of length 1.
            depth: how many rows.
            probes: how many lists are searched for each query.
        """
        rotated = np.ascontiguousarray(queries, np.float32)
        for step in self._rotation:
            rotated = step.apply(rotated)
        probes = min(probes, self._inner.nlist)
        fits = self._gpu is not None and max(depth, probes) <= _GPU_DEPTH
        index = self._gpu if fits else self._inner
        index.nprobe = probes
        scores = np.empty((len(queries), depth), np.float32)
        rows = np.empty((len(queries), depth), np.int64)
        at_once = max(1, _TABLES // (4 * self._inner.d * probes))
        for start in range(0, len(queries), at_once):
            some = slice(start, start + at_once)
            index.search(rotated[some], depth, D=scores[some], I=rows[some])
        return scores, rows


def train(form: Compressed, sample: NDArray[np.float32]) -> Model:
    """Train a compressed index on a sample of descriptors, float32[B,m]. Equal samples give equal models."""
    index = _untrained(form, sample.shape[1])
    index.train(np.ascontiguousarray(sample, np.float32))
    return Model(form, load_faiss().serialize_index(index).tobytes(), index)


def _untrained(form: Compressed, descriptor_size: int) -> Any:
    faiss = load_faiss()
    # "np" leaves out a sorting of the codes that nothing here uses. It takes 0.2 s for each group.
    text = form.text + "np" if form.bits == 4 else form.text
    return faiss.index_factory(descriptor_size, text, faiss.METRIC_INNER_PRODUCT)


def load(form: Compressed, descriptor_size: int, data: bytes) -> Model:
    """Return the model of which `train` gave the bytes.

    Somebody else may have written them. So only numbers are taken from them, into an index that is made by
    the string.

    Args:
        form: the index.
        descriptor_size: m, numbers of a descriptor.
        data: FAISS's serialized index.

    Raises:
        SearchError: descriptors of m numbers do not fit the string.
        DatasetError: they are not FAISS's, or of another index.
    """
    form.check_size(descriptor_size)
    try:
        read = _deserialized(form, data)
    except (RuntimeError, MemoryError) as error:
        raise DatasetError(f"the model of index {form.text} cannot be read: {REBUILD}") from error
    # As FAISS reads one: it takes a rotation that was learned for any linear one.
    index = _deserialized(form, load_faiss().serialize_index(_untrained(form, descriptor_size)).tobytes())
    if not _fill(index, read):
        raise DatasetError(f"the model of index {form.text} is another one: {REBUILD}")
    return Model(form, data, index)


def _deserialized(form: Compressed, data: bytes) -> Any:
    """Return the FAISS index of bytes that may claim any size.

    Raises RuntimeError or MemoryError where they claim more than they have, or more lists than the string.
    """
    faiss = load_faiss()
    # Of a table that a search by inner products does not need, FAISS asks only whether it would fit.
    table = 4 * form.lists * (form.groups or 0) * 2**form.bits
    with _READING:
        limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(_ROOM + max(4 * len(data), table))
        faiss.set_deserialization_loop_limit(_PARTS + form.lists)
        try:
            return faiss.deserialize_index(np.frombuffer(data, np.uint8))
        finally:
            faiss.set_deserialization_vector_byte_limit(limits[0])
            faiss.set_deserialization_loop_limit(limits[1])


def _fill(index: Any, read: Any) -> bool:
    """Give an untrained index the trained numbers of another one; return whether that is of its kind."""
    faiss = load_faiss()
    own, given = _layers(index), _layers(read)
    if list(map(_kind, own)) != list(map(_kind, given)) or read.ntotal or not read.is_trained:
        return False
    *rotation, lists, centroids = own
    for step, trained in zip(rotation, given, strict=False):
        sizes = step.d_in * step.d_out, step.d_out if step.have_bias else 0
        if not (_copy(trained.A, step.A, sizes[0]) and _copy(trained.b, step.b, sizes[1])):
            return False
        step.is_trained = True
    if isinstance(lists, faiss.IndexIVFPQ) and not _copy(
        given[-2].pq.centroids, lists.pq.centroids, lists.pq.d * lists.pq.ksub
    ):
        return False
    if not _copy(given[-1].codes, centroids.codes, lists.nlist * centroids.code_size):
        return False
    centroids.ntotal = lists.nlist
    lists.is_trained = index.is_trained = True
    return True


def _layers(whole: Any) -> list[Any]:
    """Return the parts of a FAISS index: rotations, lists, and the index of their centroids."""
    rotation, inner = _parts(whole)
    has_lists = isinstance(inner, load_faiss().IndexIVF)
    return [*rotation, inner, load_faiss().downcast_index(inner.quantizer)] if has_lists else [inner]


def _kind(layer: Any) -> tuple[Any, ...]:
    """Return class and parameters of a part of a FAISS index."""
    groups = getattr(layer, "pq", None)
    cut = (groups.d, groups.M, groups.nbits) if groups else ()
    return type(layer), *(getattr(layer, name, None) for name in _GIVEN), *cut


def _copy(source: Any, target: Any, size: int) -> bool:
    """Copy a vector of FAISS; return whether it has so many elements, and all numbers in it are finite."""
    faiss = load_faiss()
    held = faiss.vector_to_array(source)
    if len(held) != size or not np.isfinite(held.view(np.float32)).all():
        return False
    faiss.copy_array_to_vector(held, target)
    return True


def scores(
    queries: NDArray[np.float32],
    query_rows: NDArray[np.int64],
    references: NDArray[np.float32],
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the scores of pairs of rows, summed in float32: float32[P].

    Args:
        queries, references: float32[Q,m] and float32[N,m].
        query_rows, rows: int64[P], both sides of each pair.
    """
    faiss = load_faiss()
    made = np.empty(len(rows), np.float32)
    held = [np.ascontiguousarray(side) for side in (queries, query_rows, references, rows)]
    pointers = [faiss.swig_ptr(side) for side in held]
    faiss.pairwise_indexed_inner_product(queries.shape[1], len(made), *pointers, faiss.swig_ptr(made))
    return made


def _parts(whole: Any) -> tuple[list[Any], Any]:
    """Return the rotations of a FAISS index, and the index of lists behind them; both are parts of it."""
    faiss = load_faiss()
    index = faiss.downcast_index(whole)
    if not isinstance(index, faiss.IndexPreTransform):
        return [], index
    steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    return steps, faiss.downcast_index(index.index)


def _on_gpu(inner: Any) -> tuple[Any, Any]:
    """Return a copy of an index on a GPU, and what holds it there; two None where there is none for it."""
    faiss = load_faiss()
    is_known = isinstance(inner, faiss.IndexIVFPQ) and inner.pq.nbits == 8 and inner.pq.M in _GPU_GROUPS
    if not is_known or not getattr(faiss, "get_num_gpus", int)():
        return None, None
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True  # tables of inner products; what they round is scored exactly in the end
    resources = faiss.StandardGpuResources()
    return faiss.index_cpu_to_gpu(resources, 0, inner, options), resources


def _fast(inner: Any) -> Any:
    """Return an index over the same codes that FAISS scans fastest."""
    faiss = load_faiss()
    if isinstance(inner, faiss.IndexIVFRaBitQ):
        fast = faiss.IndexIVFRaBitQFastScan(inner, _SCAN_ROWS)
    elif isinstance(inner, faiss.IndexIVFPQ) and inner.pq.nbits == 4:
        fast = faiss.IndexIVFPQFastScan(inner, _SCAN_ROWS)
    else:
        return inner
    inner.invlists.reset()
    return fast
