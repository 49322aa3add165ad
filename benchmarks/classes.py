"""Planning a search: seconds and memory of the classes of a reference corpus.

Run `python -m benchmarks.classes [--sizes 1000000 5000000]`; prints one line of JSON.

The corpus is drawn: a segment for each 100,000 rows, and one picture in a hundred at two places. Every size
is a process of its own, which reports the growth of its resident memory and its seconds of the processors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.dashboard import hex_ids
from benchmarks.memory import peak_mebibytes
from id2core.runs import histories
from id2core.store import datasets
from id2core.store.datasets import Commit, Dataset, Segment

FILE_ROWS, SEGMENT_ROWS = 10_000, 100_000
SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "generation", "run_id")])


def draw(uri: str, rows: int) -> None:
    """Write a corpus."""
    files, segments = [], {}
    for start in range(0, rows, FILE_ROWS):
        run_id = f"20260101T{start // SEGMENT_ROWS:06d}-3f9a1c"
        ids = hex_ids(FILE_ROWS, np.random.default_rng(start))
        ids = pa.concat_arrays([ids[:-100], ids[:100]])
        uris = [f"gs://protected/originals/{start + i:012d}.jpg" for i in range(FILE_ROWS)]
        columns = [ids, pa.array(uris), pa.repeat("1", FILE_ROWS), pa.repeat(run_id, FILE_ROWS)]
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        file = datasets.write_file(uri, f"part-{start:016x}", [table], SCHEMA)
        files.append(replace(file, segments=(run_id,), bounds=(uris[0], uris[-1])))
        segments[run_id] = Segment(1 + start // SEGMENT_ROWS, "2026-01-01T00:00:00+00:00")
    datasets.write_commit(uri, Commit("embeddings", "r", {}, tuple(files), segments=segments))


def child(uri: str) -> None:
    """Find the classes; print seconds and the growth of memory."""
    dataset = Dataset.open(uri)
    dataset.read_file(dataset.files[0], ["image_id"])
    before = peak_mebibytes()
    seconds = common.processor_seconds(lambda: histories.of_pictures(dataset))
    print(json.dumps({"seconds": seconds, "mebibytes": peak_mebibytes() - before}))


def measure(rows: int) -> dict[str, float]:
    """Draw a corpus of some rows, and find its classes in a fresh process."""
    with TemporaryDirectory(prefix="id2-bench-") as name:
        uri = f"{name}/embeddings"
        draw(uri, rows)
        command = [sys.executable, "-m", "benchmarks.classes", "--child", uri]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures


def main() -> None:
    """Measure and report."""
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--child", metavar="DIR", help="find the classes of DIR in this process")
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    figures = {size: measure(size) for size in given.sizes}
    small, large = min(given.sizes), max(given.sizes)
    each = {size: 1e6 * one["seconds"] / size for size, one in figures.items()}
    rows = [
        Row(
            f"planning a search, seconds a reference at {large:,} and at {small:,}",
            *(f"{each[size]:.1f} µs" for size in (large, small)),
            round(each[large] / each[small], 2),
            Bar(0, 1.2),
        ),
        Row(
            f"planning a search, growth of memory at {large:,} and at {small:,} references",
            *(f"{figures[size]['mebibytes']:.0f} MiB" for size in (large, small)),
            round(figures[large]["mebibytes"] / figures[small]["mebibytes"], 2),
            None,
        ),
    ]
    common.report("classes", rows, figures=figures)


if __name__ == "__main__":
    main()
