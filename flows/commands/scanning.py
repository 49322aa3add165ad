"""`id2 scan`, `id2 demo` and `id2 report`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from flows.commands import console

app = typer.Typer()


@app.command(
    context_settings=console.BEAM,
    epilog="Examples: id2 scan --reference originals --queries uploads --out results; the same in worker "
    "processes, with `-- --direct_running_mode=multi_processing --direct_num_workers=4` at the end.",
)
def scan(
    context: typer.Context,
    reference: console.Reference,
    queries: console.Queries,
    out: console.Out,
    encoder: console.Encoder = None,
    transform: console.Transform = None,
    top_k: console.TopK = None,
    calibration: console.Calibration = None,
    background: console.Background = None,
    truth: Annotated[
        str | None,
        typer.Option(
            help="CSV or Parquet query_uri,reference_uri (empty = no origin): adds Acc, mAP, µAP and R@P90 "
            "to the report; a third column, group, has them per kind of upload."
        ),
    ] = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Compare uploads with protected originals; write OUT/report.html, OUT/summary.json and OUT/matches.

    With a calibration every pair gets a verdict: match, review or none. The false-positive rate beside it is
    the share of uploads without any origin here that would get it too.
    """
    from flows import scan as flow

    console.settings(encoder=encoder, transform=transform, top_k=top_k, calibration=calibration)
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
            calibration=calibration,
            background=background,
            beam_arguments=arguments,
        )
    )
    _announce(summary, out, as_json)


@app.command()
def demo(
    out: console.Out,
    as_json: console.AsJson = False,
) -> None:
    """Scan the bundled demo: 200 uploads, 80 of them AI translations, against 200 protected tiles.

    The bundled W has learned from translations by mini-a and has never seen one by mini-b.
    """
    from flows import demo as flow

    summary = console.run(lambda: flow.run(out))
    if not as_json:
        console.stderr.print(_comparison(summary["compared"]))
    _announce(summary, out, as_json)


def _comparison(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, caption="raw: latents as they are; W: the bundled transform, scores normalized"
    )
    for head in ("", "uploads", "Acc raw", "Acc W", "µAP raw", "µAP W"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        shares = ("accuracy_raw", "accuracy", "micro_ap_raw", "micro_ap")
        table.add_row(row["kind"], str(row["uploads"]), *(f"{row[key]:.1%}" for key in shares))
    return table


def _announce(summary: dict[str, Any], out: str, as_json: bool) -> None:
    if as_json:
        console.print_json(summary)
        return
    console.tell(_lines(summary))
    typer.echo(f"{out.rstrip('/')}/report.html")


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """What a scan found, in a few lines."""
    counts = summary["counts"]
    yield (
        f"{counts['queries']} uploads compared with {counts['references']} originals; "
        f"{counts['query_rejects'] + counts['reference_rejects']} files rejected"
    )
    if used := summary.get("transform"):
        yield f"transform: {used['id']} ({used['from']})" if used["from"] != "none" else "transform: none"
    if judged := summary.get("calibration"):
        yield _verdicts(summary["verdicts"], judged)
    if summary.get("accuracy") is not None:
        others = summary.get("measures", {})
        more = [_measure("mAP", others.get("mean_ap")), _measure("µAP", others.get("micro_ap"))]
        yield ", ".join(
            [
                f"Acc {summary['accuracy']:.1%} of {summary['accuracy_of']} uploads with an origin",
                *filter(None, more),
            ]
        )


def _verdicts(found: dict[str, int], judged: dict[str, Any]) -> str:
    rate = judged["verdicts"]["match"]
    words = ", ".join(f"{n} {verdict}" for verdict, n in found.items()) or "no verdicts"
    if rate["false_positive_rate"] is None:
        return words
    return (
        f"{words}; false-positive rate of a match {100 * rate['false_positive_rate']:.3g}% "
        f"({judged['confidence']:.0%} interval {100 * rate['low']:.3g} to {100 * rate['high']:.3g}%), "
        f"calibration {judged['calibration_id']} ({judged['from']})"
    )


def _measure(name: str, measure: dict[str, float | None] | None) -> str | None:
    return f"{name} {measure['value']:.3f}" if measure and measure["value"] is not None else None


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
