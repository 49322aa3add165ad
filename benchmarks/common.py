"""What the benchmarks share: photos, interleaved timing, the machine's description, rows of the table.

Every benchmark prints one line of JSON: its name, its rows (see `Row`) and the figures behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".jpg", ".jpeg", ".png")
DRAWN_SIZE = (512, 384)
FOLDER, TAR = SOURCES = ("folder", "tar")
SHARDS = 4
# Drawing costs more than embedding: beyond this many, drawn pictures appear again under other names.
MOST_DRAWN = 200
# Name of a unit rate → what it is.
Rates = dict[str, float]


@dataclass(frozen=True)
class Bar:
    """What a ratio must reach; `most` where more is as bad as less."""

    least: float
    most: float | None = None

    def met(self, ratio: float) -> bool:
        return self.least <= ratio and (self.most is None or ratio <= self.most)

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.most is None else f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table; `bar` is None for a figure that is only shown."""

    what: str
    ours: str
    other: str
    ratio: float
    bar: Bar | None = None

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Row:
        bar = raw.pop("bar")
        return Row(**raw, bar=Bar(**bar) if bar else None)


def report(name: str, rows: list[Row], **figures: Any) -> None:
    """Print a benchmark's line of JSON."""
    print(json.dumps({"name": name, "rows": [asdict(row) for row in rows], **figures}, ensure_ascii=False))


def parser(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)


def photos_option(options: argparse.ArgumentParser) -> None:
    options.add_argument("--photos", type=Path, help="folder of JPEGs and PNGs; by default drawn pictures")


def source_option(options: argparse.ArgumentParser) -> None:
    options.add_argument("--source", choices=SOURCES, default=FOLDER, help="what holds the photos of a job")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor_seconds(work: Callable[[], Any]) -> float:
    """Return the seconds that a call takes of the processors: other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


@cache
def vcpus() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def timers() -> Iterator[Counter[str]]:
    """Collect the seconds of each timed stage of jobs that run in this process, over all its threads.

    A pipeline collects them, too. A job without one has nowhere to show them.
    """
    from beam_jobs import metrics

    sums: Counter[str] = Counter()
    shown = metrics.add_time

    def add(stage: str, took: float) -> None:
        sums[stage] += took
        shown(stage, took)

    metrics.add_time = add
    try:
        yield sums
    finally:
        metrics.add_time = shown


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round.

    The sides take turns, so that other load on the machine falls on all alike, and every other round
    goes backwards, so that none always runs in the other's wake.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            times[name].append(seconds(sides[name]))
        order.reverse()
    return times


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds of one side's figure over the other's."""
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)


@contextmanager
def photo_folder(photos: Path | None, count: int) -> Iterator[Path]:
    """A temporary folder of `count` pictures: links to the first of `photos`, or drawn ones.

    Where there are too few they appear again under other names: a job reads every name.
    """
    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name, "photos")
        folder.mkdir()
        paths = pictures(photos) if photos else _drawn(Path(name, "drawn"), count)
        for i, path in enumerate(islice(cycle(paths), count)):
            (folder / f"{i:06d}{path.suffix}").symlink_to(path)
        yield folder


@contextmanager
def photo_source(photos: Path | None, count: int, kind: str) -> Iterator[tuple[Path, str]]:
    """A folder of `count` pictures, and the source from which a job takes them: it, or tar shards of them."""
    with photo_folder(photos, count) as folder, TemporaryDirectory(prefix="id2-bench-") as name:
        if kind == TAR:
            tar_shards(folder, Path(name))
        yield folder, f"{TAR}:{name}" if kind == TAR else str(folder)


def tar_shards(photos: Path, folder: Path) -> list[Path]:
    """Write the photos of a folder to shards, in their order."""
    paths = pictures(photos)
    shards = [folder / f"{number:04d}.tar" for number in range(SHARDS)]
    for shard, own in zip(shards, np.array_split(np.arange(len(paths)), SHARDS), strict=True):
        with tarfile.open(shard, "w") as tar:
            for number in own:
                tar.add(paths[number].resolve(), paths[number].name)
    return shards


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name."""
    paths = sorted(path for path in folder.absolute().iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"no .jpg or .png in {folder}")
    return paths


def _drawn(folder: Path, count: int) -> list[Path]:
    from tests.drawing import scene

    folder.mkdir()
    paths = [folder / f"{i:06d}.jpg" for i in range(min(count, MOST_DRAWN))]
    for seed, path in enumerate(paths):
        scene(seed, DRAWN_SIZE).save(path, quality=90)
    return paths


def decoded(folder: Path, count: int, size: int) -> NDArray[np.uint8]:
    """The first `count` pictures of a folder as uint8[count,size,size,3]."""
    from id2core.encoders.images import Decoded, decode

    results = [decode(path.read_bytes(), size) for path in pictures(folder)[:count]]
    if rejected := [result for result in results if not isinstance(result, Decoded)]:
        raise SystemExit(f"a benchmark photo was rejected: {rejected[0]}")
    return np.stack([result.pixels for result in results if isinstance(result, Decoded)])


def machine() -> dict[str, Any]:
    """Processor, memory, threads, and which dtype an encoder takes here."""
    # Not above: a process that only starts others must stay small, or its memory shows in theirs.
    import torch

    from id2core import environment

    devices = environment.devices()
    return devices | {
        "cpu": _cpu_name() or devices["cpu"],
        "torch_threads": torch.get_num_threads(),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16")),
    }


def _cpu_name() -> str:
    """The processor's name on Linux; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
