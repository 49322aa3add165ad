"""Equal nights one after another: what a night lists, reads, scores, and plans as the corpus behind it grows.

Run `python -m benchmarks.growth [--nights 30] [--uploads 1000] [--references 500]`; prints one line of JSON.

Both corpora come from dated folders, and every night adds as much as any other. The encoder averages blocks
(768 numbers an image). A night is a process of its own. It counts at the door of the store what is listed,
and what is read, by table. It times planning, the planning of searches, and commits. The bytes that a search
must read follow from its tasks and from the column chunks that they need. Seconds are those of the
processors, so that other work on the machine does not count, and medians of five nights.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.embed_job import EmbedJob
from id2core.runs import planning
from id2core.search import match_rows, matching, shards
from id2core.store import datasets, moves, storage
from id2core.store.base import Entry, Noted, Object
from id2core.store.datasets import Dataset, FileRecord
from id2core.store.local import LocalStore
from id2core.store.rejects import Reject
from id2core.verdicts import calibration

FIRST = date(2026, 1, 1)
# Uploads of a night that are a picture of its references under another name.
COPIES = 20
# What the bytes at the store's door are counted by, beside the tables.
COMMITS, PICTURES, OTHER = "commits", "pictures", "other"
CORPORA = ("reference", "queries")
TABLES = (*(f"{c}/embeddings" for c in CORPORA), "rejects", "removals", "matches", "verdicts", "ledger")
TABLES += ("segments", "runs")
TIMED = ("plan", "commit", "plan search")
ENCODER = "pool.pt"
# Nights of which seconds are medians.
NEAR = 5


class Meter:
    """What passes the door of the store in one process."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.listed = self.entries = 0
        self.read: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.needed = 0

    def table(self, uri: str) -> str:
        """Return what an object is counted by."""
        if not uri.startswith(f"{self.out}/"):
            return PICTURES
        if uri.endswith(datasets.SUCCESS):
            return COMMITS
        return next((name for name in TABLES if f"/{name}/" in uri), OTHER)

    def time(self, module: Any, function: str, name: str) -> None:
        """Time a function of a module from now on."""
        work: Callable[..., Any] = getattr(module, function)

        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return work(*given, **named)
            finally:
                self.seconds[name] += time.process_time() - began

        setattr(module, function, timed)


class _CountedFile:
    """A file whose bytes are counted as they are read."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file, self._count = file, count

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def counting_store(meter: Meter) -> LocalStore:
    """Return the store of local files with a meter at its door."""

    class CountingStore(LocalStore):
        def list(self, uri: str) -> Iterator[Object | Noted]:
            for item in super().list(uri):
                meter.listed += isinstance(item, Object)
                yield item

        def entries(self, uri: str, below: bool = True) -> Iterator[Entry]:
            for entry in super().entries(uri, below):
                meter.entries += 1
                yield entry

        def read(self, obj: Object) -> bytes | Reject:
            data = super().read(obj)
            meter.read[meter.table(obj.uri)] += len(data) if isinstance(data, bytes) else 0
            return data

        def read_marked(self, uri: str) -> tuple[bytes, str]:
            data, mark = super().read_marked(uri)
            meter.read[meter.table(uri)] += len(data)
            return data, mark

        @contextmanager
        def open(self, uri: str) -> Iterator[IO[bytes]]:
            table = meter.table(uri)
            with super().open(uri) as file:
                yield _CountedFile(file, lambda size: meter.read.update({table: size}))  # type: ignore[misc]

    return CountingStore()


def needed_bytes(references: Dataset, queries: Dataset, tasks: list[matching.Task]) -> int:
    """Return the bytes of the column chunks that the tasks of a search must read, footers aside."""
    scored, kept = ["descriptor", "run_id"], [*matching.QUERY_COLUMNS]
    total, blocks = 0, set()
    for files, asked in tasks:
        total += sum(chunk_bytes(references, file, [*shards.COLUMNS, *scored]) for file in files)
        total += sum(chunk_bytes(queries, block.file, scored, block.row_group) for block in asked)
        blocks |= {(block.file, block.row_group) for block in asked}
    return total + sum(chunk_bytes(queries, file, kept, group) for file, group in blocks)


def chunk_bytes(dataset: Dataset, file: FileRecord, columns: list[str], row_group: int | None = None) -> int:
    """Return the stored bytes of some columns of a file, or of one of its row groups."""
    places = (Path(folder, file.name) for folder in moves.folders(dataset.uri))
    metadata = pq.read_metadata(next(path for path in places if path.exists()))
    groups = range(metadata.num_row_groups) if row_group is None else [row_group]
    chunks = (metadata.row_group(g).column(c) for g in groups for c in range(metadata.num_columns))
    return sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)


def night(root: Path, number: int) -> dict[str, Any]:
    """Run one night in this process; return what it did."""
    import id2

    out = str(root / "out")
    os.environ["ID2_LEFTOVER_HOURS"] = "0"
    meter = Meter(out)
    storage.STORES[storage.LOCAL] = lambda: counting_store(meter)  # type: ignore[index]
    meter.time(planning, "make", "plan")
    meter.time(planning, "commit", "commit")
    meter.time(match_rows, "make", "plan search")
    listed_tasks = matching.tasks

    def tasks(plan: matching.SearchPlan, spread: int = 1) -> list[matching.Task]:
        made = listed_tasks(plan, spread)
        meter.needed += needed_bytes(plan.references, plan.queries, made)
        return made

    matching.tasks = tasks  # type: ignore[assignment]
    began = time.perf_counter()
    summary = id2.nightly(
        reference=[str(root / "originals" / "{date}")],
        queries=[str(root / "inbox" / "{date}")],
        out=out,
        encoder=str(root / ENCODER),
        transform="none",
        calibration=str(root / "calibration.json"),
        canary=False,
        date=(FIRST + timedelta(days=number)).isoformat(),
    )
    return {
        "night": number,
        "listed": meter.listed,
        "entries": meter.entries,
        "read": dict(sorted(meter.read.items())),
        "needed": meter.needed,
        "pairs": summary.pairs,
        "stored": summary.pairs_stored,
        "references": summary.references,
        "uploads": summary.uploads,
        "seconds": {name: round(meter.seconds[name], 3) for name in TIMED},
        "whole": round(time.perf_counter() - began, 2),
    }


@dataclass
class World:
    """Folders of pictures, as many every day."""

    root: Path
    uploads: int
    references: int

    def day(self, number: int) -> None:
        """Draw what a day brings."""
        generator = np.random.default_rng(number)
        name = (FIRST + timedelta(days=number)).isoformat()
        for corpus, count in (("originals", self.references), ("inbox", self.uploads)):
            folder = self.root / corpus / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=80)
        for i in range(min(COPIES, self.uploads, self.references)):
            original = (self.root / "originals" / name / f"{i:06d}.jpg").read_bytes()
            (self.root / "inbox" / name / f"{i:06d}.jpg").write_bytes(original + b"again")

    def calibrate(self) -> None:
        """Write thresholds that random pictures stay below."""
        ids = EmbedJob(".", ".", make_pool(self.root), "none").identify()
        scores = np.linspace(0.5, 0.9, 1000)
        made = calibration.calibrate(scores, match=0.01, review=0.1, references=10**6, ids=ids)
        made.save(str(self.root / "calibration.json"))


def make_pool(folder: Path) -> str:
    """Write a TorchScript encoder that costs next to nothing."""
    import torch

    pool = torch.jit.trace(torch.nn.AvgPool2d(16), torch.zeros(1, 3, 256, 256))  # type: ignore[no-untyped-call]
    pool.save(str(folder / ENCODER))
    return str(folder / ENCODER)


def simulate(root: Path, nights: int, uploads: int, references: int) -> list[dict[str, Any]]:
    """Run the nights; return the figures of each."""
    world = World(root, uploads, references)
    world.calibrate()
    figures = []
    # Processes that have nothing in memory but modules, without the seconds that loading these takes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["beam_jobs.embed", "beam_jobs.search", "id2.jobs.nightly", "torch"])
    for number in range(1, nights + 1):
        world.day(number)
        with context.Pool(1) as pool:
            figures.append(pool.apply(night, (root, number)))
        print(figures[-1], file=sys.stderr, flush=True)
    return figures


def typical(figures: list[dict[str, Any]], night: int, near: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a night's figures, where medians of nights near it stand for what varies."""
    seconds = {name: median(one["seconds"][name] for one in near) for name in TIMED}
    return figures[night - 1] | {"seconds": seconds}


