"""`id2 import-oripid`: latents that others have published, for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import ImportOripidRequest

if TYPE_CHECKING:
    from id2.results import ImportSummary

app = typer.Typer()
_REASONS = {
    "name_does_not_fit": "names that do not fit",
    "same_name_twice": "names that occur twice",
    "origin_not_there": "translations without their origin",
    "no_translation_there": "origins without a translation",
}


@command(
    app,
    id2.import_oripid,
    "flows.import_oripid:import_oripid",
    epilog="Example: id2 import-oripid --features sd2_d_multi_feature --out oripid. Then id2 train "
    "--embeddings oripid --translations oripid --method both --out w-sd2 trains W for --encoder sd2.",
)
def show(summary: ImportSummary, request: ImportOripidRequest) -> None:
    """Print the counts, and where the data sets are."""
    console.echo_lines(summary_lines(summary))
    typer.echo(summary.out)


def summary_lines(summary: ImportSummary) -> Iterator[str]:
    """Yield what was imported, and what was skipped and why."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.reasons.items())
    yield (
        f"{'nothing new to do; ' if summary.resumed else ''}{summary.embedded:,} latents and "
        f"{summary.rejected:,} rejects{f' ({reasons})' if reasons else ''} of {summary.listed:,} files"
    )
    yield f"{summary.translations:,} translations of {summary.origins:,} origins"
    for reason, count in summary.left_out.items():
        yield f"skipped: {count:,} {_REASONS.get(reason, reason)}, for example {summary.examples[reason]}"
