"""Exact search among stored latents under any transforms: measure or calibrate a W without embedding again.

`matching` searches the descriptors that stand in the data sets, spread over many machines; here descriptors
are made of the latents beside them, in one process. Both order candidates alike. A data set that holds no
latents, as a background that ships with a W, is compared under its own transform only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.runs.progress import Progress, silent
from id2core.search import matching, shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, FileRecord
from id2core.transforms.linear import Transform

# Latents compare only where these agree; which W the descriptors beside them are of is no matter.
IDS = ("encoder_id", "preprocess_id")
# References of one shard: enough that merging costs little beside multiplying.
SHARD_ROWS = 8192
# Of the queries' descriptors under all transforms.
QUERY_BYTES = 1 << 29
_LATENT, _DESCRIPTOR = "latent", "descriptor"
_READ_AHEAD = 4  # row groups; 8 MB each where a latent has 4,096 numbers


def search(
    references: str,
    queries: str,
    transforms: Sequence[Transform],
    k: int = 10,
    *,
    query_bytes: int = QUERY_BYTES,
    progress: Progress = silent,
) -> list[pa.Table]:
    """The k best references of every query under each of some transforms, in one pass over the latents.

    Memory: the descriptors of queries, twice `query_bytes` at most (where they need more, the references
    are passed over again for each further part of the queries), the latents of `SHARD_ROWS` references
    and their descriptors (400 MB at n = 4,096), and k candidates per query and transform.

    Args:
        references, queries: embeddings data sets with latents of one encoder and one preprocessing. The
            transforms that they were made with do not matter, but for one that holds no latents.
        transforms: one or more, for latents of this encoder.
        k: references per query; all where there are fewer.
        query_bytes: of memory.
        progress: called with "lookup", and how many pairs of a query and a reference of how many were
            compared.

    Returns:
        One `tables.MATCHES` table per transform, ordered by query_uri and rank. `index_id` names the
        references and the transform, `run_id` the queries and k besides; the columns of background and
        verdicts are null.

    Raises:
        DatasetError: a data set is incomplete or damaged, or the two do not compare.
        SearchError: FAISS is not installed.
        TransformError: a transform belongs to another encoder or takes latents of another size.
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; look up 1 reference per query or more")
    left, right = _checked(references, queries, transforms)
    column = _column(references, left, transforms)
    total, compared = left.rows * right.rows, 0
    parts: list[list[pa.Table]] = [[] for _ in transforms]
    for names, descriptors in _query_parts(queries, right, transforms, query_bytes):
        best = [shards.CANDIDATES.empty_table() for _ in transforms]
        for ids, vectors in _blocks(references, left, column, SHARD_ROWS):
            for i, transform in enumerate(transforms):
                shard = shards.build(_descriptors(transform, vectors, column), ids)
                best[i] = shards.merge([best[i], shard.search(descriptors[i], k)], k)
            compared += len(vectors) * names.num_rows
            progress("lookup", compared, total)
        for i, candidates in enumerate(best):
            parts[i].append(matching.to_matches(names, candidates, _constants(left, right, transforms[i], k)))
    return [
        pa.concat_tables([schemas.MATCHES.empty_table(), *found]).sort_by(
            [("query_uri", "ascending"), ("rank", "ascending")]
        )
        for found in parts
    ]


def index_id(commit: Commit, transform: Transform) -> str:
    """Names the exact index over a committed reference data set under a transform.

    Where the descriptors in the data set are of this transform, it is that of `index.index_id`.
    """
    if commit.ids["transform_id"] == transform.transform_id:
        return shards.index_id(commit)
    return f"flat-{datasets.digest_of(commit.digest, transform.transform_id)}"


def _checked(references: str, queries: str, transforms: Sequence[Transform]) -> tuple[Commit, Commit]:
    shards.require()
    left, right = datasets.require_commit(references), datasets.require_commit(queries)
    datasets.check_ids(right, {name: left.ids[name] for name in IDS}, queries)
    for transform in transforms:
        transform.check_encoder(left.ids["encoder_id"])
    return left, right


def _column(uri: str, commit: Commit, transforms: Sequence[Transform]) -> str:
    """What a data set is read by: its latents, or its descriptors where it has only these."""
    first = next((record for record in commit.files if record.rows), None)
    if first is None or datasets.holds(uri, first, _LATENT):
        return _LATENT
    made = commit.ids["transform_id"]
    others = sorted({transform.transform_id for transform in transforms} - {made})
    if others:
        raise DatasetError(
            f"{uri} holds no latents, only descriptors of transform {made}: it cannot be compared under "
            f"{', '.join(others)}; give the W it was made with, or embed its images"
        )
    return _DESCRIPTOR


def _row_groups(uri: str, commit: Commit, column: str) -> Iterator[pa.Table]:
    """`image_id`, `uri` and a column of vectors, row group by row group in order; read ahead by threads."""
    tasks = [(record, group) for record in commit.files for group in range(record.row_groups)]

    def read(task: tuple[FileRecord, int]) -> pa.Table:
        record, group = task
        return datasets.read_file(uri, record, ["image_id", "uri", column], group)

    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        for start in range(0, len(tasks), _READ_AHEAD):
            yield from pool.map(read, tasks[start : start + _READ_AHEAD])


def _blocks(uri: str, commit: Commit, column: str, rows: int) -> Iterator[tuple[pa.Table, NDArray[Any]]]:
    """`image_id` and `uri`, and vectors, of whole row groups that together have `rows` rows or more."""
    waiting: list[pa.Table] = []
    for group in _row_groups(uri, commit, column):
        waiting.append(group)
        if sum(table.num_rows for table in waiting) >= rows:
            yield _block(waiting)
            waiting = []
    if waiting:
        yield _block(waiting)


def _block(groups: list[pa.Table]) -> tuple[pa.Table, NDArray[Any]]:
    whole = pa.concat_tables(groups)
    return whole.select(["image_id", "uri"]), schemas.column_to_vectors(whole.column(2))


def _query_parts(
    uri: str, commit: Commit, transforms: Sequence[Transform], most: int
) -> Iterator[tuple[pa.Table, list[NDArray[np.float32]]]]:
    """`image_id` and `uri` of some queries, and their descriptors under each transform."""
    column = _column(uri, commit, transforms)
    names: list[pa.Table] = []
    made: list[list[NDArray[np.float32]]] = []
    size = 0
    for ids, vectors in _blocks(uri, commit, column, schemas.ROW_GROUP):
        names.append(ids)
        made.append([_descriptors(transform, vectors, column) for transform in transforms])
        size += sum(descriptors.nbytes for descriptors in made[-1])
        if size >= most:
            yield pa.concat_tables(names), [np.concatenate(x) for x in zip(*made, strict=True)]
            names, made, size = [], [], 0
    if names:
        yield pa.concat_tables(names), [np.concatenate(x) for x in zip(*made, strict=True)]


def _descriptors(transform: Transform, vectors: NDArray[Any], column: str) -> NDArray[np.float32]:
    if column == _DESCRIPTOR:
        return np.asarray(vectors, np.float32)
    transform.output_size(vectors.shape[1])
    return transform.apply(vectors)


def _constants(left: Commit, right: Commit, transform: Transform, k: int) -> dict[str, Any]:
    """What is the same in all rows of a table of matches."""
    name = index_id(left, transform)
    return {
        "encoder_id": left.ids["encoder_id"],
        "transform_id": transform.transform_id,
        "index_id": name,
        "run_id": datasets.digest_of(name, right.digest, k),
        "scanned_at": datetime.now(UTC).replace(microsecond=0),
    }
