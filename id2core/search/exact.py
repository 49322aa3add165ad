"""Exact search among stored latents under any transforms: measure or calibrate a W without embedding again.

`matching` searches the descriptors of the data sets, spread over many machines. Here descriptors are made of
the latents beside them, in one process. Both order candidates alike. A data set without latents, such as a
background that ships with a W, is compared under its own transform only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import defaults
from id2core.errors import DatasetError
from id2core.runs.progress import OnStage, silent
from id2core.search import chance, looks, match_rows, shards, viewed, viewed_rows
from id2core.search.looks import WHOLE_ONLY, Looks, Views
from id2core.search.match_rows import MatchConstants
from id2core.search.shards import Shard
from id2core.search.topk import TopK, best_references
from id2core.search.viewed_rows import ViewedRows
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

# References of one shard: enough that merging costs little beside multiplying.
SHARD_ROWS = 8192
# Queries that `nearest` multiplies at once: with a shard, 32 MB of scores.
QUERY_ROWS = 1024
# Of the queries' descriptors under all transforms.
QUERY_BYTES = 1 << 29
_LATENT, _DESCRIPTOR = "latent", "descriptor"
_NAMES: Final = ["image_id", "uri"]


def search(
    references: Dataset,
    queries: Dataset,
    transforms: Sequence[Transform],
    k: int = defaults.TOP_K,
    *,
    with_views: bool = False,
    is_background: bool = False,
    query_bytes: int = QUERY_BYTES,
    progress: OnStage = silent,
) -> list[pa.Table]:
    """Find the k best references of every query under each transform, in one pass over the latents.

    Memory: the descriptors of queries, twice `query_bytes` at most (where they need more, the references
    are passed over again for each further part of the queries), the latents of `SHARD_ROWS` references
    and their descriptors (400 MB at n = 4,096), and k candidates per query and transform.

    Args:
        references, queries: embeddings data sets with latents of one encoder and one preprocessing. The
            transforms that they were made with do not matter, but for one that holds no latents.
        transforms: one or more, for latents of this encoder.
        k: references per query; all where there are fewer.
        with_views: whether queries are looked at under all views that the encoder and a transform allow.
        is_background: whether the references are a background, whose candidates are not scored again.
        query_bytes: of memory.
        progress: called with "lookup", and how many pairs of a query and a reference of how many were
            compared.

    Returns:
        One `schemas.MATCHES` table per transform, ordered by query_uri and rank. `index_id` names the
        references and the transform, `run_id` the queries and k besides; the columns of background and
        verdicts are null.

    Raises:
        DatasetError: a data set is incomplete or damaged, or the two do not compare.
        SearchError: FAISS is not installed.
        TransformError: a transform belongs to another encoder or takes latents of another size.
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; keep 1 reference per query or more")
    _check(references, queries, transforms)
    column = _column(references, transforms)
    total, compared = references.rows * queries.rows, 0
    encoder_id = references.ids["encoder_id"]
    views = [Views.of(w, encoder_id) if with_views else WHOLE_ONLY for w in transforms]
    views = [each.of_wholes for each in views] if is_background else views
    depth = max(k, looks.RESCORED) if with_views and not is_background else k
    parts: list[list[pa.Table]] = [[] for _ in transforms]
    for names, asked in _query_parts(queries, transforms, views, query_bytes):
        best = [shards.CANDIDATES.empty_table() for _ in transforms]
        for block in _blocks(references, _columns(column, views), SHARD_ROWS):
            for i, transform in enumerate(transforms):
                shard = _shard(block, transform, column, views[i], references.uri)
                found = viewed.search(shard, asked[i], depth)
                best[i] = shards.merge([best[i], found], depth)
            compared += block.num_rows * names.num_rows
            progress("lookup", compared, total)
        for i, candidates in enumerate(best):
            constants = _constants(references, queries, transforms[i], k)
            if with_views and not is_background:
                candidates = match_rows.rescored(candidates, k)
            parts[i].append(match_rows.to_matches(names, candidates, constants))
    return [
        pa.concat_tables([schemas.MATCHES.empty_table(), *tables]).sort_by(
            [("query_uri", "ascending"), ("rank", "ascending")]
        )
        for tables in parts
    ]


