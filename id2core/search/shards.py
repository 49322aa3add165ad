"""One shard of the references: build, search, and merge what many shards found."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.runs.histories import Classes
from id2core.search import indexes, scoring, viewed_rows
from id2core.search.flat import load_faiss
from id2core.search.indexes import FLAT, Index
from id2core.search.viewed_rows import RowIndex, ViewedRows
from id2core.store import moves, parquet, schemas
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord
from id2core.transforms.reference_rows import MOVED_COLUMNS

CANDIDATES = schemas.table_schema(
    "candidates",
    1,
    [
        ("query_row", pa.int32()),
        ("score", pa.float32()),
        ("reference_id", pa.string()),
        ("reference_uri", pa.string()),
        ("reference_information", pa.float32()),
        ("view", pa.string()),
        ("detail", pa.float32()),
    ],
)
# Columns of a reference that a candidate carries.
COLUMNS = ("image_id", "uri", "information")
# The same in a shard. A column of a large shard has more text than 32-bit offsets reach.
_IDS = pa.schema([("image_id", pa.large_string()), ("uri", pa.large_string()), ("information", pa.float32())])
_SEGMENT = "run_id"
# Files of references that are read at once.
READERS = 3
# Equal scores are ordered by id, then URI, so that nothing depends on which row or shard came first.
_ID_ORDER = [("image_id", "ascending"), ("uri", "ascending")]
_TIE_ORDER = [("tie", "ascending"), ("reference_id", "ascending"), ("reference_uri", "ascending")]
# Descriptors that are checked at once: they stay in the cache.
_ROWS_AT_ONCE = 512


def require() -> None:
    """Raise SearchError when FAISS is not installed."""
    load_faiss()


@dataclass(frozen=True)
class Shard:
    """References that are searched at once, and the index over their descriptors.

    Attributes:
        descriptors: float32[N,m].
        index: over the descriptors.
        ids: image_id and uri of each row, as Arrow columns, and its information where that is known.
        kind: of the index.
        classes: int64[N], of each row, see `runs.histories`; None where all are alike.
        viewed: what looks at uploads meet beside descriptors; None where they meet nothing else.
    """

    descriptors: NDArray[np.float32]
    index: Index
    ids: pa.Table
    kind: str = FLAT
    classes: NDArray[np.int64] | None = None
    viewed: ViewedRows | None = None

    def __len__(self) -> int:
        return len(self.descriptors)

    def among(self, rows: NDArray[np.int64]) -> Shard:
        """Return the shard of some rows, int64[n]."""
        if len(rows) == self.ids.num_rows:
            return self
        key = rows.tobytes()
        if self._smaller.get("key") != key:
            self._smaller["key"] = key
            viewed = self.viewed and self.viewed.among(rows)
            ids = self.ids.take(pa.array(rows))
            self._smaller["shard"] = build(self.descriptors[rows], ids, self.kind, viewed)
        smaller: Shard = self._smaller["shard"]
        return smaller

    @functools.cached_property
    def _smaller(self) -> dict[str, Any]:
        """The shard of the rows that were asked for last: most blocks ask for the same."""
        return {}

    @functools.cached_property
    def heads(self) -> RowIndex:
        """The first columns of the descriptors, which mirrored and turned looks meet."""
        return RowIndex.of(self.descriptors[:, :MOVED_COLUMNS])

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of some rows in the order of image_id and uri, which decides ties."""
        chosen, inverse = np.unique(rows, return_inverse=True)
        order = pc.sort_indices(self.ids.take(pa.array(chosen)), _ID_ORDER).to_numpy()
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return places[inverse].reshape(rows.shape)

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
        scores, rows = indexes.best(self.index, queries, self.descriptors, self.places, k)
        known = rows.reshape(-1) >= 0  # an approximate index may find fewer than k
        query_rows = np.repeat(np.arange(len(queries), dtype=np.int32), k)
        return self.candidates(query_rows[known], scores.reshape(-1)[known], rows.reshape(-1)[known])

    def candidates(
        self,
        query_rows: NDArray[np.int32],
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        view: pa.Array | None = None,
        detail: NDArray[np.float32] | None = None,
    ) -> pa.Table:
        """Return a `CANDIDATES` table of pairs.

        Args:
            query_rows, scores, rows: [P], with rows of this shard.
            view, detail: of P pairs; None where uploads have no views.
        """
        hits = self.ids.take(pa.array(rows)).combine_chunks()
        count = len(rows)
        information = (
            hits["information"] if "information" in hits.column_names else pa.nulls(count, pa.float32())
        )
        texts = (hits[name].cast(pa.string()) for name in ("image_id", "uri"))
        seen = pa.nulls(count, pa.string()) if view is None else view
        agrees = pa.nulls(count, pa.float32()) if detail is None else pa.array(detail)
        columns = [pa.array(query_rows), pa.array(scores), *texts, information, seen, agrees]
        return pa.Table.from_arrays(columns, schema=CANDIDATES)


def build(
    descriptors: NDArray[np.float32], ids: pa.Table, index: str = FLAT, viewed: ViewedRows | None = None
) -> Shard:
    """Build a shard.

    Args:
        descriptors: float32[N,m], rows of length 1.
        ids: their `image_id` and `uri` columns, and `information` where it is known.
        index: a name of `indexes.INDEXES`.
        viewed: what looks at uploads meet beside descriptors.

    Raises:
        SearchError: there is no such index, or FAISS is not installed.
    """
    held = np.asarray(descriptors, np.float32)
    return Shard(held, indexes.build(index, held), ids, index, viewed=viewed)


