"""What views of uploads cost: the search step, the looks at an upload, and the rows of a reference.

Run `python -m benchmarks.views [--references 50000] [--queries 1000] [--rounds 5]`; prints one line of JSON.

* The search step under all views ÷ the same step on whole uploads. It multiplies 3.83 × the numbers.
* Looks: what is made of the latent of an upload before it is searched ÷ the whole search step under views.
* Rows: crops and detail of a reference ÷ its descriptor, both made of its latent.

The pictures are random latents: what they score does not matter here.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.search import TOP_K, names
from id2core.search import chance, shards, viewed
from id2core.search.looks import Looks, Views
from id2core.search.shards import Shard
from id2core.search.viewed_rows import ViewedRows, row_bytes
from id2core.store import schemas
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

N, M = 4096, 480
# The search step under views may take this many times as long.
MOST = 4.0
ROWS_AT_ONCE = 4096


def latents(count: int, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((count, N), np.float32).astype(np.float16)


def shard_of(count: int, w: Transform, make: ReferenceRows) -> Shard:
    """Build a shard of random references, a few at a time: their latents would fill the memory."""
    parts = []
    for start in range(0, count, ROWS_AT_ONCE):
        held = latents(min(ROWS_AT_ONCE, count - start), start)
        parts.append((w.apply(held), *make(held)))
    descriptors, crops, detail = (np.concatenate(side) for side in zip(*parts, strict=True))
    return shards.build(descriptors, names(range(count), "r"), viewed=ViewedRows(crops, detail))


def looks_at(uploads: NDArray[np.float16], views: Views) -> Looks:
    columns = {
        "latent": schemas.vectors_to_array(uploads, N),
        "insets": pa.array([[]] * len(uploads), pa.list_(schemas.INSET)),
    }
    return chance.looks_of(views, pa.table(columns), views.transform.apply(uploads))


def measure(options: argparse.Namespace) -> None:
    weights = np.random.default_rng(0).standard_normal((N, M), np.float32)
    w = Transform(weights, {"method": "closed form"})
    make = ReferenceRows.of(w, N)
    assert make is not None
    views = Views.of(w, "bench")
    shard = shard_of(options.references, w, make)
    uploads = latents(options.queries, 1)
    asked = looks_at(uploads, views)
    viewed.search(shard, asked, TOP_K)  # the warm-up: it builds the indexes of rows
    steps = {
        "views": lambda: viewed.search(shard, asked, TOP_K),
        "whole": lambda: shard.search(asked.descriptors, TOP_K),
        "looks": lambda: looks_at(uploads, views),
        "descriptors": lambda: w.apply(uploads),
        "rows": lambda: make(uploads),
    }
    times = common.interleaved(steps, options.rounds)

    def row(what: str, step: str, other: str, bar: Bar | None = None) -> Row:
        ours, theirs = (f"{1000 * median(times[s]) / len(uploads):.3f} ms" for s in (step, other))
        return Row(what, ours, theirs, common.median_ratio(times[step], times[other]), bar)

    sizes = f"{len(uploads):,} uploads × {len(shard):,} references"
    common.report(
        "views",
        [
            row(f"search step under views ÷ of whole uploads, {sizes}", "views", "whole", Bar(0, MOST)),
            row("looks at an upload ÷ search step under views", "looks", "views"),
            row("rows of a reference ÷ its descriptor", "rows", "descriptors"),
        ],
        bytes_of_descriptor=4 * M,
        bytes_of_rows=make(uploads[:1])[0].nbytes + N // 8,
        bytes_in_a_shard=row_bytes(N),
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--references", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
