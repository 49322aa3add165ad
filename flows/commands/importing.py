"""`id2 import-oripid`: latents that others have published, for training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands import console

app = typer.Typer()

_WHY = {
    "name_does_not_fit": "names that do not fit",
    "same_name_twice": "names that stand there twice",
    "origin_not_there": "translations without their origin",
    "no_translation_there": "origins without a translation",
}


@app.command(
    "import-oripid",
    epilog="Example: id2 import-oripid --features sd2_d_multi_feature --out oripid; then id2 train "
    "--embeddings oripid --translations oripid --method both --out w-sd2 trains W for --encoder sd2.",
)
def import_oripid(
    features: Annotated[
        str,
        typer.Option(
            help="Folder or bucket prefix of OriPID's training features: one .npy a picture, T000000_0.npy "
            "the origin, T000000_1.npy and so on its translations."
        ),
    ],
    out: console.Out,
    encoder_id: Annotated[
        str,
        typer.Option(
            help="What made the latents. NAME-sample says that they are samples of NAME's posterior; a W "
            "trained on them fits --encoder NAME."
        ),
    ] = "sd2-sample",
    transform: Annotated[
        str | None,
        typer.Option(
            help="Also write descriptors by this W (or none: of raw latents, 16 kB each), for a search among "
            "these latents. Training reads none.  \\[default: no descriptors]"
        ),
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Make OUT/embeddings, OUT/rejects and OUT/translations of published latents: id2 train takes OUT."""
    from flows import imports as flow

    summary = console.run(lambda: flow.import_oripid(features, out, encoder_id, transform))
    if as_json:
        console.print_json(summary)
        return
    console.tell(told(summary))
    typer.echo(summary["out"])


def told(summary: dict[str, Any]) -> list[str]:
    """What was imported, for a person; `summary` is an `imports.Imported`."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["reasons"].items())
    lines = [
        f"{'nothing new to do; ' if summary['resumed'] else ''}{summary['embedded']:,} latents and "
        f"{summary['rejected']:,} rejects{f' ({reasons})' if reasons else ''} of {summary['listed']:,} files",
        f"{summary['translations']:,} translations of {summary['origins']:,} origins",
    ]
    return lines + [
        f"left out: {count:,} {_WHY.get(why, why)}, for example {summary['examples'][why]}"
        for why, count in summary["left_out"].items()
    ]
