"""`id2 train`, `id2 calibrate` and `id2 evaluate`: make a W, its thresholds, and know how good they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from flows.commands import console
from id2core.errors import GradientError, TrainError

app = typer.Typer()

Background = Annotated[
    str | None,
    typer.Option(
        help="Images or an embeddings data set of strangers, none of them a reference: scores are "
        "normalized by what an upload finds among them."
    ),
]


@app.command(
    epilog="Example: id2 train --embeddings originals-id2 --embeddings translated-id2 --translations "
    "translated --method both --out w. On several GPUs: torchrun --no-python --nproc-per-node 8 id2 train …"
)
def train(
    embeddings: Annotated[
        list[str],
        typer.Option(help="Data set of id2 embed, of originals or of translations; give all of them."),
    ],
    translations: Annotated[
        list[str], typer.Option(help="Data set of id2 translate: what is a translation of what.")
    ],
    out: console.Out,
    method: Annotated[
        Literal["closed-form", "gradient", "both"],
        typer.Option(help="gradient: the paper's; closed-form: seconds; both: the one from the other."),
    ] = "gradient",
    loss: Annotated[
        Literal["cosface", "circle", "softmax"] | None, typer.Option(help="\\[default: cosface]")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="linear, or a network (experimental): mlp-1 … mlp-7, convolution, attention.  "
            "\\[default: linear]"
        ),
    ] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Of a descriptor.  \\[default: 512]")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="\\[default: 25]")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of an epoch.  \\[default: 2000]")] = None,
    batch: Annotated[int | None, typer.Option(min=4, help="Latents of a step.  \\[default: 512]")] = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, help="Latents of one origin in it.  \\[default: 4]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.  \\[default: 0.00035]")] = None,
    negatives: Annotated[
        int | None,
        typer.Option(
            min=1, help="For very many origins: how many others take part in a step.  \\[default: all]"
        ),
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Of the weights.  \\[default: 0.9999]")] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Of the origins, held out.  \\[default: 0.1]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Epochs without a better W before the end.  \\[default: 10]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another one, another W.  \\[default: 1]")] = None,
    shrinkage: Annotated[
        float | None, typer.Option(help="Of the closed form.  \\[default: the best on held-out origins]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.  \\[default: a GPU where there is one]")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Local directory for sorted latents, shared by trainings.  \\[default: OUT/cache]"),
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Train W from stored latents; write OUT/W.safetensors and OUT/report.json. Killed, it can go on."""
    from flows import train as flow

    given = {
        "loss": loss,
        "head": head,
        "dimensions": dimensions,
        "epochs": epochs,
        "iterations": iterations,
        "batch": batch,
        "per_class": per_class,
        "lr": lr,
        "negatives": negatives,
        "ema": ema,
        "validation_share": validation_share,
        "patience": patience,
        "seed": seed,
    }
    recipe = {name: value for name, value in given.items() if value is not None}
    arguments: dict[str, Any] = {
        "embeddings": embeddings,
        "translations": translations,
        "out": out,
        "method": method,
        "recipe": recipe,
        "shrinkage": shrinkage,
        "cache": cache,
        "device": device,
    }
    try:
        plan = flow.plan(**arguments)
    except (TrainError, GradientError) as error:
        raise typer.BadParameter(str(error)) from error
    if flow.rank():  # torchrun's other processes: the first one tells, and has the flow
        flow.fit(plan)
        return
    report = console.run(lambda: flow.train(**arguments))
    if as_json:
        console.print_json(report)
        return
    console.tell(_of_training(report))
    typer.echo(report["W"])


def _of_training(report: dict[str, Any]) -> list[str]:
    data, validation = report["data"], report["validation"]
    left_out = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in data["left_out"].items() if n)
    lines = [
        "nothing new to do" if report["resumed"] else "trained",
        f"{data['latents']:,} latents of {data['origins']:,} origins; left out: {left_out or 'nothing'}",
    ]
    if validation:
        reached = ", ".join(f"{name} {m['mean_ap']:.1%}" for name, m in validation["methods"].items())
        lines.append(
            f"mAP of {validation['queries']:,} translations of {validation['origins']:,} held-out origins: "
            f"{reached}"
        )
    return lines


