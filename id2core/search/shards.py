"""One shard of the references: build, search, and merge what many shards found."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.runs.histories import Classes
from id2core.search import indexes, scoring
from id2core.search.flat import load_faiss
from id2core.search.indexes import FLAT, Index
from id2core.search.topk import best_references
from id2core.store import schemas
from id2core.store.datasets import Dataset, FileRecord

CANDIDATES = schemas.table_schema(
    "candidates",
    1,
    [
        ("query_row", pa.int32()),
        ("score", pa.float32()),
        ("reference_id", pa.string()),
        ("reference_uri", pa.string()),
        ("reference_information", pa.float32()),
    ],
)
# Columns of a reference that a candidate carries.
COLUMNS = ("image_id", "uri", "information")
# Equal scores are ordered by id, then URI, so that a merge does not depend on which shard came first.
_ORDER = [
    ("query_row", "ascending"),
    ("score", "descending"),
    ("reference_id", "ascending"),
    ("reference_uri", "ascending"),
]
# Squared length of a descriptor, with room for one that was stored in float16.
_LONGEST = 1.01


def require() -> None:
    """Raise SearchError when FAISS is not installed."""
    load_faiss()


@dataclass(frozen=True)
class Shard:
    """References that are searched at once, and the index over their descriptors.

    Attributes:
        descriptors: float32[N,m], on the grid of `scoring`.
        index: over the descriptors.
        ids: image_id and uri of each row, as Arrow columns, and its information where that is known.
        kind: of the index.
        classes: int64[N], of each row, see `runs.histories`; None where all are alike.
    """

    descriptors: NDArray[np.float32]
    index: Index
    ids: pa.Table
    kind: str = FLAT
    classes: NDArray[np.int64] | None = None

    def among(self, rows: NDArray[np.int64]) -> Shard:
        """Return the shard of some rows, int64[n]."""
        if len(rows) == self.ids.num_rows:
            return self
        key = rows.tobytes()
        if self._smaller.get("key") != key:
            self._smaller["key"] = key
            self._smaller["shard"] = build(self.descriptors[rows], self.ids.take(pa.array(rows)), self.kind)
        smaller: Shard = self._smaller["shard"]
        return smaller

    @functools.cached_property
    def _smaller(self) -> dict[str, Any]:
        """The shard of the rows that were asked for last: most blocks ask for the same."""
        return {}

    @functools.cached_property
    def _places(self) -> NDArray[np.int64]:
        """int64[N]: the place of each row in the order of image_id and uri, which decides ties."""
        order = pc.sort_indices(self.ids, [("image_id", "ascending"), ("uri", "ascending")]).to_numpy()
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return places

    def search(self, queries: NDArray[np.float32], k: int) -> pa.Table:
        """Return the k best references of each query in this shard (fewer where the shard is smaller).

        Args:
            queries: float32[Q,m], rows of length 1.
            k: how many.

        Returns:
            A `CANDIDATES` table, ordered by query_row and falling score, equal scores by id and URI.
        """
        k = min(k, self.ids.num_rows)
        if not k or not len(queries):
            return CANDIDATES.empty_table()
        queries = scoring.on_grid(queries)
        scores, rows = best_references(
            lambda depth: self.index.search(queries, depth), queries, self.descriptors, self._places, k
        )
        known = rows.reshape(-1) >= 0  # an approximate index may find fewer than k
        hits = self.ids.take(pa.array(rows.reshape(-1)[known]))
        query_rows = np.repeat(np.arange(len(queries), dtype=np.int32), k)
        return pa.Table.from_arrays(
            [
                pa.array(query_rows[known]),
                pa.array(scores.reshape(-1)[known]),
                hits["image_id"],
                hits["uri"],
                hits["information"]
                if "information" in hits.column_names
                else pa.nulls(hits.num_rows, pa.float32()),
            ],
            schema=CANDIDATES,
        )


def build(descriptors: NDArray[np.float32], ids: pa.Table, index: str = FLAT) -> Shard:
    """Build a shard.

    Args:
        descriptors: float32[N,m], rows of length 1.
        ids: their `image_id` and `uri` columns, and `information` where it is known.
        index: a name of `indexes.INDEXES`.

    Raises:
        SearchError: there is no such index, or FAISS is not installed.
    """
    on_grid = scoring.on_grid(descriptors)
    return Shard(on_grid, indexes.build(index, on_grid), ids, index)


def load(
    references: Dataset, records: Sequence[FileRecord], index: str = FLAT, classes: Classes | None = None
) -> Shard:
    """Build the shard of some files of an embeddings data set, at least one; see `build`.

    Args:
        references: the data set.
        records: the files.
        index: a name of `indexes.INDEXES`.
        classes: of the rows; None where they do not matter.

    Raises:
        DatasetError: a descriptor is not finite, or longer than 1.
    """
    ids, vectors, labels = [], [], []
    for record in records:
        table = references.read_file(record, [*COLUMNS, "run_id", "descriptor"])
        ids.append(table.select(list(COLUMNS)))
        vectors.append(checked(schemas.column_to_vectors(table["descriptor"]), record.name, references))
        if classes:
            labels.append(classes.labels(record.name, table["run_id"]))
    descriptors = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    shard = build(descriptors, pa.concat_tables(ids).combine_chunks(), index)
    return replace(shard, classes=np.concatenate(labels) if classes else None)


def checked(descriptors: NDArray[Any], name: str, dataset: Dataset) -> NDArray[np.float32]:
    """Return the descriptors of a data set's file as float32.

    Raises:
        DatasetError: one is not finite, or longer than 1: it would outweigh every other score.
    """
    vectors = np.asarray(descriptors, np.float32)
    if len(vectors) and not np.einsum("ij,ij->i", vectors, vectors).max() <= _LONGEST:  # NaN fails, too
        raise DatasetError(
            f"{dataset.uri}/{name} holds descriptors that are not finite, or longer than 1: embed it again"
        )
    return vectors


def merge(partial: list[pa.Table], k: int) -> pa.Table:
    """Merge `CANDIDATES` tables of the same queries to the k best; the tables may be in any order."""
    if not partial:
        return CANDIDATES.empty_table()
    ordered = pa.concat_tables(partial).sort_by(_ORDER)
    return ordered.filter(pa.array(ranks(ordered["query_row"].to_numpy()) < k))


def ranks(query_rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the position of each row within its query, from 0, in a table ordered by query."""
    positions = np.arange(len(query_rows))
    starts = np.flatnonzero(np.diff(query_rows, prepend=-1))
    counts = np.diff(np.append(starts, len(query_rows)))
    return np.asarray(positions - np.repeat(starts, counts))


def index_id(references: Dataset, index: str = FLAT) -> str:
    """Return the name of the index over a reference data set: its kind and the data set's digest."""
    return f"{index}-{references.digest}"
