"""`id2 reproject`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import ReprojectRequest

if TYPE_CHECKING:
    from id2.results import ReprojectReport

app = typer.Typer()


@command(
    app,
    id2.reproject,
    "flows.reproject:reproject",
    epilog="Examples: id2 reproject --out results --transform w/W.safetensors. A trial before the switch, "
    "with the places that were printed: id2 scan --reference dataset:PLACE --queries dataset:PLACE "
    "--transform w/W.safetensors --out trial. Then the switch: id2 reproject --out results --transform "
    "w/W.safetensors --switch",
)
def show(report: ReprojectReport, request: ReprojectRequest) -> None:
    """Print what each corpus has now, and what is left to do."""
    lines = [
        f"{corpus.corpus or 'corpus'}: {corpus.projected:,} of {corpus.rows:,} rows projected; "
        f"{corpus.state}, {corpus.place}"
        for corpus in report.corpora
    ]
    lines += [f"{uri} is not below --out: reproject the --out that it is in" for uri in report.elsewhere]
    if request.switch:
        lines.append(f"From now on give --transform {request.transform}, and a calibration for it")
    elif any(corpus.state == "beside" for corpus in report.corpora):
        lines.append("Nothing uses these descriptors yet: give --switch")
    console.echo_lines(lines)
    typer.echo(report.out)
