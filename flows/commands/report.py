"""`id2 report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands.options import command
from flows.commands.scan import announce
from id2.requests import ReportRequest

if TYPE_CHECKING:
    from id2.results import ScanSummary

app = typer.Typer()


@command(app, id2.report, "flows.report:report", epilog="Example: id2 report results --max-pairs 1000")
def show(summary: ScanSummary, request: ReportRequest) -> None:
    """Print the summary, and where the report is."""
    announce(summary, request.out)