@app.command(
    epilog="Example: id2 finetune --originals originals --translations translated --backbone vit-b "
    "--out tuned; then id2 scan --encoder tuned/vit-b-cosface --transform none …",
)
def finetune(
    originals: Annotated[str, typer.Option(help="Folder of the pictures that were translated.")],
    translations: Annotated[
        list[str], typer.Option(help="Data set of id2 translate, with its pictures; give all of them.")
    ],
    out: console.Out,
    backbone: Annotated[
        str,
        typer.Option(
            help="A vision backbone as --encoder takes it (vit-b, dinov2, a directory, a hub id), or "
            "resnet-scratch: a small ResNet with random weights, where no hub can be reached."
        ),
    ],
    loss: Annotated[
        Literal["cosface", "circle", "softmax"],
        typer.Option(help="Tells origins apart; scale and margin as in id2 train."),
    ] = "cosface",
    steps: Annotated[int | None, typer.Option(min=1, help="\\[default: 20000]")] = None,
    batch: Annotated[int | None, typer.Option(min=4, help="Pictures of a step.  \\[default: 128]")] = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, help="Pictures of one origin in it.  \\[default: 4]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.  \\[default: 0.0001]")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Steps until the rate is highest.  \\[default: 1000]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of centres, batches and dropout; of resnet-scratch's weights.  \\[default: 1]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.  \\[default: a GPU where there is one]")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Train a whole vision backbone on pictures, the paper's rivals of W; print what --encoder takes."""
    from flows import finetune as flow

    given = {"steps": steps, "batch": batch, "per_class": per_class, "lr": lr, "warmup": warmup, "seed": seed}
    recipe: dict[str, Any] = {"backbone": backbone, "loss": loss}
    recipe |= {name: value for name, value in given.items() if value is not None}
    try:
        flow.of_recipe(recipe)
    except TrainError as error:
        raise typer.BadParameter(str(error)) from error
    report = console.run(lambda: flow.finetune(originals, translations, out, recipe, device or "auto"))
    if as_json:
        console.print_json(report)
        return
    console.tell([f"{report['pictures']:,} pictures of {report['origins']:,} origins"])
    places = {"origins": f"not in {originals}", "translations": "whose pictures are not there"}
    for what, count in report["left_out"].items():
        if count:
            console.tell([f"left out: {count:,} {what}, {places[what]}"])
    typer.echo(report["encoder"])


@app.command(
    context_settings=console.BEAM,
    epilog="Example: id2 calibrate --reference corpus-id2 --queries uploads-id2 --truth truth.csv "
    "--transform w/W.safetensors --match 0.001 --review 0.01 --out w/calibration.json",
)
def calibrate(
    context: typer.Context,
    reference: console.Reference,
    queries: console.Queries,
    match: Annotated[float, typer.Option(help="False-positive rate of the verdict match, such as 0.001.")],
    review: Annotated[float, typer.Option(help="That of the verdict review or match, such as 0.01.")],
    out: Annotated[str, typer.Option("--out", help="The JSON file that is written.")],
    transform: console.Transform = None,
    truth: Annotated[
        str | None,
        typer.Option(
            help="CSV or Parquet query_uri,reference_uri: uploads with an empty reference have no origin.  "
            "\\[default: no upload has one]"
        ),
    ] = None,
    background: Background = None,
    factor: Annotated[
        float | None, typer.Option(help="Of the background that is subtracted.  \\[default: tuned]")
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Background scores that are averaged.  \\[default: tuned]")
    ] = None,
    encoder: console.Encoder = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Find the scores that a stated share of uploads without origin reaches: id2 scan judges by them."""
    from flows import calibrate as flow

    console.settings(encoder=encoder, transform=transform)
    arguments = console.beam_arguments(runner, context.args)
    found = console.run(
        lambda: flow.calibrate(
            reference=reference,
            queries=queries,
            out=out,
            match=match,
            review=review,
            transform=transform,
            truth_file=truth,
            background=background,
            factor=factor,
            k=k,
            encoder=encoder,
            beam_arguments=arguments,
        )
    )
    if as_json:
        console.print_json(found)
        return
    console.tell(_of_calibration(found))
    typer.echo(found["out"])


def _of_calibration(found: dict[str, Any]) -> list[str]:
    lines = [
        f"From {found['queries']:,} uploads without origin, for a corpus of {found['references']:,} "
        f"references; against N times as many, rates are up to N times as high.",
        "| verdict | rate | score from | reached by | 95 % interval of the rate | with 95 % at most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for verdict in ("match", "review"):
        t = found[verdict]
        lines.append(
            f"| {verdict} | {t['target']:.3%} | {t['score']:.4f} | {t['exceedances']:,} of "
            f"{found['queries']:,} | {t['low']:.3%} to {t['high']:.3%} | {t['upper']:.3%} |"
        )
    normalization, tuned = found["normalization"], found["tuned"]
    if normalization:
        lines.append(
            f"Scores less {normalization['factor']:g} × the mean of the {normalization['k']} best scores in "
            f"the background {normalization['background_id']}."
        )
    if tuned:
        lines.append(
            f"µAP of the queries tuned on: {tuned['raw_micro_ap']:.1%} raw, {tuned['micro_ap']:.1%} chosen."
        )
    return lines


@app.command(
    context_settings=console.BEAM,
    epilog="Example: id2 evaluate --reference corpus-id2 --queries uploads-id2 --truth truth.csv "
    "--transform none --transform w/W.safetensors --out measured",
)
def evaluate(
    context: typer.Context,
    reference: console.Reference,
    queries: console.Queries,
    truth: Annotated[
        str,
        typer.Option(help="CSV or Parquet query_uri,reference_uri (empty = no origin); others do not count."),
    ],
    out: Annotated[
        str, typer.Option("--out", help="Where metrics.json, .parquet, .md and embedded images go.")
    ],
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="W: a file, auto or none; give several to compare them.  \\[default: ID2_TRANSFORM or auto]"
        ),
    ] = None,
    encoder: console.Encoder = None,
    background: Background = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="File of id2 calibrate, or auto for the bundled one: its rates are measured, too."),
    ] = None,
    top_k: console.TopK = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Measure mAP, Acc, recall, µAP and R@P90 with 95 % intervals; compare transforms on the same uploads."""
    from flows import evaluate as flow

    console.settings(encoder=encoder, top_k=top_k)
    arguments = console.beam_arguments(runner, context.args)
    found = console.run(
        lambda: flow.evaluate(
            reference=reference,
            queries=queries,
            truth_file=truth,
            out=out,
            transforms=transform,
            encoder=encoder,
            background=background,
            calibration_file=calibration,
            top_k=top_k,
            beam_arguments=arguments,
        )
    )
    if as_json:
        console.print_json(found)
        return
    if found["resumed"]:
        console.stderr.print("nothing new to do")
    console.tell([flow.table(out)])
    typer.echo(f"{out.rstrip('/')}/metrics.md")
