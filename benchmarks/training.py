"""Steps per second and peak memory of training W, against a plain loop of the same math.

Run `python -m benchmarks.training [--classes 2000] [--each 7] [--size 4096] [--steps 40] [--rounds 3]`;
prints one line of JSON.

Both sides train CosFace over all classes with Adam and a moving average of W, 512 latents a step, 4 of each
class, in float32. The plain loop reads them as the paper's release keeps them: a DataLoader over one float32
file per image, once in the process itself and once in two worker processes; the faster is the other side of
the ratio. Ours is `gradient.fit` over one mapped file of float16. All files have just been written and
come from the system's cache, not from the disk: on a disk, one file per image costs more.

Every run is a process of its own. Steps are counted from the sixth on, so that neither start-up nor the
first filling of a queue counts; memory is the peak of the training process (without workers, with the pages
of a mapped file), less what it was before.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.closed_form import draw
from benchmarks.common import Bar, Row
from benchmarks.memory import peak_mebibytes

BAR = Bar(1.5)
BATCH, PER_CLASS, COLUMNS = 512, 4, 512
SCALE, MARGIN, RATE, DECAY = 64.0, 0.35, 3.5e-4, 0.9999
BEGIN = 5  # steps that do not count
OURS, PLAIN = "ours", ("plain", "plain, 2 workers")
LATENTS, FILES = "latents.npy", "files"


def write_files(folder: Path, each: int) -> None:
    """The mapped file's latents once more as one float32 file per image, ORIGIN_NUMBER.npy."""
    latents = np.load(folder / LATENTS, mmap_mode="r")
    (folder / FILES).mkdir()
    for row, latent in enumerate(latents):
        label, number = divmod(row, 1 + each)
        np.save(folder / FILES / f"{label:06d}_{number}.npy", latent.astype(np.float32))


class Marks:
    """When each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, stage: str, completed: int, total: int) -> None:
        self.times.append(time.perf_counter())

    @property
    def steps_per_second(self) -> float:
        counted = self.times[BEGIN:]
        return (len(counted) - 1) / (counted[-1] - counted[0])


def ours(folder: Path, each: int, steps: int, marks: Marks) -> None:
    from id2core.training import gradient
    from id2core.training.config import GradientConfig
    from id2core.training.pairs import Pairs

    latents = np.load(folder / LATENTS, mmap_mode="r")
    offsets = np.arange(0, len(latents) + 1, 1 + each)
    pairs = Pairs(latents, [f"{i:064x}" for i in range(len(offsets) - 1)], offsets, {})
    config = GradientConfig(epochs=1, iterations=steps, validation_share=0, precision="float32")
    with TemporaryDirectory(dir=folder) as out:
        gradient.fit(pairs, config, Path(out), device="cpu", progress=marks)


def plain(folder: Path, each: int, steps: int, marks: Marks, workers: int) -> None:
    """As it is written in an afternoon."""
    import torch
    from pytorch_metric_learning.losses import CosFaceLoss
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self.paths = sorted((folder / FILES).iterdir())
            self.labels = [int(path.name.split("_")[0]) for path in self.paths]

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.from_numpy(np.load(self.paths[i])), self.labels[i]

    data = Files()
    model = nn.Linear(len(data[0][0]), COLUMNS, bias=False)
    average = copy.deepcopy(model)
    loss = CosFaceLoss(max(data.labels) + 1, COLUMNS, margin=MARGIN, scale=SCALE)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=RATE)
    batches = list(_batches(np.array(data.labels), 1 + each, steps))
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers)
    for step, (latents, labels) in enumerate(loader):
        value = loss(model(latents), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            average.weight.mul_(DECAY).add_(model.weight, alpha=1 - DECAY)
        value.item()
        marks("training", step + 1, steps)


def _batches(labels: NDArray[Any], size: int, steps: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    classes = int(labels.max()) + 1
    at_once = min(classes, BATCH // PER_CLASS)
    for _ in range(steps):
        chosen = rng.choice(classes, at_once, replace=False)
        yield [int(c) * size + int(i) for c in chosen for i in rng.choice(size, PER_CLASS, replace=False)]


def child(folder: Path, side: str, options: argparse.Namespace) -> None:
    """One run in this process; prints its figures."""
    import pytorch_metric_learning.losses
    import torch

    from id2core.training import gradient  # noqa: F401 (both sides have the same in memory before they start)

    assert pytorch_metric_learning
    torch.manual_seed(0)
    before, marks = peak_mebibytes(), Marks()
    if side == OURS:
        ours(folder, options.each, options.steps, marks)
    else:
        plain(folder, options.each, options.steps, marks, 2 if side == PLAIN[1] else 0)
    print(json.dumps({"rate": marks.steps_per_second, "mebibytes": peak_mebibytes() - before}))


def run(folder: Path, side: str, options: argparse.Namespace) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.training", "--child", side, "--folder", str(folder)]
    command += ["--each", str(options.each), "--steps", str(options.steps)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def measure(options: argparse.Namespace) -> None:
    runs_of: dict[str, list[dict[str, float]]] = {side: [] for side in (OURS, *PLAIN)}
    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name)
        draw(folder / LATENTS, options.classes, options.each, options.size)
        write_files(folder, options.each)
        order = list(runs_of)
        for _ in range(options.rounds):
            for side in order:
                runs_of[side].append(run(folder, side, options))
            order.reverse()
    rates = {side: [figures["rate"] for figures in runs] for side, runs in runs_of.items()}
    peaks = {side: max(figures["mebibytes"] for figures in runs) for side, runs in runs_of.items()}
    faster = max(PLAIN, key=lambda side: float(np.median(rates[side])))
    count = options.classes * (1 + options.each)
    what = f"{count:,} latents of {options.size:,} numbers, {options.classes:,} classes"
    ratio = common.median_ratio(rates[OURS], rates[faster])
    common.report(
        "training",
        [
            Row(
                f"training W, {what} ÷ a plain loop ({faster})",
                f"{np.median(rates[OURS]):.2f} steps/s",
                f"{np.median(rates[faster]):.2f} steps/s",
                ratio,
                BAR,
            ),
            Row(
                "peak memory of that, plain ÷ ours",
                f"{peaks[OURS]:,.0f} MiB",
                f"{peaks[faster]:,.0f} MiB",
                round(peaks[faster] / peaks[OURS], 3),
            ),
        ],
        steps_per_second={side: round(float(np.median(values)), 3) for side, values in rates.items()},
        mebibytes={side: round(peak) for side, peak in peaks.items()},
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--classes", type=int, default=2000)
    parser.add_argument("--each", type=int, default=7, help="translations of an origin")
    parser.add_argument("--size", type=int, default=4096, help="numbers in a latent")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", metavar="SIDE", help="one run, in this process")
    parser.add_argument("--folder", type=Path, help="of the drawn latents, for --child")
    options = parser.parse_args()
    if options.steps < BEGIN + 2:
        parser.error(f"--steps is {options.steps}: give {BEGIN + 2} or more")
    if options.child:
        child(options.folder, options.child, options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
