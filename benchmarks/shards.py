"""How fast shards load, and what a search takes as the references grow: memory and time.

Run `python -m benchmarks.shards [--references 100000] [--queries 1000] [--size 512] [--shard-memory 64]`;
prints one line of JSON. Linux only.

* Loading: `shards.load` of all files, in bytes of the files a second ÷ reading the same files, which are in
  the page cache. A shard is held in memory, so the reading, too, fills one array that each round makes anew.
  Reading each file into bytes of its own measures malloc: it hands out the warm memory of bytes that were
  dropped, or the system clears new memory 4 KiB at a time.
* Memory: the search job with shards of `--shard-memory` MiB, in a process of its own, above what the process
  has before it: ÷ one shard, and with four times the references ÷ the same. References are cut into shards of
  equal size, which fill the memory only if they fill whole shards: `--references` is rounded to such numbers.
* Time: the job with ten times the references ÷ the job with the references, both with shards of that size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.search import TOP_K, unit, write_embeddings
from id2core import defaults
from id2core.search import cuts, shards
from id2core.store.datasets import Dataset

LOAD_BAR, MEMORY_BAR, FLAT_BAR, TIME_BAR = Bar(0.5), Bar(0, 1.5), Bar(0.9, 1.1), Bar(0, 10.5)
MORE, MOST = 4, 10
WARM_UP = 1000


def child(folder: Path, references: str, memory: int) -> None:
    """Search once; print the seconds, and the peak of memory before and after."""
    from beam_jobs import search
    from id2core.runs.execution import Execution
    from id2core.search import match_rows

    def run(name: str, out: str) -> float:
        held, queries = (Dataset.open(str(folder / side)) for side in (name, "queries"))
        plan = match_rows.make(held, queries, str(folder / out), Execution.begin(), TOP_K)
        return common.seconds(lambda: search.run_planned(replace(plan, shard_bytes=memory << 20)))

    run("warm", f"warm-{references}")  # imports, and what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    seconds = run(references, f"matches-{references}")
    print(json.dumps({"seconds": seconds, "mebibytes": resident("VmHWM") - before}))


def resident(field: str) -> float:
    """Return MiB of this process's memory: VmRSS now, or VmHWM at its peak."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 2**10


def run(folder: Path, references: str, memory: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.shards", "--child", str(folder), references, str(memory)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def read_all(paths: list[Path], sizes: list[int]) -> None:
    """Read files, one after the other, into one new array."""
    held = np.empty(sum(sizes), np.uint8)
    places = np.split(held, np.cumsum(sizes)[:-1])
    for path, place in zip(paths, places, strict=True):
        with path.open("rb", buffering=0) as file:
            file.readinto(place.data)


def whole_shards(references: int, size: int, memory: int) -> int:
    """Return about as many references, in files of the embed job, as fill whole shards."""
    files = (memory << 20) // cuts.row_bytes(size) // defaults.PART_SIZE
    rows = max(files, 1) * defaults.PART_SIZE
    return max(round(references / rows), 1) * rows


def loading(folder: Path, rounds: int) -> tuple[Row, dict[str, float]]:
    """Time the load of a shard and the bare reading of its files."""
    references = Dataset.open(str(folder / "references"))
    paths = [folder / "references" / file.name for file in references.files]
    sizes = [path.stat().st_size for path in paths]
    sides = {
        "ours": lambda: shards.load(references, references.files),
        "read": lambda: read_all(paths, sizes),
    }
    common.interleaved(sides, 1)
    times = common.interleaved(sides, rounds)
    size = sum(sizes)
    ours, read = (size / median(times[side]) / 1e6 for side in ("ours", "read"))
    ratio = common.median_ratio(times["read"], times["ours"])
    row = Row(
        "load of a shard ÷ reading its files", f"{ours:,.0f} MB/s", f"{read:,.0f} MB/s", ratio, LOAD_BAR
    )
    return row, {"load_mb_per_second": round(ours), "read_mb_per_second": round(read)}


def measure(folder: Path, options: argparse.Namespace) -> None:
    memory = options.shard_memory
    count = whole_shards(options.references, options.size, memory)
    sizes = {"warm": WARM_UP, "references": count, "more": MORE * count, "most": MOST * count}
    for seed, (name, rows) in enumerate(sizes.items()):
        write_embeddings(folder / name, unit(rows, options.size, seed), "r")
    write_embeddings(folder / "queries", unit(options.queries, options.size, len(sizes)), "q")
    load, figures = loading(folder, options.rounds)
    once, more, most = (run(folder, name, memory) for name in ("references", "more", "most"))
    taken, held = once["mebibytes"], more["mebibytes"]
    time, long = once["seconds"], most["seconds"]
    what = f"{options.queries:,} queries, shards of {memory} MiB"
    common.report(
        "shards",
        [
            load,
            Row(
                f"memory of a search job, {what} ÷ one shard",
                f"{taken:.0f} MiB",
                f"{memory} MiB",
                round(taken / memory, 2),
                MEMORY_BAR,
            ),
            Row(
                f"memory of a search job, {MORE * count:,} ÷ {count:,} references",
                f"{held:.0f} MiB",
                f"{taken:.0f} MiB",
                round(held / taken, 2),
                FLAT_BAR,
            ),
            Row(
                f"time of a search job, {MOST * count:,} ÷ {count:,} references",
                f"{long:.1f} s",
                f"{time:.1f} s",
                round(long / time, 2),
                TIME_BAR,
            ),
        ],
        **figures,
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512, help="numbers in a descriptor")
    parser.add_argument("--shard-memory", type=int, default=64, help="MiB")
    parser.add_argument("--rounds", type=int, default=5, help="of loading")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, references, memory = options.child
        child(Path(folder), references, int(memory))
        return
    with TemporaryDirectory(prefix="id2-bench-") as name:
        measure(Path(name), options)


if __name__ == "__main__":
    main()
