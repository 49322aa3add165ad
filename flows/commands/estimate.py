"""`id2 estimate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands.options import command
from id2.requests import EstimateRequest
from id2core.defaults import NONE

if TYPE_CHECKING:
    from id2.results import EstimateReport

app = typer.Typer()
NOT_MEASURED, NOT_REACHED = "not measured", "not reached"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")


@command(
    app,
    id2.estimate,
    "flows.estimate:estimate",
    epilog="Example: id2 estimate --references 1e9 --queries 1e7 --engine dataflow --workers 100 --gpu h100",
)
def show(report: EstimateReport, request: EstimateRequest) -> None:
    """Print the stages, the data sets, and what the figures rest on."""
    for line in lines(report):
        typer.echo(line)


def lines(report: EstimateReport) -> Iterator[str]:
    """Yield the estimate as text."""
    yield from _aligned(_stage_rows(report))
    yield ""
    yield from _aligned(
        [("data set", "stored"), *((name, _size(held)) for name, held in report.bytes.items())]
    )
    if report.storage_cost is not None:
        yield f"cost of a month, without staged candidates: {report.storage_cost:,.2f}"
    yield ""
    yield from _search_lines(report)
    yield from _notes(report)


def _stage_rows(report: EstimateReport) -> Iterator[tuple[str, ...]]:
    priced = any(stage.cost is not None for stage in report.stages)
    head = ("stage", "when", "workers", "GPU-hours", "vCPU-hours", "wall time", "of that, one process")
    yield (*head, "cost") if priced else head
    for stage in report.stages:
        unknown = NOT_REACHED if stage.reaches_target is False else NOT_MEASURED
        row = (
            stage.name,
            stage.when,
            f"{stage.workers:,}" if stage.workers is not None else unknown,
            _hours(stage.gpu_hours, unknown),
            _hours(stage.vcpu_hours, unknown),
            _duration(stage.wall_hours, unknown),
            _duration(stage.serial_hours),
        )
        cost = unknown if stage.cost is None else f"{stage.cost:,.2f}"
        yield (*row, cost) if priced else row


def _search_lines(report: EstimateReport) -> Iterator[str]:
    shape = report.search
    by = f" by {shape.index}" if shape.index else ""
    yield (
        f"search of a night{by}: {_counted(shape.shards, 'shard')} of up to {shape.shard_rows:,} references "
        f"({_size(shape.shard_bytes)} in memory), {_counted(shape.tasks, 'task')}"
    )
    yield (
        f"its largest task: {_duration(_over(shape.task_seconds))}, of which loading the shard "
        f"{_duration(_over(shape.load_seconds))}; all tasks load {_size(shape.loaded_bytes)}"
        + (f" of codes and {_size(shape.reread_bytes)} of descriptors" if shape.index else "")
    )
    if report.views != NONE:
        yield (
            f"views: {shape.looks:g} looks at an upload are assumed"
            + (f". Each meets {shape.met_numbers:,} numbers of a reference" if shape.met_numbers else "")
        )
    if shape.index and shape.probes and shape.candidates:
        lists, candidates = _counted(shape.probes, "list"), _counted(shape.candidates, "candidate")
        yield (
            f"{lists} and {candidates} of an upload in each shard are assumed: id2 index chooses both by the "
            "recall that it measures"
        )


def _notes(report: EstimateReport) -> Iterator[str]:
    for machine in (report.cpu, *([report.gpu] if report.gpu else [])):
        note = f" {machine.note}" if machine.note else ""
        yield f"rates of {machine.name}, {machine.vcpus} cores, {machine.measured}.{note}"
    if not report.engine_start_measured:
        yield (
            f"start of {report.engine}, and what it adds to each unit of work: {NOT_MEASURED}. "
            "Wall times leave it out"
        )
    for name in report.not_measured:
        yield f"{NOT_MEASURED}: {name}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _over(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


def _hours(hours: float | None, unknown: str = NOT_MEASURED) -> str:
    if hours is None:
        return unknown
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _duration(hours: float | None, unknown: str = NOT_MEASURED) -> str:
    """Return hours in the unit that a person would take."""
    if hours is None:
        return unknown
    for unit, each in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * each:
            return f"{hours / each:,.0f} {unit}" if hours >= 100 * each else f"{hours / each:.3g} {unit}"
    seconds = hours * 3600
    return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.2g} s"


def _size(count: float | None) -> str:
    """Return bytes with a decimal prefix."""
    if count is None:
        return NOT_MEASURED
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,.3g} {_UNITS[power]}" if count < 1000 else f"{count:,.0f} {_UNITS[power]}"


def _aligned(rows: Sequence[tuple[str, ...]] | Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as lines: the first column to the left, figures to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
