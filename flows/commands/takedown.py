"""`id2 takedown`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import TakedownRequest

if TYPE_CHECKING:
    from id2.results import TakedownReport

app = typer.Typer()


@command(
    app,
    id2.takedown,
    "flows.takedown:takedown",
    epilog="Example: id2 takedown --out results --uri gs://inbox/2026-11-25/7.jpg --reason 'request 4711'",
)
def show(report: TakedownReport, request: TakedownRequest) -> None:
    """Print what was removed, and what is left to do."""
    console.echo_lines(_lines(report))
    typer.echo(report.out)


def _lines(report: TakedownReport) -> Iterator[str]:
    done = "admitted again" if report.reinstated else "taken down"
    for image_id, uris in report.pictures.items():
        yield f"{done}: {image_id} ({', '.join(uris) or 'never seen here'})"
    for name, count in report.rows.items():
        yield f"{name}: {count:,} rows removed"
    if report.files or report.translations:
        yield f"{report.files:,} older files and {report.translations:,} translations deleted"
    for folder, state in report.reports.items():
        yield f"report in {folder}: {state}"
    for uri in report.elsewhere:
        yield f"warning: {uri} still has it: repeat this command with the --out that it is in"
    if report.others_at_work:
        yield "warning: other runs are at work there: repeat this command when they have ended"
