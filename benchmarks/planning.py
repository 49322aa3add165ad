"""Planning and commit at several sizes of a night: memory of an object, seconds, and what lies behind.

Run `python -m benchmarks.planning [--sizes 250000 500000 1000000] [--behind 10]`; prints one line of JSON.

A listing is drawn (names of 90 characters). Every night is a process of its own, which reports the growth of
its resident memory over what it had before the listing, and its seconds of the processors. A night plans, has
its rows written by hand, without any picture, and commits. The largest night stands between two that have one
part in `--behind` of its objects, and that are compared.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.memory import peak_mebibytes
from id2core.runs import parts, planning
from id2core.runs.execution import Execution
from id2core.runs.parts import Product
from id2core.sources.base import Item, Mode, Source
from id2core.store import datasets
from id2core.store.base import Object

BYTES_AN_OBJECT = 200
COPIES = Product("copies")
SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "generation", "run_id")])


@dataclass(frozen=True)
class Drawn(Source):
    """A night of a source that is appended."""

    count: int = 0

    def _items(self) -> Iterator[Item]:
        for number in range(self.count):
            yield Item(Object(f"{self.place}/{number:036d}.jpeg", f"{number + 10**15}", 10**5))


def drawn(night: int, count: int) -> Drawn:
    """Return what a night brings to a dated source."""
    source = Drawn("gs://uploads-of-a-platform/inbox/{date}", Mode.APPEND, count=count)
    return source.on(date(2026, 1, 1) + timedelta(days=10 * night), 0)


def write_rows(plan: planning.Plan) -> None:
    """Write all parts of a plan, ten thousand rows to a file."""
    for index in range(plan.parts):
        objects = planning.read_part(plan, index)
        columns = [[o.uri[-37:] for o in objects], [o.uri for o in objects], [o.generation for o in objects]]
        batch = pa.RecordBatch.from_arrays(
            [*map(pa.array, columns), pa.repeat(plan.lineage.run_id, len(objects))], schema=SCHEMA
        )
        parts.write(plan.out, COPIES, objects, plan.lineage, iter([(batch, [])]))


def child(out: str, night: int, count: int) -> None:
    """Plan, write and commit one night; print the growth of memory, and seconds."""
    plans: list[planning.Plan] = []
    source = drawn(night, count)
    # What the first objects load is no memory of an object.
    planning.make(COPIES, drawn(0, 10), f"{out}-warm", {}, {}, Execution.begin())
    gc.collect()
    before = peak_mebibytes()

    def plan() -> None:
        plans.append(planning.make(COPIES, source, out, {}, {}, Execution.begin(), 10_000))

    planned = common.processor_seconds(plan)
    grown = peak_mebibytes() - before
    write_rows(plans[0])
    committed = common.processor_seconds(lambda: planning.commit(plans[0]))
    held = datasets.Dataset.open(f"{out}/copies")
    if plans[0].objects != count or held.commit.runs[held.run_id]["listed"] != count:
        raise SystemExit("the night is not the one that was drawn")
    figures = {"plan": planned, "commit": committed, "mebibytes_planned": grown}
    print(json.dumps(figures | {"mebibytes": peak_mebibytes() - before}))


def night(out: Path, number: int, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.planning", "--child", str(out), str(number), str(count)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures


def main(sizes: list[int], behind: int) -> None:
    most = max(sizes)
    small = most // behind
    with TemporaryDirectory(prefix="id2-bench-") as name:
        place = Path(name, "behind")
        first = night(place, 1, small)
        figures = {small: first, most: night(place, 2, most)}
        late = night(place, 3, small)
        alone = [figures.get(size) or night(Path(name, str(size)), 1, size) for size in sizes]
    each = [figures["mebibytes"] * 2**20 / size for figures, size in zip(alone, sizes, strict=True)]
    per_object = [
        (figures["plan"] + figures["commit"]) / size * 1e6 for figures, size in zip(alone, sizes, strict=True)
    ]
    rows = [
        Row(
            f"peak memory of an object, plan and commit of {sizes[-1]:,}",
            f"{each[-1]:.0f} B",
            f"{BYTES_AN_OBJECT} B",
            round(BYTES_AN_OBJECT / each[-1], 2),
            Bar(1),
        ),
        Row(
            f"seconds an object at {sizes[-1]:,} and at {sizes[0]:,}",
            f"{per_object[-1]:.1f} µs",
            f"{per_object[0]:.1f} µs",
            round(per_object[-1] / per_object[0], 2),
            Bar(0, 1.2),
        ),
        Row(
            f"plan and commit of {small:,} after {most + small:,}, and after none",
            f"{late['plan'] + late['commit']:.2f} s",
            f"{first['plan'] + first['commit']:.2f} s",
            round((late["plan"] + late["commit"]) / (first["plan"] + first["commit"]), 2),
            Bar(0, 1.2),
        ),
    ]
    common.report("planning", rows, sizes=sizes, alone=alone, first=first, late=late)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        options = common.parser(__doc__)
        options.add_argument("--sizes", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
        options.add_argument("--behind", type=int, default=10, help="small nights in the corpus")
        given = options.parse_args()
        main(given.sizes, given.behind)
