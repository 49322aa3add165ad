"""A compressed index beside the exact search: time, memory, and what it finds.

Run `python -m benchmarks.indexes [--bench DIR] [--index OPQ120_480,IVF1024,PQ120x4] [--index-recall 0.97]
[--references 1000000] [--queries 10000]`; prints one line of JSON. Linux only.

* Time: the search job by codes ÷ the exact search job, each in a process of its own, from committed data sets
  to `matches/`. The index is built before.
* Memory: of a reference in a shard of each, as the process grows when it loads one.
* Recall: share of the exact job's 10 best, and of its best, that the job by codes stores.

With `--bench`, a folder of `id2 experiment data`, descriptors are real. References are random crops of photos
that are no test photos, every other one mirrored, and the test photos. Uploads are crops of the test photos
and, if there are any, their translations, with a little noise where one is used again. So an upload has one
true original among the references, and no other view of its photo. Without `--bench`, descriptors are drawn,
and the recall says little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.search import TOP_K, unit, write_embeddings
from benchmarks.shards import resident
from id2core.search.indexes import FLAT
from id2core.store.datasets import Dataset

TIME_BAR, MEMORY_BAR, RECALL_BAR = Bar(5), Bar(8), Bar(0.95)
_NOISE = 0.002
_REFERENCES, _UPLOADS = "reference", "queries"


def real(bench: str, references: int, queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw views of photos and describe them by the bundled W: references and uploads, float32[…,m]."""
    from id2core.experiments import evaluation_sets as roles
    from id2core.experiments import scale
    from id2core.experiments.evaluation_sets import EvaluationSet
    from id2core.transforms.files import WEIGHTS, bundled_folder, load_transform

    data = EvaluationSet.load(Path(bench))
    w = load_transform(str(bundled_folder() / WEIGHTS))
    rng = np.random.default_rng(0)

    def viewed(latents: NDArray[np.float16], count: int) -> NDArray[np.float32]:
        drawn = scale.reference_views(latents, count, rng)
        return np.concatenate([scale.describe(some, w) for some in drawn])[:count]

    others = np.concatenate(
        [data.read(role)[0] for role in (roles.TRAIN, roles.CALIBRATION, roles.DISTRACTORS, roles.FRESH)]
    ).astype(np.float16)
    test = np.asarray(data.read(roles.TEST)[0], np.float16)
    held = np.concatenate([viewed(others, references - len(test)), scale.describe(test, w)])
    names = [name for model in data.models if data.has(name := f"{roles.TEST}-{model}")]
    translated = [scale.describe(data.read(name)[0], w) for name in names]
    asked = np.concatenate([*translated, viewed(test, 2 * len(test))])
    asked = asked[np.arange(queries) % len(asked)]
    asked = asked + _NOISE * rng.standard_normal(asked.shape, np.float32)
    return held[rng.permutation(len(held))], asked / np.linalg.norm(asked, axis=1, keepdims=True)


def child(folder: Path, index: str) -> None:
    """Load a shard of all references, then search; print the bytes of a reference, and the seconds."""
    from beam_jobs import search
    from id2.indexing import Indexer
    from id2core.runs.execution import Execution
    from id2core.search import coded, match_rows, shards
    from id2core.settings import Settings

    references, queries = (
        Dataset.open(str(folder / side / "embeddings")) for side in (_REFERENCES, _UPLOADS)
    )
    codes = None
    if index != FLAT:
        codes = Indexer(Settings(index=index), Execution.begin(), []).find(references)
    few = references.files[:1]
    shard = coded.load(codes, few) if codes else shards.load(references, few)
    shard.search(unit(10, shards.descriptor_size(references), 0), TOP_K)  # what libraries allocate once
    before = resident("VmRSS")
    held = coded.load(codes, references.files) if codes else shards.load(references, references.files)
    taken = (resident("VmRSS") - before) * 2**20 / references.rows
    del held
    plan = match_rows.make(
        references,
        queries,
        str(folder / f"matches-{index}"),
        Execution.begin(),
        TOP_K,
        index=index,
        coded=codes,
    )
    seconds = common.seconds(lambda: search.run_planned(plan))
    print(json.dumps({"bytes": taken, "seconds": seconds}))


def run(folder: Path, index: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.indexes", "--child", str(folder), index]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def best(folder: Path, index: str) -> dict[str, list[str]]:
    """Return URI of an upload → ids of its matches, best first."""
    found: dict[str, list[str]] = {}
    columns = ["query_uri", "reference_id", "rank"]
    for table in Dataset.open(str(folder / f"matches-{index}")).tables(columns):
        for row in table.sort_by("rank").to_pylist():
            found.setdefault(row["query_uri"], []).append(row["reference_id"])
    return found


def measure(folder: Path, options: argparse.Namespace) -> None:
    from id2.indexing import Indexer
    from id2core.runs.execution import Execution
    from id2core.settings import Settings

    if options.bench:
        held, asked = real(options.bench, options.references, options.queries)
    else:
        held, asked = (unit(count, 480, i) for i, count in enumerate((options.references, options.queries)))
    write_embeddings(folder / _REFERENCES / "embeddings", held, "r")
    write_embeddings(folder / _UPLOADS / "embeddings", asked, "q")
    del held, asked
    settings = Settings(index=options.index, index_recall=options.index_recall)
    indexer = Indexer(settings, Execution.begin(), [])
    references = Dataset.open(str(folder / _REFERENCES / "embeddings"))
    built = common.seconds(lambda: indexer.make(references))
    facts = indexer.find(references).facts
    coded, exact = run(folder, options.index), run(folder, FLAT)
    found, true = best(folder, options.index), best(folder, FLAT)
    shares = [len(set(found.get(uri, [])) & set(ids)) / len(ids) for uri, ids in true.items()]
    firsts = [found.get(uri, [""])[0] == ids[0] for uri, ids in true.items()]
    sizes = f"{options.queries:,} × {options.references:,}"
    rates = [f"{options.queries / side['seconds']:,.0f} queries/s" for side in (coded, exact)]
    common.report(
        "indexes",
        [
            Row(
                f"search job by {options.index}, {sizes} ÷ exact",
                *rates,
                round(exact["seconds"] / coded["seconds"], 2),
                TIME_BAR,
            ),
            Row(
                "memory of a reference, exact ÷ by codes",
                f"{coded['bytes']:,.0f} bytes",
                f"{exact['bytes']:,.0f} bytes",
                round(exact["bytes"] / coded["bytes"], 2),
                MEMORY_BAR,
            ),
            Row(
                "recall of the 10 best",
                f"{np.mean(shares):.1%}",
                "100%",
                round(float(np.mean(shares)), 4),
                RECALL_BAR,
            ),
        ],
        found_first=round(float(np.mean(firsts)), 4),
        build_seconds=round(built, 1),
        measured=facts.model_dump(),
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--bench", help="folder of id2 experiment data")
    parser.add_argument("--index", default="OPQ120_480,IVF1024,PQ120x4")
    parser.add_argument("--index-recall", type=float, default=0.97, help="that the build asks for")
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, index = options.child
        child(Path(folder), index)
        return
    with TemporaryDirectory(prefix="id2-bench-") as name:
        measure(Path(name), options)


if __name__ == "__main__":
    main()
