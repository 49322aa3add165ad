"""`id2 finetune`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import FinetuneRequest

if TYPE_CHECKING:
    from id2.results import FinetuneReport

app = typer.Typer()


@command(
    app,
    id2.finetune,
    "flows.finetune:finetune",
    epilog="Example: id2 finetune --originals originals --translations translated --backbone vit-b --out "
    "tuned. Then id2 scan --encoder tuned/vit-b-cosface --transform none …",
)
def show(report: FinetuneReport, request: FinetuneRequest) -> None:
    """Print what the backbone was trained on, and the directory that --encoder takes."""
    console.echo_lines(report_lines(report, request))
    typer.echo(report.encoder)


def report_lines(report: FinetuneReport, request: FinetuneRequest) -> Iterator[str]:
    """Yield the pictures of a training, and how many were skipped and why."""
    yield f"{report.pictures:,} pictures of {report.origins:,} origins"
    if report.left_out.origins:
        yield f"skipped: {report.left_out.origins:,} origins that are not in {request.originals}"
    if report.left_out.translations:
        yield f"skipped: {report.left_out.translations:,} translations whose pictures are missing"
