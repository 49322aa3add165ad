"""`id2 nightly`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from flows.commands.scan import NO_VERDICTS
from id2.requests import NightlyRequest

if TYPE_CHECKING:
    from id2.results import NightlySummary

app = typer.Typer()


@command(
    app,
    id2.nightly,
    "flows.nightly:nightly",
    epilog="Example: id2 nightly --reference gs://corpus/originals --queries 'gs://inbox/{date}' --out "
    "gs://results/nightly",
)
def show(summary: NightlySummary, request: NightlyRequest) -> None:
    """Print what the night did, and where its report is."""
    lines = [
        f"{summary.new_uploads} new uploads and {summary.new_references} new references, "
        f"{summary.rejected} rejected; "
        f"{summary.uploads} uploads and {summary.references} references in all",
        f"{summary.pairs} pairs scored, {summary.pairs_stored} stored",
    ]
    if summary.verdicts:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
        lines.append(f"uploads of this night's pairs: {counts}")
        for name, verdicts in summary.channels.items():
            lines.append(f"channel {name}: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
    elif summary.pairs_stored:
        lines.append(NO_VERDICTS)
    if summary.back_scan_open:
        lines.append(f"{summary.back_scan_open} reference segments wait for the rest of their back-scan")
    console.echo_lines(lines)
    typer.echo(summary.report)
