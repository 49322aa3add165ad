"""`id2 experiment`: the tables and figures of the paper."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands import console, importing
from id2core.encoders.hub import MINI

app = typer.Typer()

DATA = "data"
OF_ORIPID = "sd2"  # the encoder whose latents OriPID publishes


@app.command(
    epilog="Examples: id2 experiment data --photos photos --data bench makes a small OriPID with the bundled "
    "models; id2 experiment data --oripid OriPID --data bench lays out the real one; "
    "id2 experiment t3 open --data bench --out results runs two experiments on it; "
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
    oripid: Annotated[
        str | None,
        typer.Option(
            help="For `data`, instead of --photos: OriPID as it was downloaded and unpacked, with "
            "sd2_d_multi_feature, references and queries/MODEL."
        ),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="With --oripid: its training latents, where they lie elsewhere.")
    ] = None,
    seed_edits: Annotated[
        str | None, typer.Option(help="With --oripid: SEED-Data-Edit, unpacked, for edits by people.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="For `data`: with --name an encoder beside the first, for Tables 2, 4 and 5; without, with "
            "--oripid, the first.  \\[default: mini; with --oripid sd2]"
        ),
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
    from id2core.experiments.methods import PAPER_PASSES

    if names == [DATA]:
        _check_sources(photos, oripid, encoder, name)
        _check_parts(oripid, features, seed_edits, name)
        made = None
        if oripid:
            chosen = encoder or OF_ORIPID
            made = console.run(
                lambda: flow.make_oripid_data(oripid, data, chosen, name, features, seed_edits)
            )
        else:
            console.run(lambda: flow.make_data(photos, data, encoder or MINI, name))
        if as_json:
            console.print_json(made or {"data": data})
            return
        ready = f"{data} is ready: id2 experiment all --data {data} --out {out}"
        console.tell([*_of_oripid(made), ready])
        return
    found = console.run(
        lambda: flow.experiment(names, data, out, page, passes or PAPER_PASSES, progress.reporter())
    )
    if as_json:
        console.print_json(found)
        return
    for text in found["tables"].values():
        typer.echo(text)


def _check_sources(photos: str | None, oripid: str | None, encoder: str | None, name: str) -> None:
    if bool(photos) == bool(oripid):
        raise typer.BadParameter("`data` needs --photos or --oripid, one of them")
    if (name and not encoder) or (photos and encoder and not name):
        raise typer.BadParameter("give --encoder and --name together")


def _check_parts(oripid: str | None, features: str | None, seed_edits: str | None, name: str) -> None:
    if (features or seed_edits) and not oripid:
        raise typer.BadParameter("--features and --seed-edits go with --oripid")
    if features and name:
        raise typer.BadParameter(
            "--features are of the first encoder, and there are none of another: leave out --features, or "
            "--name"
        )


def _of_oripid(made: dict[str, Any] | None) -> list[str]:
    """What a bench of OriPID was made of."""
    if made is None:
        return []
    lines = [f"train: {line}" for line in importing.told(made["training"])] if made["training"] else []
    lines.append("references: " + ", ".join(f"{count:,} {role}" for role, count in made["photos"].items()))
    for role, counts in made["queries"].items():
        lost = {**counts["dropped"], "whose reference could not be read": counts["without_reference"]}
        notes = ", ".join(f"{count:,} {why}" for why, count in lost.items() if count)
        lines.append(f"{role}: {counts['queries']:,} queries{f' ({notes})' if notes else ''}")
    return lines
