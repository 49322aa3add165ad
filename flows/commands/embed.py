"""`id2 embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import EmbedRequest

if TYPE_CHECKING:
    from id2.results import EmbedSummary, StagedJob, SubmittedJob

app = typer.Typer()


@command(
    app,
    id2.embed,
    "flows.embed:embed",
    epilog="Example: id2 embed --images gs://corpus/originals --out gs://corpus/id2 --encoder sd2",
)
def show(summary: EmbedSummary | StagedJob | SubmittedJob, request: EmbedRequest) -> None:
    """Print the counts; of a job that nobody waits for, its template or its id."""
    from id2 import results

    if not isinstance(summary, results.EmbedSummary):
        console.echo_job(summary)
        return
    console.echo_lines(
        [
            f"{'nothing new to do; ' if summary.resumed else ''}{summary.embedded} embedded, "
            f"{summary.rejected} rejected of {summary.listed} listed, transform {summary.transform_from}: "
            f"{request.out}"
        ]
    )
