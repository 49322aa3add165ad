"""Write the figures of docs/estimate.md: rates, examples, and the simulation behind the largest.

Run `python -m factory.estimate_page` after `python -m benchmarks.rates`. The examples are the output of
`id2 estimate`. The simulation takes the tasks of the largest one. `--print` prints the sections and writes
nothing.
"""

from __future__ import annotations

import argparse
import io
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

import id2
from flows.cli import app
from id2core.estimates import simulation
from id2core.estimates.rates import CPU, MEANINGS, ON_A_CARD, RateFile
from id2core.estimates.report import SearchShape
from id2core.estimates.simulation import Cluster, Run, Tasks

PAGE = Path(__file__).parent.parent / "docs" / "estimate.md"
EXAMPLES = (
    "id2 estimate --references 1e6 --queries 1e5",
    "id2 estimate --references 1e8 --queries 1e6 --engine flink --workers 20 --vcpus 16 --shard-memory 16384 "
    "--gpu h100 --encoder sd2 --views none",
    "id2 estimate --references 1e10 --queries 1e7 --new-references 1e6 --engine dataflow --workers 1000 "
    "--vcpus 16 --shard-memory 32768 --gpu h100 --encoder sd2 --views none --gpu-hour-price 3 "
    "--vcpu-hour-price 0.04 --gb-month-price 0.02",
)
# The same corpus, searched exactly and by a compressed index.
INDEXED = tuple(
    "id2 estimate --references 1e8 --queries 1e6 --engine flink --workers 20 --vcpus 16 --shard-memory 16384 "
    f"--encoder sd2{index}"
    for index in ("", " --index RR448,IVF16384,RaBitQ", " --index OPQ120_480,IVF16384,PQ120x4")
)
WORKERS, RUNS = 1000, 20
# What goes wrong in each line of the table.
TROUBLE: dict[str, Cluster] = {
    "equal workers, none lost": Cluster(WORKERS),
    "stragglers": Cluster(WORKERS, 0.3, 0.1),
    "stragglers, a worker lost every 20 hours": Cluster(WORKERS, 0.3, 0.1, 0.05, 180.0),
    "stragglers, a worker lost every 2 hours": Cluster(WORKERS, 0.3, 0.1, 0.5, 180.0),
    "stragglers of twice the spread, a worker lost every 2 hours": Cluster(WORKERS, 0.6, 0.2, 0.5, 180.0),
}


def output(command: str) -> str:
    """Return what a command prints."""
    text = io.StringIO()
    with redirect_stdout(text):
        app(shlex.split(command)[1:], standalone_mode=False)
    return text.getvalue()


def sessions(commands: Iterable[str]) -> str:
    """Return each command with what it prints."""
    return "\n\n".join(f"```\n$ {command}\n{output(command)}```" for command in commands)


def rates_table() -> str:
    """Return the rates of the bundled file, and their machines."""
    file = RateFile.load()
    lines = []
    for device, held in file.devices.items():
        machine, meanings = held.machine, MEANINGS if device == CPU else ON_A_CARD
        note = f" {machine.note}." if machine.note else ""
        lines += [f"`{device}`: {machine.name}, {machine.vcpus} cores, {machine.measured}.{note}", ""]
        lines += ["| rate | value | |", "|---|---:|---|"]
        for name, meaning in meanings.items():
            found = _found(name, held.rates) or {name: None}
            lines += [
                f"| `{each}` | {'not measured' if value is None else f'{value:.3g}'} | {meaning} |"
                for each, value in found.items()
            ]
        lines.append("")
    return "\n".join(lines).strip()


def _found(name: str, rates: dict[str, float]) -> dict[str, float | None]:
    """Return the rates of a name, or of all that begin with it."""
    start = name.removesuffix("*")
    return {
        each: value
        for each, value in rates.items()
        if each == name or (start != name and each.startswith(start))
    }


def largest() -> SearchShape:
    """Return the nightly search of the largest example."""
    words = shlex.split(EXAMPLES[-1])[2:]
    options = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    return id2.estimate(**options).search  # type: ignore[no-any-return]


def simulated(shape: SearchShape) -> str:
    """Return the table of the simulation of a search."""
    if shape.task_seconds is None or shape.load_seconds is None:
        return "Not measured: a rate of the search is missing."
    tasks = Tasks(shape.tasks, shape.load_seconds, shape.task_seconds - shape.load_seconds)
    ideal = simulation.ideal_seconds(tasks, WORKERS)
    lines = [
        f"{tasks.count:,} tasks of {tasks.seconds:.3g} s, of which {tasks.load_seconds:.3g} s load a shard, "
        f"on {WORKERS:,} workers. Ideal wall time: {ideal / 3600:.3g} h. Each line is of {RUNS} runs.",
        "",
        "| | p50 | p95 | p95 ÷ ideal | workers lost | shards loaded again | work lost |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            _row(name, tasks, simulation.repeat(tasks, cluster, RUNS), ideal)
            for name, cluster in TROUBLE.items()
        ),
    ]
    return "\n".join(lines)


def _row(name: str, tasks: Tasks, runs: list[Run], ideal: float) -> str:
    p50, p95 = np.percentile([run.wall_seconds for run in runs], [50, 95])
    losses, loads, lost = (
        float(np.mean([getattr(run, field) for run in runs])) for field in ("losses", "loads", "lost_seconds")
    )
    return (
        f"| {name} | {p50 / 3600:.3g} h | {p95 / 3600:.3g} h | {p95 / ideal:.2f} | {losses:,.0f} | "
        f"{loads - tasks.count:,.0f} | {lost / 3600:,.3g} worker-hours |"
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "rates": rates_table,
    "examples": lambda: sessions(EXAMPLES),
    "indexed": lambda: sessions(INDEXED),
    "simulation": lambda: simulated(largest()),
}


def fill(page: str, name: str, text: str) -> str:
    """Return the page with another text between the markers of a section."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE} has lost its markers {begin} and {end}: put them back")
    return f"{before}{begin}\n{text}\n{end}{after}"


def sections() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each section."""
    for name, write in SECTIONS.items():
        yield name, write()


def main() -> None:
    """Write the page, or print its sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the sections and write nothing")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name, text in sections():
        if options.print:
            print(text, end="\n\n")
        page = fill(page, name, text)
    if not options.print:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
