"""`id2 demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table

import id2
from flows.commands import console
from flows.commands.options import command
from flows.commands.scan import announce
from id2.requests import DemoRequest

if TYPE_CHECKING:
    from id2.results import DemoComparison, DemoSummary

app = typer.Typer()


@command(app, id2.demo, "flows.demo:demo", epilog="Example: id2 demo --out out/demo")
def show(summary: DemoSummary, request: DemoRequest) -> None:
    """Print what W adds to raw latents, the summary, and where the report is."""
    console.stderr.print(_table(summary.compared))
    announce(summary, request.out)


def _table(rows: list[DemoComparison]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, caption="raw: latents as they are; W: the bundled transform, scores normalized"
    )
    for head in ("", "uploads", "Acc raw", "Acc W", "µAP raw", "µAP W"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        shares = (row.accuracy_raw, row.accuracy, row.micro_ap_raw, row.micro_ap)
        table.add_row(row.kind, str(row.uploads), *("–" if s is None else f"{s:.1%}" for s in shares))
    return table
