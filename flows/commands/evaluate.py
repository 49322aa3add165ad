"""`id2 evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import EvaluateRequest

if TYPE_CHECKING:
    from id2.results import EvaluateReport

app = typer.Typer()


@command(
    app,
    id2.evaluate,
    "flows.evaluate:evaluate",
    epilog="Example: id2 evaluate --reference dataset:originals-id2 "
    "--queries dataset:uploads-id2 --truth truth.csv "
    "--transform none --transform w/W.safetensors --out measured",
)
def show(report: EvaluateReport, request: EvaluateRequest) -> None:
    """Print the measures as a table, and where it is."""
    from id2.jobs import evaluate

    if report.resumed:
        console.echo_lines(["nothing new to do"])
    console.echo_lines([evaluate.table(request.out)])
    console.echo_lines(console.truth_lines(report.queries_not_found, report.origins_not_in_reference))
    typer.echo(f"{request.out.rstrip('/')}/metrics.md")
