"""`id2 index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import IndexRequest

if TYPE_CHECKING:
    from id2.results import IndexReport

app = typer.Typer()


@command(
    app,
    id2.index,
    "flows.index:index",
    epilog="Examples: id2 index --out results --index RR448,IVF2048,RaBitQ. Then search by it: id2 scan "
    "--reference originals --queries uploads --out results --index RR448,IVF2048,RaBitQ",
)
def show(report: IndexReport, request: IndexRequest) -> None:
    """Print what the index takes, and what it finds."""
    lines = [
        f"{report.rows:,} references have codes of {report.code_bytes} bytes, {report.encoded:,} of them new",
        f"A worker holds {report.memory_bytes:,} bytes of each, an exact search {report.flat_bytes:,}",
    ]
    if report.recall_10 is not None and report.recall_1 is not None:
        lines.append(
            f"It finds {report.recall_10:.1%} of the 10 best references, "
            f"and {report.recall_1:.1%} of the best: "
            f"{report.measured_queries:,} of {report.measured_rows:,} references were asked, with "
            f"{report.probes} lists and {report.depth} candidates for each"
        )
    console.echo_lines(lines)
    typer.echo(report.place)
