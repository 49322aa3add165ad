"""`id2 compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import CompactRequest

if TYPE_CHECKING:
    from id2.results import CompactReport

app = typer.Typer()


@command(app, id2.compact, "flows.compact:compact", epilog="Example: id2 compact --out results")
def show(report: CompactReport, request: CompactRequest) -> None:
    """Print files and bytes before and after, of each data set that changed."""
    changed = [d for d in report.datasets if d.merged]
    lines = [
        f"{d.dataset}: {d.files_before:,} files, now {d.files_after:,}; {_size(d.bytes_before)}, now "
        f"{_size(d.bytes_after)}"
        for d in changed
    ]
    console.echo_lines([*lines, f"superseded files that are still kept: {report.kept_files:,}"])
    typer.echo(report.out)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
