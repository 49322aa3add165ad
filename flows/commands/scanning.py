"""`id2 scan`, `id2 demo` and `id2 report`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands import console

app = typer.Typer()


@app.command(
    context_settings=console.BEAM,
    epilog="Examples: id2 scan --reference originals --queries uploads --out results; the same in worker "
    "processes, with `-- --direct_running_mode=multi_processing --direct_num_workers=4` at the end.",
)
def scan(
    context: typer.Context,
    reference: Annotated[str, typer.Option(help="Protected originals: images, or an embeddings data set.")],
    queries: Annotated[str, typer.Option(help="Uploads: images, or an embeddings data set.")],
    out: console.Out,
    encoder: console.Encoder = None,
    transform: console.Transform = None,
    top_k: console.TopK = None,
    truth: Annotated[
        str | None, typer.Option(help="CSV or Parquet query_uri,reference_uri: adds accuracy to the report.")
    ] = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Compare uploads with protected originals; write OUT/report.html, OUT/summary.json and OUT/matches."""
    from flows import scan as flow

    console.settings(encoder=encoder, transform=transform, top_k=top_k)
    arguments = console.beam_arguments(runner, context.args)
    summary = console.run(
        lambda: flow.scan(
            reference=reference,
            queries=queries,
            out=out,
            encoder=encoder,
            transform=transform,
            top_k=top_k,
            truth_file=truth,
            beam_arguments=arguments,
        )
    )
    _announce(summary, out, as_json)


@app.command()
def demo(
    out: console.Out,
    as_json: console.AsJson = False,
) -> None:
    """Scan the bundled demo: 200 uploads, 80 of them AI translations, against 200 protected tiles."""
    from importlib import resources

    from flows import scan as flow

    with resources.as_file(resources.files("id2core") / "data" / "demo") as data:
        summary = console.run(
            lambda: flow.scan(
                reference=str(data / "references"),
                queries=str(data / "uploads"),
                out=out,
                truth_file=str(data / "truth.csv"),
            )
        )
    _announce(summary, out, as_json)


def _announce(summary: dict[str, Any], out: str, as_json: bool) -> None:
    if as_json:
        console.print_json(summary)
        return
    counts = summary["counts"]
    console.stderr.print(
        f"{counts['queries']} uploads compared with {counts['references']} originals; "
        f"{counts['query_rejects'] + counts['reference_rejects']} files rejected",
        highlight=False,
    )
    if summary.get("accuracy") is not None:
        console.stderr.print(
            f"Acc {summary['accuracy']:.1%} of {summary['accuracy_of']} uploads with an origin",
            highlight=False,
        )
    typer.echo(f"{out.rstrip('/')}/report.html")


@app.command()
def report(
    uri: Annotated[str, typer.Argument(help="--out of a finished scan.")],
    max_pairs: Annotated[int, typer.Option(min=1, help="Uploads shown with pictures.")] = 200,
    as_json: console.AsJson = False,
) -> None:
    """Write report.html and summary.json of a finished scan again, from its data sets."""
    from flows import scan as flow

    summary = console.run(lambda: flow.rewrite_report(uri, max_pairs))
    _announce(summary, uri, as_json)
