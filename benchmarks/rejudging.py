"""Time `id2 judge`: new verdicts for stored pairs, without a search.

Run `python -m benchmarks.rejudging [--uploads N] [--pairs K]`. It draws N uploads with K pairs each, and what
each upload scores in a background. The ratio is the bar's seconds over the seconds that were taken.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.dashboard import Drawing
from benchmarks.memory import peak_mebibytes
from id2core.runs.execution import Execution
from id2core.search import background_rows
from id2core.search.background_rows import Backgrounds
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset
from id2core.verdicts import calibration, rejudging
from id2core.verdicts.judging import Judge
from id2core.verdicts.normalization import Normalization

SECONDS = 20.0
IDS = {"encoder_id": "mini-0123456789ab", "transform_id": "0123456789ab", "preprocess_id": "p"}


def draw(place: Path, uploads: int, pairs: int) -> tuple[Dataset, Backgrounds, Normalization]:
    """Write matches of one day, and the background of their uploads."""
    Drawing(place, uploads, pairs).day(0)
    [path] = (place / "matches").rglob("*.parquet")
    uri = str(place / "scanned" / "matches")
    table = pq.ParquetFile(path).read().cast(schemas.MATCHES)
    file = datasets.write_file(uri, "drawn", [table], schemas.MATCHES, schemas.MATCHES_ROW_GROUP)
    datasets.write_commit(uri, Commit("matches", "r", {}, (file,)))
    first = table.group_by(["query_uri", "query_generation", "query_id"]).aggregate([])
    columns = {
        "image_id": first["query_id"],
        "uri": first["query_uri"],
        "generation": first["query_generation"],
        "background": pa.array(np.random.default_rng(0).uniform(0, 0.2, uploads).astype(np.float32)),
    }
    arrays = [columns.get(field.name, pa.nulls(uploads, field.type)) for field in schemas.BACKGROUNDS]
    rows = pa.Table.from_arrays(arrays, schema=schemas.BACKGROUNDS)
    how = Normalization(factor=0.5, k=3, background_id="flat-0123456789abcdef")
    name = background_rows.name_of(IDS, how.background_id, how.k)
    folder = str(place / "scanned" / "queries" / "backgrounds")
    file = datasets.write_file(folder, f"background={name}/drawn", [rows], schemas.BACKGROUNDS)
    datasets.write_commit(folder, Commit("backgrounds", "r", {}, (file,)))
    return Dataset.open(uri), Backgrounds(Dataset.open(folder), name), how


def measure(uploads: int, pairs: int) -> tuple[list[Row], float]:
    """Judge all pairs once by raw scores, and once by normalized ones; return rows and peak MiB."""
    rows = []
    with TemporaryDirectory() as folder:
        matches, backgrounds, how = draw(Path(folder), uploads, pairs)
        scores = np.linspace(0.1, 0.7, 1000)
        for name, normalization in (("raw", None), ("normalized", how)):
            chosen = calibration.calibrate(
                scores, match=0.01, review=0.1, references=1000, ids=IDS, normalization=normalization
            )
            judge = Judge(chosen, backgrounds if normalization else None)
            began = time.perf_counter()
            done = rejudging.judge(matches, f"{folder}/scanned", [(judge, 200_000)], Execution.begin())
            seconds = time.perf_counter() - began
            assert sum(done.verdicts.values()) == uploads * pairs
            what = f"id2 judge, {uploads * pairs:,} pairs, {name} scores"
            rows.append(Row(what, f"{seconds:.1f} s", f"{SECONDS:g} s", SECONDS / seconds, Bar(1)))
    return rows, peak_mebibytes()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--uploads", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=10)
    given = parser.parse_args()
    rows, peak = measure(given.uploads, given.pairs)
    common.report("rejudging", rows, peak_mebibytes=peak)


if __name__ == "__main__":
    main()
