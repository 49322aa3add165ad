"""`id2 translate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import TranslateRequest

if TYPE_CHECKING:
    from id2.results import StagedJob, SubmittedJob, TranslateSummary

app = typer.Typer()


@command(
    app,
    id2.translate,
    "flows.translate:translate",
    epilog="Example: id2 translate --images originals --model mini-a --strength 0.5 --prompts captions "
    "--out translated. Then id2 scan --reference originals --queries translated/pictures --truth "
    "translated/truth.csv --out results measures how many origins are found.",
)
def show(summary: TranslateSummary | StagedJob | SubmittedJob, request: TranslateRequest) -> None:
    """Print the counts; of a job that nobody waits for, its template or its id."""
    from id2 import results

    if not isinstance(summary, results.TranslateSummary):
        console.echo_job(summary)
        return
    console.echo_lines(
        [
            f"{'nothing new to do; ' if summary.resumed else ''}{summary.translated} of {summary.listed} "
            f"originals translated by {summary.model} ({summary.pictures} pictures), {summary.rejected} "
            f"rejected: {summary.out}"
        ]
    )
    typer.echo(summary.truth)
