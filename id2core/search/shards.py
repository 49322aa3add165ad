"""One FAISS shard: build, search, and merge what many shards found."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import SearchError
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, FileRecord

CANDIDATES = pa.schema(
    [
        ("query_row", pa.int32()),
        ("score", pa.float32()),
        ("reference_id", pa.string()),
        ("reference_uri", pa.string()),
    ]
)
# Equal scores are ordered by id, then URI, so that a merge does not depend on which shard came first.
_ORDER = [
    ("query_row", "ascending"),
    ("score", "descending"),
    ("reference_id", "ascending"),
    ("reference_uri", "ascending"),
]


@functools.cache
def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SearchError("search needs FAISS: pip install 'id2[cpu]' or 'id2[gpu]'") from error
    return faiss


def require() -> None:
    """Raise SearchError when FAISS is not installed."""
    _faiss()


@dataclass(frozen=True)
class Shard:
    """One reference file and the exact inner-product index over its descriptors.

    Attributes:
        index: FAISS index of float32 rows; on the GPU where FAISS sees one.
        ids: image_id and uri of each row, as Arrow columns.
    """

    index: Any
    ids: pa.Table

    def search(self, queries: NDArray[np.float32], k: int) -> pa.Table:
        """The k best references of each query in this shard (fewer where the shard is smaller).

        Args:
            queries: float32[Q,m], rows of length 1.
            k: how many.

        Returns:
            A `CANDIDATES` table, ordered by query_row and falling score.
        """
        k = min(k, self.ids.num_rows)
        if not k or not len(queries):
            return CANDIDATES.empty_table()
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        hits = self.ids.take(pa.array(rows.reshape(-1)))
        query_rows = np.repeat(np.arange(len(queries), dtype=np.int32), k)
        return pa.Table.from_arrays(
            [pa.array(query_rows), pa.array(scores.reshape(-1)), hits["image_id"], hits["uri"]],
            schema=CANDIDATES,
        )


def build(descriptors: NDArray[np.float32], ids: pa.Table) -> Shard:
    """An exact shard over descriptors float32[N,m] and their `image_id` and `uri` columns."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(descriptors.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(descriptors, np.float32))
    return Shard(index, ids)


def load(uri: str, record: FileRecord) -> Shard:
    """Build the shard of one file of an embeddings data set."""
    table = datasets.read_file(uri, record, ["image_id", "uri", "descriptor"])
    return build(schemas.column_to_vectors(table["descriptor"]), table.select(["image_id", "uri"]))


def merge(partial: list[pa.Table], k: int) -> pa.Table:
    """The k best of several `CANDIDATES` tables over the same queries; order of the tables is irrelevant."""
    if not partial:
        return CANDIDATES.empty_table()
    ordered = pa.concat_tables(partial).sort_by(_ORDER)
    return ordered.filter(pa.array(ranks(ordered["query_row"].to_numpy()) < k))


def ranks(query_rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Position of each row within its query, from 0, in a table ordered by query."""
    positions = np.arange(len(query_rows))
    starts = np.flatnonzero(np.diff(query_rows, prepend=-1))
    counts = np.diff(np.append(starts, len(query_rows)))
    return np.asarray(positions - np.repeat(starts, counts))


def index_id(commit: Commit) -> str:
    """Names the index over a committed reference data set: its kind and the data set's digest."""
    return f"flat-{commit.digest}"
