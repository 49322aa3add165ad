"""`id2 check-calibration`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import CheckCalibrationRequest

if TYPE_CHECKING:
    from id2.results import CalibrationCheck

app = typer.Typer()


@command(
    app,
    id2.check_calibration,
    "flows.check_calibration:check_calibration",
    epilog="Example: id2 check-calibration --out checked. Without labeled uploads, it measures the demo.",
)
def show(check: CalibrationCheck, request: CheckCalibrationRequest) -> None:
    """Print the rates and Acc, and where they are."""
    lines = [f"calibration {check.calibration_id} holds"]
    for verdict, rate in check.verdicts.items():
        if rate.measured is not None and rate.stated is not None:
            lines.append(
                f"false-positive rate of {verdict}: {console.percent(rate.measured)} of {rate.queries} "
                f"uploads without an origin, stated {console.percent(rate.stated)}"
            )
    if check.accuracy is not None:
        lines.append(f"Acc {check.accuracy:.1%}")
    console.echo_lines(lines)
    typer.echo(f"{request.out.rstrip('/')}/check.json")
