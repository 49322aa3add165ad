"""Time `id2 reproject`: descriptors of another W from stored latents, beside reading and multiplying alone.

Run `python -m benchmarks.reprojection [--latents N] [--rounds R]`. It draws N latents of 4,096 numbers in
files of 4,096 rows, as embed writes them. The job reads them, multiplies by a W of 512 columns, and writes
latents and descriptors anew. The other side is the slower of two things: reading the bytes of the files, and
one product of the same matrices in memory, in float64 as the method's exact sums are. The product in float32
is shown for comparison.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from beam_jobs import reproject
from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.memory import peak_mebibytes
from id2core import defaults
from id2core.runs.execution import Execution
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset
from id2core.transforms import reprojection
from id2core.transforms.linear import Transform

N, M = 4096, 512
RUN = "20260101T000000-abcdef"
IDS = {"encoder_id": "vae-0123456789ab", "transform_id": "0123456789ab", "preprocess_id": "p"}
# Rows of one product: what fits beside everything else.
BLOCK = 8192


def draw(uri: str, latents: int) -> Dataset:
    """Write a corpus of drawn latents."""
    schema = schemas.embeddings_schema(N, M)
    rng = np.random.default_rng(0)
    files = []
    for first in range(0, latents, defaults.PART_SIZE):
        rows = min(defaults.PART_SIZE, latents - first)
        columns = {field.name: pa.nulls(rows, field.type) for field in schema}
        columns |= {name: pa.repeat(value, rows) for name, value in IDS.items()}
        numbers = range(first, first + rows)
        columns["image_id"] = pa.array([f"{i:064x}" for i in numbers])
        columns["uri"] = pa.array([f"gs://corpus/originals/{i:09d}.jpg" for i in numbers])
        columns["run_id"] = pa.repeat(RUN, rows)
        columns["latent"] = schemas.vectors_to_array(rng.standard_normal((rows, N)).astype(np.float16), N)
        columns["descriptor"] = schemas.vectors_to_array(np.ones((rows, M), np.float32), M)
        table = pa.Table.from_pydict(columns, schema)
        key = f"part-{datasets.digest_of(first)}"
        files.append(replace(datasets.write_file(uri, key, [table], schema), segments=(RUN,)))
    datasets.write_commit(uri, Commit(schemas.EMBEDDINGS, RUN, IDS, tuple(files)))
    return Dataset.open(uri)


def read(corpus: Dataset) -> None:
    for file in corpus.files:
        Path(corpus.uri, file.name).read_bytes()


def multiply(rows: int, weights: NDArray[np.float32], dtype: DTypeLike) -> float:
    """Seconds of one product of as many latents, which lie in memory."""
    block = np.random.default_rng(1).standard_normal((min(BLOCK, rows), N)).astype(dtype)
    w, out = weights.astype(dtype), np.empty((len(block), M), dtype)
    return common.seconds(lambda: np.matmul(block, w, out=out)) * rows / len(block)


def measure(latents: int, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """Reproject in every round anew; return rows, and the median seconds of each side."""
    times: dict[str, list[float]] = {name: [] for name in ("job", "read", "float64", "float32")}
    with TemporaryDirectory(prefix="id2-bench-") as folder:
        corpus = draw(f"{folder}/reference/embeddings", latents)
        weights = np.random.default_rng(2).standard_normal((N, M)).astype(np.float32)
        w = str(Path(folder, "W.safetensors"))
        Transform(weights, {"encoder_id": IDS["encoder_id"]}).save(Path(w))
        for _ in range(rounds):
            place = f"{folder}/beside"
            work = reprojection.plan(corpus, place, w, Execution.begin())
            times["read"].append(common.seconds(lambda: read(corpus)))
            times["float64"].append(multiply(latents, weights, np.float64))
            times["job"].append(common.seconds(lambda work=work: reproject.run(work)))
            times["float32"].append(multiply(latents, weights, np.float32))
            shutil.rmtree(place)
    slower = [max(pair) for pair in zip(times["read"], times["float64"], strict=True)]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    what = f"id2 reproject, {latents:,} latents of {N:,}"
    ours = f"{medians['job']:.1f} s"
    rows = [
        Row(
            what,
            ours,
            f"the slower of reading and the float64 product: {float(np.median(slower)):.1f} s",
            common.median_ratio(slower, times["job"]),
            Bar(0.5),
        ),
        Row(
            what,
            ours,
            f"the product in float32: {medians['float32']:.1f} s",
            common.median_ratio(times["float32"], times["job"]),
        ),
    ]
    return rows, medians


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows, medians = measure(given.latents, given.rounds)
    common.report("reprojection", rows, seconds=medians, peak_mebibytes=peak_mebibytes())


if __name__ == "__main__":
    main()
