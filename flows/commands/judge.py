"""`id2 judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from flows.commands.scan import NO_PAIRS
from id2.requests import JudgeRequest

if TYPE_CHECKING:
    from id2.results import JudgeReport

app = typer.Typer()


@command(
    app,
    id2.judge,
    "flows.judge:judge",
    epilog="Examples: id2 judge --out results --calibration w/calibration.json. The step back: id2 judge "
    "--out results --back. Two channels by a measured rate: id2 judge --out results --calibration "
    "w/calibration.json --also-calibration pdq.json --joint-calibration joint.json",
)
def show(report: JudgeReport, request: JudgeRequest) -> None:
    """Print how many pairs got which verdict, and by which calibration."""
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(report.verdicts.items()))
    counted = f"{report.pairs:,} pairs judged" + (f": {counts}" if counts else "")
    lines = [f"{counted}; calibration {report.calibration_id}, before it {report.before or 'none'}"]
    if not report.pairs and not report.skipped:
        lines.append(NO_PAIRS)
    if report.skipped:
        lines.append(f"{report.skipped:,} pairs of uploads that are gone keep the verdict they had")
    console.echo_lines(lines)
    typer.echo(report.out)