def rows_of(early: dict[str, Any], late: dict[str, Any], uploads: int, references: int) -> list[Row]:
    """Return the comparisons of two nights."""
    a, b = early["night"], late["night"]

    def pairs(night: int) -> int:
        return uploads * references * (2 * night - 1)

    def row(what: str, figure: Callable[[dict[str, Any]], float], bar: Bar | None, unit: str = "") -> Row:
        first, last = figure(early), figure(late)
        shown = [f"{value:,.2f}{unit}" if unit else f"{value:,.0f}" for value in (last, first)]
        return Row(f"night {b} ÷ night {a}: {what}", *shown, round(last / first, 3), bar)

    def embeddings(night: dict[str, Any]) -> float:
        return float(sum(night["read"].get(f"{c}/embeddings", 0) for c in CORPORA)) / 2**20

    def rest(night: dict[str, Any]) -> float:
        tables = night["read"].items()
        return float(sum(n for t, n in tables if t != PICTURES and "embeddings" not in t)) / 2**20

    more, needed = (embeddings(late) - embeddings(early)), (late["needed"] - early["needed"]) / 2**20
    near = Bar(0.95, 1.05)
    return [
        row("objects listed in the sources", lambda n: n["listed"], near),
        row("files listed below --out", lambda n: n["entries"], None),
        row("pairs scored ÷ formula", lambda n: n["pairs"] / pairs(n["night"]), near, " "),
        Row(
            f"bytes of embeddings that night {b} reads more than night {a} ÷ what the formula has more",
            f"{more:,.1f} MiB",
            f"{needed:,.1f} MiB",
            round(more / needed, 3),
            near,
        ),
        row("other bytes read, pictures aside", rest, None, " MiB"),
        row(
            "planning and commit", lambda n: n["seconds"]["plan"] + n["seconds"]["commit"], Bar(0, 1.2), " s"
        ),
        row("planning of searches", lambda n: n["seconds"]["plan search"], None, " s"),
    ]


def main() -> None:
    """Simulate and report."""
    parser = common.parser(__doc__)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--uploads", type=int, default=1000, help="of each night")
    parser.add_argument("--references", type=int, default=500, help="of each night")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="id2-bench-") as name:
        figures = simulate(Path(name), given.nights, given.uploads, given.references)
    # From the third night on, as many late days are listed as ever.
    third = min(3, given.nights)
    early = typical(figures, third, figures[third - 1 :][:NEAR])
    late = typical(figures, given.nights, figures[-NEAR:])
    common.report("growth", rows_of(early, late, given.uploads, given.references), nights=figures)


if __name__ == "__main__":
    main()
