"""`id2 embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import EmbedRequest

if TYPE_CHECKING:
    from id2.results import EmbedSummary, StagedJob

app = typer.Typer()


@command(
    app,
    id2.embed,
    "flows.embed:embed",
    epilog="Example: id2 embed --images gs://corpus/originals --out gs://corpus/id2 --encoder sd2",
)
def show(summary: EmbedSummary | StagedJob, request: EmbedRequest) -> None:
    """Print the counts; of a job that is only staged, the place of its template."""
    from id2 import results

    if not isinstance(summary, results.EmbedSummary):
        typer.echo(summary.template)
        return
    console.echo_lines(
        [
            f"{'nothing new to do; ' if summary.resumed else ''}{summary.embedded} embedded, "
            f"{summary.rejected} rejected of {summary.listed} listed, transform {summary.transform_from}: "
            f"{request.out}"
        ]
    )
