"""`id2 train`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import TrainRequest

if TYPE_CHECKING:
    from id2.results import TrainReport

app = typer.Typer()


@command(
    app,
    id2.train,
    "flows.train:train",
    epilog="Example: id2 train --embeddings originals-id2 --embeddings translated-id2 --translations "
    "translated --method both --out w. On several GPUs: torchrun --no-python --nproc-per-node 8 id2 train …",
)
def show(report: TrainReport, request: TrainRequest) -> None:
    """Print what W was trained on and how it validates, and where it is."""
    console.echo_lines(report_lines(report))
    typer.echo(report.W)


def report_lines(report: TrainReport) -> Iterator[str]:
    """Yield the data and the validation of a training, a line each."""
    yield "nothing new to do" if report.resumed else "trained"
    data, validation = report.data, report.validation
    skipped = ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in data.left_out.model_dump().items() if n
    )
    yield f"{data.latents:,} latents of {data.origins:,} origins; skipped: {skipped or 'nothing'}"
    if validation:
        reached = ", ".join(f"{name} {m.mean_ap:.1%}" for name, m in validation.methods.items())
        yield (
            f"mAP of {validation.queries:,} translations of {validation.origins:,} held-out origins: "
            f"{reached}"
        )