def load(
    references: Dataset,
    records: Sequence[FileRecord],
    index: str = FLAT,
    classes: Classes | None = None,
    *,
    with_rows: bool = False,
) -> Shard:
    """Build the shard of some files of an embeddings data set, at least one; see `build`.

    Memory: the descriptors once, their ids, and a few files that are read ahead.

    Args:
        references: the data set.
        records: the files.
        index: a name of `indexes.INDEXES`.
        classes: of the rows; None where they do not matter.
        with_rows: whether to read what looks at uploads meet beside descriptors.

    Raises:
        DatasetError: a descriptor is not finite, or longer than 1, or rows for views are missing.
    """
    size = descriptor_size(references)
    starts = np.cumsum([0, *(record.rows for record in records)])
    descriptors = np.empty((starts[-1], size), np.float32)
    places = [descriptors[start:end] for start, end in pairwise(starts)]
    columns = [*COLUMNS, *viewed_rows.COLUMNS] if with_rows else list(COLUMNS)
    read = partial(_read, references, columns=columns, has_classes=classes is not None)
    tables = list(in_order(zip(records, places, strict=True), lambda item: read(*item), READERS))
    if any(table.num_rows < len(place) for table, place in zip(tables, places, strict=True)):
        held = [place[: table.num_rows] for table, place in zip(tables, places, strict=True)]
        descriptors = np.concatenate(held)
    ids = pa.concat_tables([table.select(_IDS.names).cast(_IDS) for table in tables]).combine_chunks()
    viewed = viewed_rows.read(tables, references.uri) if with_rows else None
    shard = build(descriptors, ids, index, viewed)
    if classes is None:
        return shard
    named = zip(records, tables, strict=True)
    labels = [classes.labels(record.name, _segments(record, table)) for record, table in named]
    return replace(shard, classes=np.concatenate(labels))


def _segments(record: FileRecord, table: pa.Table) -> pa.ChunkedArray:
    """Return the run_id of each row of a file; it is not read where all rows have one."""
    if _SEGMENT in table.column_names:
        return table[_SEGMENT]
    return pa.chunked_array([pa.repeat(record.segments[0], table.num_rows)])


def descriptor_size(references: Dataset) -> int:
    """Return m, how many numbers a descriptor of a data set with rows has."""
    schema = parquet.schema_of(moves.folders(references.uri), references.files[0])
    return int(schema.field("descriptor").type.list_size)


def _read(
    references: Dataset,
    record: FileRecord,
    out: NDArray[np.float32],
    columns: list[str],
    has_classes: bool = False,
) -> pa.Table:
    """Read descriptors of a file into the first rows of `out`; return some columns of these rows.

    If the rows have classes, `run_id` of those of several segments, too.
    """
    columns = [*columns, _SEGMENT] if has_classes and len(record.segments) != 1 else columns
    if references.holds_all_of(record):
        table = references.read_vectors(record, "descriptor", out, columns)
    else:
        table = references.read_file(record, [*columns, "descriptor"])
        out = out[: table.num_rows]
        out[:] = schemas.column_to_vectors(table["descriptor"])
    for start in range(0, len(out), _ROWS_AT_ONCE):
        rows = out[start : start + _ROWS_AT_ONCE]
        checked(rows, record.name, references)
    return table.select(columns)


def checked(descriptors: NDArray[Any], name: str, dataset: Dataset) -> NDArray[np.float32]:
    """Return the descriptors of a data set's file as float32.

    Raises:
        DatasetError: one is not finite, or longer than 1: it would outweigh every other score.
    """
    vectors = np.asarray(descriptors, np.float32)
    if len(vectors) and not np.vecdot(vectors, vectors).max() <= scoring.LONGEST:  # NaN fails, too
        raise DatasetError(
            f"{dataset.uri}/{name} holds descriptors that are not finite, or longer than 1: embed it again"
        )
    return vectors


def merge(partial: list[pa.Table], k: int) -> pa.Table:
    """Merge `CANDIDATES` tables of the same queries to the k best; the tables may be in any order."""
    if not partial:
        return CANDIDATES.empty_table()
    every = pa.concat_tables(partial).combine_chunks()
    query_rows, scores = every["query_row"].to_numpy(), every["score"].to_numpy()
    order = np.lexsort((-scores, query_rows))
    order = _ties_in_order(every, order, query_rows[order], scores[order])
    return every.take(pa.array(order[ranks(query_rows[order]) < k]))


def _ties_in_order(
    candidates: pa.Table,
    order: NDArray[np.int64],
    query_rows: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Put candidates that tie in the order of ids. Strings are compared only there.

    Args:
        candidates: a `CANDIDATES` table.
        order: int64[N], its rows by query and falling score.
        query_rows, scores: [N], in that order.
    """
    is_tie = (query_rows[1:] == query_rows[:-1]) & (scores[1:] == scores[:-1])
    tied = np.append(is_tie, False) | np.append(False, is_tie)
    if not tied.any():
        return order
    ties = np.append(0, np.cumsum(~is_tie))[tied]
    texts = candidates.select(["reference_id", "reference_uri"]).take(pa.array(order[tied]))
    sorted_ties = pc.sort_indices(texts.append_column("tie", pa.array(ties)), _TIE_ORDER).to_numpy()
    order[tied] = order[tied][sorted_ties]
    return order


def ranks(query_rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the position of each row within its query, from 0, in a table ordered by query."""
    positions = np.arange(len(query_rows))
    starts = np.flatnonzero(np.diff(query_rows, prepend=-1))
    counts = np.diff(np.append(starts, len(query_rows)))
    return np.asarray(positions - np.repeat(starts, counts))


def index_id(references: Dataset, index: str = FLAT) -> str:
    """Return the name of the index over a reference data set: its kind and the data set's digest."""
    return f"{index}-{references.digest}"
