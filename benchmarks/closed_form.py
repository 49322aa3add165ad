"""Seconds and peak memory of a closed-form W, against what the project allows it.

Run `python -m benchmarks.closed_form [--latents 100000] [--each 19] [--size 4096] [--columns 512]`; prints
one line of JSON. The limits, 60 s and 4 GiB on two cores, are for the default sizes.

The latents are drawn: origins whose numbers differ in spread, and `--each` translations of each. They lie
in a `.npy` file and are memory-mapped, as `training.pairs` leaves them; having just been written they come
from the system's cache, and not from the disk. A fresh process fits W, with all candidates of shrinkage,
power and centring, and reports the peak of its resident memory, which includes the mapped file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.memory import peak_mebibytes

BAR = Bar(1)
SECONDS, MEBIBYTES = 60, 4096
DRAWN_AT_ONCE = 100
NOISE = 1.5


def draw(path: Path, origins: int, each: int, size: int) -> None:
    """Write float16[origins·(1+each),size], class by class."""
    shape = (origins * (1 + each), size)
    latents = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    rng = np.random.default_rng(0)
    spread = rng.permutation(1 / np.sqrt(1 + np.arange(size, dtype=np.float32) / 20))
    for start in range(0, origins, DRAWN_AT_ONCE):
        count = min(DRAWN_AT_ONCE, origins - start)
        x = NOISE * rng.standard_normal((count, 1 + each, size), np.float32)
        x[:, 0] = 0
        x += spread * rng.standard_normal((count, 1, size), np.float32)
        first = start * (1 + each)
        latents[first : first + count * (1 + each)] = x.reshape(-1, size)
    latents.flush()


def child(path: str, each: int, columns: int) -> None:
    """Fit once and print seconds, peak memory and the chosen settings."""
    from id2core.training import closed_form
    from id2core.training.pairs import Pairs

    latents = np.load(path, mmap_mode="r")
    offsets = np.arange(0, len(latents) + 1, 1 + each)
    pairs = Pairs(latents, [f"{i:064x}" for i in range(len(offsets) - 1)], offsets, {})
    marks: dict[str, float] = {}
    begin, cpu = time.perf_counter(), time.process_time()

    def mark(stage: str, completed: int, total: int) -> None:
        marks[stage] = time.perf_counter() - begin

    solution = closed_form.fit(pairs, columns, progress=mark)
    figures = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "statistics_seconds": marks["statistics"],
        "mebibytes": peak_mebibytes(),
        "shrinkage": solution.shrinkage,
        "power": solution.power,
        "validation_map": max(c.score for c in solution.validation),
    }
    print(json.dumps(figures))


def run(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One fit in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.closed_form", "--child", str(path)]
    command += ["--each", str(options.each), "--columns", str(options.columns)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(child.stdout.splitlines()[-1]))


def measure(options: argparse.Namespace) -> None:
    origins = options.latents // (1 + options.each)
    with TemporaryDirectory(prefix="id2-bench-") as folder:
        path = Path(folder, "latents.npy")
        draw(path, origins, options.each, options.size)
        figures = run(path, options)
    what = f"{options.latents:,} latents of {options.size:,} numbers"
    seconds, peak = figures["seconds"], figures["mebibytes"]
    common.report(
        "closed_form",
        [
            Row(
                f"closed-form W of {what}, limit ÷ ours",
                f"{seconds:.0f} s",
                f"{SECONDS} s",
                round(SECONDS / seconds, 3),
                BAR,
            ),
            Row(
                f"peak memory of closed-form W, {what}, limit ÷ ours",
                f"{peak:,.0f} MiB",
                f"{MEBIBYTES:,} MiB",
                round(MEBIBYTES / peak, 3),
                BAR,
            ),
        ],
        columns=options.columns,
        origins=origins,
        **{name: round(value, 3) for name, value in figures.items()},
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=19, help="translations of an origin")
    parser.add_argument("--size", type=int, default=4096, help="numbers in a latent")
    parser.add_argument("--columns", type=int, default=512, help="of W")
    parser.add_argument("--child", metavar="NPY", help="fit W to these latents, in this process")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.each, options.columns)
    else:
        measure(options)


if __name__ == "__main__":
    main()
