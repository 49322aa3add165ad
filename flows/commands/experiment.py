"""`id2 experiment`: the tables and figures of the paper."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands import console

app = typer.Typer()

DATA = "data"


@app.command(
    epilog="Examples: id2 experiment data --photos photos --data bench makes a small OriPID with the bundled "
    "models; id2 experiment t3 open --data bench --out results runs two experiments on it; "
    "id2 experiment all --data bench --out results --page results.md runs all that can run.",
)
def experiment(
    names: Annotated[
        list[str],
        typer.Argument(
            help="t1, t2, t3, t4, t5, t6, t7, t8, t11, f7, f8, existence, open, manual; all; or data, which "
            "makes what the others are measured on."
        ),
    ],
    data: Annotated[str, typer.Option(help="Bench folder, see docs/experiments.md.")],
    out: Annotated[str, typer.Option(help="Where tables and plots go.")] = "results",
    photos: Annotated[
        str | None, typer.Option(help="For `data`: 3,500 photos or more, with a captions.csv.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="For `data`: an encoder beside `mini`, for Tables 2, 4 and 5.")
    ] = None,
    name: Annotated[str, typer.Option(help="For `data`: what that encoder is called in tables.")] = "",
    page: Annotated[str | None, typer.Option(help="Markdown file to join all results in.")] = None,
    passes: Annotated[
        float | None,
        typer.Option(help="Passes over the data of every gradient descent.  \\[default: the paper's 12]"),
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Measure what the paper measures, on OriPID or on a small one made by the bundled models."""
    from flows import experiment as flow
    from flows import progress
    from id2core import encoders
    from id2core.experiments.methods import PAPER_PASSES

    if names == [DATA]:
        if photos is None:
            raise typer.BadParameter("`data` needs --photos")
        if bool(encoder) != bool(name):
            raise typer.BadParameter("give --encoder and --name together")
        console.run(lambda: flow.make_data(photos, data, encoder or encoders.MINI, name))
        console.stderr.print(
            f"{data} is ready: id2 experiment all --data {data} --out {out}", highlight=False
        )
        return
    found = console.run(
        lambda: flow.experiment(names, data, out, page, passes or PAPER_PASSES, progress.reporter())
    )
    if as_json:
        console.print_json(found)
        return
    for text in found["tables"].values():
        typer.echo(text)
