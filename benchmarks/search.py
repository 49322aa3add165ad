"""Our search step and our search job against FAISS's own call on the same vectors.

Run `python -m benchmarks.search [--references 100000] [--queries 1000] [--size 512] [--rounds 7]`;
prints one line of JSON.

* The step: `Shard.search` on one shard (scores, ids and URIs as an Arrow table) ÷
  `faiss.IndexFlatIP.search` (scores and row numbers), and ÷ the matrix product alone, by NumPy's BLAS in
  blocks. The ratio is in queries/s.
* The job: `beam_jobs.search.run` from two committed data sets to `matches/`, the references in files of
  4,096 rows, as the embed job leaves them. Compared with the same bare FAISS call, which reads nothing. Its
  bar is 0.6, and 0.85 from a million references on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_jobs import search
from benchmarks import common
from benchmarks.common import Bar, Row
from id2core import defaults
from id2core.runs.execution import Execution
from id2core.search import scope, shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, Segment

BAR = Bar(0.9)
LARGE, JOB_BAR, LARGE_JOB_BAR = 1_000_000, Bar(0.6), Bar(0.85)
TOP_K = 10
# References whose scores the bare product holds at once, with 1,024 queries.
PRODUCT_ROWS, PRODUCT_QUERIES = 16_384, 1024
FAISS_PRODUCT_FROM = faiss.cvar.distance_compute_blas_threshold
IDS = {"encoder_id": "bench", "transform_id": "bench", "preprocess_id": "bench"}
Vectors = NDArray[np.float32]


def unit(rows: int, size: int, seed: int) -> Vectors:
    x = np.random.default_rng(seed).standard_normal((rows, size), np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def names(rows: range, prefix: str) -> pa.Table:
    """Ids like real ones, and URIs as long as real ones."""
    return pa.table(
        {
            "image_id": [hashlib.sha256(f"{prefix}{row}".encode()).hexdigest() for row in rows],
            "uri": [f"gs://bucket/{prefix}/{row:012d}.jpg" for row in rows],
        }
    )


def write_embeddings(
    uri: Path, vectors: Vectors, prefix: str, named: Callable[[range, str], pa.Table] = names
) -> None:
    """A committed data set of one segment with these descriptors; a search reads no other wide column."""
    schema = schemas.embeddings_schema(1, vectors.shape[1])
    records = []
    for start in range(0, len(vectors), defaults.PART_SIZE):
        part = vectors[start : start + defaults.PART_SIZE]
        held = named(range(start, start + len(part)), prefix)
        columns: dict[str, Any] = {
            name: pa.nulls(len(part), schema.field(name).type) for name in schema.names
        }
        columns |= {name: held[name] for name in held.column_names}
        columns |= {"generation": ["1"] * len(part), "run_id": [prefix] * len(part)}
        columns["latent"] = schemas.vectors_to_array(np.zeros((len(part), 1), np.float16), 1)
        columns["descriptor"] = schemas.vectors_to_array(part, part.shape[1])
        table = pa.Table.from_pydict(columns, schema)
        record = datasets.write_file(str(uri), f"part-{start:09d}", [table], schema)
        records.append(record.of_segments({prefix: len(part)}))
    segments = {prefix: Segment(1, "2026-01-01T00:00:00+00:00")}
    datasets.write_commit(str(uri), Commit("embeddings", prefix, IDS, tuple(records), segments=segments))


def job(folder: Path) -> Callable[[], None]:
    """Every call searches anew: a run that is done does nothing, so each has its own place to write to."""
    outs = count()

    def work() -> None:
        scope._LAST.clear()  # what an earlier search of this process knows of the references
        references, queries = (Dataset.open(str(folder / name)) for name in ("references", "queries"))
        search.run(references, queries, str(folder / f"matches-{next(outs)}"), Execution.begin(), TOP_K)

    return work


def by_faiss(flat: Any, queries: Vectors) -> Vectors:
    """Search FAISS's flat index with FAISS's own settings, which this project changes; return the scores."""
    ours = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = FAISS_PRODUCT_FROM
    try:
        scores: Vectors = flat.search(queries, TOP_K)[0]
    finally:
        faiss.cvar.distance_compute_blas_threshold = ours
    return scores


def product(references: Vectors, queries: Vectors) -> None:
    """Multiply all with all, and keep nothing."""
    held = np.empty((min(PRODUCT_QUERIES, len(queries)), min(PRODUCT_ROWS, len(references))), np.float32)
    for start in range(0, len(queries), PRODUCT_QUERIES):
        some = queries[start : start + PRODUCT_QUERIES]
        for first in range(0, len(references), PRODUCT_ROWS):
            block = references[first : first + PRODUCT_ROWS]
            np.matmul(some, block.T, out=held[: len(some), : len(block)])


def check(shard: shards.Shard, flat: Any, queries: Vectors) -> None:
    """Both sides must find the same scores, or their times mean nothing."""
    scores = shard.search(queries, TOP_K)["score"].to_numpy().reshape(len(queries), -1)
    np.testing.assert_allclose(scores, by_faiss(flat, queries), atol=1e-5)


def measure(folder: Path, options: argparse.Namespace) -> None:
    references = unit(options.references, options.size, 0)
    queries = unit(options.queries, options.size, 1)
    shard = shards.build(references, names(range(len(references)), "r"))
    flat = faiss.IndexFlatIP(options.size)
    flat.add(references)
    check(shard, flat, queries)  # the warm-up, too
    steps = {
        "ours": lambda: shard.search(queries, TOP_K),
        "faiss": lambda: by_faiss(flat, queries),
        "product": lambda: product(references, queries),
    }
    times = common.interleaved(steps, options.rounds)

    write_embeddings(folder / "references", references, "r")
    write_embeddings(folder / "queries", queries, "q")
    run = job(folder)
    run()
    whole = common.interleaved({"job": run, "faiss": steps["faiss"]}, options.job_rounds)

    def row(what: str, ours: list[float], other: list[float], bar: Bar | None) -> Row:
        ours_rate, other_rate = (len(queries) / median(seconds) for seconds in (ours, other))
        ratio = common.median_ratio(other, ours)
        return Row(what, f"{ours_rate:,.0f} queries/s", f"{other_rate:,.0f} queries/s", ratio, bar)

    sizes = f"{len(queries):,} queries × {len(references):,} references"
    common.report(
        "search",
        [
            row(f"search step, {sizes} ÷ FAISS's flat index", times["ours"], times["faiss"], BAR),
            row(f"search step, {sizes} ÷ its matrix product", times["ours"], times["product"], BAR),
            row(
                f"search job, {sizes}, Parquet to Parquet ÷ FAISS in memory",
                whole["job"],
                whole["faiss"],
                LARGE_JOB_BAR if len(references) >= LARGE else JOB_BAR,
            ),
        ],
        dimensions=options.size,
        top_k=TOP_K,
        reference_files=-(-len(references) // defaults.PART_SIZE),
        step_seconds=round(median(times["ours"]), 4),
        faiss_seconds=round(median(times["faiss"]), 4),
        job_seconds=round(median(whole["job"]), 3),
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512, help="numbers in a descriptor")
    parser.add_argument("--rounds", type=int, default=7, help="of the step")
    parser.add_argument("--job-rounds", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="id2-bench-") as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()