def nearest(
    queries: NDArray[np.float32], references: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k best references of each query, by the inner product of all with all.

    Memory: `QUERY_ROWS` × `SHARD_ROWS` scores, and k per query.

    Args:
        queries: float32[B,m], rows of length 1.
        references: float32[N,m], rows of length 1, in the order of their ids.
        k: references per query; all where there are fewer.

    Returns:
        Rows int64[B,k] and scores float32[B,k], best first; equal scores in the order of rows, also where
        only some of them fit into k.

    Raises:
        ValueError: k is below 1, or a score is not finite.
    """
    if k < 1:
        raise ValueError(f"k is {k}; keep 1 reference per query or more")
    kept = min(k, len(references)) if len(queries) else 0
    rows = np.empty((len(queries), kept), np.int64)
    scores = np.empty((len(queries), kept), np.float32)
    for start in range(0, len(rows) if kept else 0, QUERY_ROWS):
        block = slice(start, start + QUERY_ROWS)
        some = queries[block]
        search = functools.partial(_search_blocks, some, references)
        scores[block], rows[block] = best_references(search, some, references, lambda found: found, kept)
    return rows, scores


def _search_blocks(
    queries: NDArray[np.float32], references: NDArray[np.float32], depth: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows of the best references of each query, by float32 products of blocks."""
    best = TopK(len(queries), depth)
    for first in range(0, len(references), SHARD_ROWS):
        best.add(queries @ references[first : first + SHARD_ROWS].T)
    rows, scores = best.result()
    return scores, rows


def index_id(references: Dataset, transform: Transform) -> str:
    """Return the name of the exact index over a reference data set under a transform.

    Where the descriptors in the data set are of this transform, it is that of `shards.index_id`.
    """
    if references.ids["transform_id"] == transform.transform_id:
        return shards.index_id(references)
    return f"flat-{datasets.digest_of(references.digest, transform.transform_id)}"


def _check(references: Dataset, queries: Dataset, transforms: Sequence[Transform]) -> None:
    shards.require()
    queries.check_ids({name: references.ids[name] for name in schemas.LATENT_IDS})
    for transform in transforms:
        transform.check_encoder(references.ids["encoder_id"])


def _column(dataset: Dataset, transforms: Sequence[Transform]) -> str:
    """Return what a data set is compared by: its latents, or its descriptors where it has only these."""
    if dataset.has_values(_LATENT):
        return _LATENT
    made = dataset.ids["transform_id"]
    others = sorted({transform.transform_id for transform in transforms} - {made})
    if others:
        raise DatasetError(
            f"{dataset.uri} holds no latents, only descriptors of transform {made}: it cannot be compared "
            f"under {', '.join(others)}; give the W it was made with, or embed its images"
        )
    return _DESCRIPTOR


def _columns(column: str, views: Sequence[Views]) -> list[str]:
    """Return the columns of references that a search reads: rows for views are made of latents, if known."""
    has_rows = column == _DESCRIPTOR and any(each.has_rows for each in views)
    return [*_NAMES, column, *(viewed_rows.COLUMNS if has_rows else ())]


def _blocks(dataset: Dataset, columns: list[str], rows: int) -> Iterator[pa.Table]:
    """Yield whole row groups that together have `rows` rows or more."""
    waiting: list[pa.Table] = []
    for _, group in dataset.row_groups(columns):
        waiting.append(group)
        if sum(table.num_rows for table in waiting) >= rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _shard(block: pa.Table, transform: Transform, column: str, views: Views, uri: str) -> Shard:
    """Return the shard of some references under a transform."""
    vectors = schemas.column_to_vectors(block[column])
    rows = None
    if views.has_rows and column == _DESCRIPTOR:
        rows = viewed_rows.read([block], uri)
    elif views.has_rows and (make := ReferenceRows.of(transform, vectors.shape[1])):
        rows = ViewedRows(*make(vectors))
    return shards.build(_descriptors(transform, vectors, column), block.select(_NAMES), viewed=rows)


def _query_parts(
    dataset: Dataset, transforms: Sequence[Transform], views: Sequence[Views], most: int
) -> Iterator[tuple[pa.Table, list[Looks]]]:
    """`image_id` and `uri` of some queries, and the looks at them under each transform."""
    column = _column(dataset, transforms)
    columns = dict.fromkeys([*_NAMES, column, *(name for each in views for name in each.columns)])
    names: list[pa.Table] = []
    made: list[list[Looks]] = []
    size = 0
    for block in _blocks(dataset, list(columns), schemas.ROW_GROUP):
        vectors = schemas.column_to_vectors(block[column])
        names.append(block.select(_NAMES))
        made.append(
            [
                chance.looks_of(each, block, _descriptors(transform, vectors, column))
                for transform, each in zip(transforms, views, strict=True)
            ]
        )
        size += sum(asked.descriptors.nbytes for asked in made[-1])
        if size >= most:
            yield pa.concat_tables(names), [Looks.together(x) for x in zip(*made, strict=True)]
            names, made, size = [], [], 0
    if names:
        yield pa.concat_tables(names), [Looks.together(x) for x in zip(*made, strict=True)]


def _descriptors(transform: Transform, vectors: NDArray[Any], column: str) -> NDArray[np.float32]:
    if column == _DESCRIPTOR:
        return np.asarray(vectors, np.float32)
    transform.output_size(vectors.shape[1])
    return transform.apply(vectors)


def _constants(references: Dataset, queries: Dataset, transform: Transform, k: int) -> MatchConstants:
    """What is the same in all rows of a table of matches."""
    name = index_id(references, transform)
    return MatchConstants(
        encoder_id=references.ids["encoder_id"],
        transform_id=transform.transform_id,
        index_id=name,
        run_id=datasets.digest_of(name, queries.digest, k),
        scanned_at=datetime.now(UTC).replace(microsecond=0),
    )
