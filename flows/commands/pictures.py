"""`id2 embed` and `id2 translate`: pictures in, data sets out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.commands import console
from id2core.errors import OptionError, TranslatorError

app = typer.Typer()


@app.command(
    context_settings=console.BEAM,
    epilog="Example: id2 embed --images gs://corpus/originals --out gs://corpus/id2 --encoder sd2",
)
def embed(
    context: typer.Context,
    images: Annotated[str, typer.Option(help="Folder or bucket prefix of images.")],
    out: console.Out,
    encoder: console.Encoder = None,
    transform: console.Transform = None,
    part_size: Annotated[
        int | None, typer.Option(min=1, help="Images per part; a killed run loses at most one.")
    ] = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Embed images into OUT/embeddings and OUT/rejects; images embedded before are not embedded again."""
    from beam_jobs import embed as job
    from beam_jobs import runners

    settings = console.settings(encoder=encoder, transform=transform, part_size=part_size)
    arguments = console.beam_arguments(runner, context.args)
    if runners.template_location(arguments):
        where = console.run(
            lambda: job.write_template(job.EmbedJob.from_settings(images, out, settings), arguments)
        )
        typer.echo(where)
        return
    summary = asdict(
        console.run(lambda: job.run(job.EmbedJob.from_settings(images, out, settings), arguments))
    )
    if as_json:
        console.print_json(summary)
        return
    done = "nothing new to do; " if summary["resumed"] else ""
    console.stderr.print(
        f"{done}{summary['embedded']} embedded, {summary['rejected']} rejected "
        f"of {summary['listed']} listed, transform {summary['transform_from']}: {out}",
        highlight=False,
    )


@app.command(
    context_settings=console.BEAM,
    epilog="Example: id2 translate --images originals --model mini-a --strength 0.5 --prompts captions "
    "--out translated; then id2 scan --reference originals --queries translated/pictures "
    "--truth translated/truth.csv --out results measures how many origins are found.",
)
def translate(
    context: typer.Context,
    images: Annotated[str, typer.Option(help="Folder or bucket prefix of originals.")],
    model: Annotated[
        str,
        typer.Option(
            help="mini-a, mini-b (bundled), sd2, sdxl, opendalle, colorfulxl, kandinsky3, sd3, kolors, "
            "instruct-pix2pix, ip-adapter, edict, plug-and-play (from the hub), a diffusers directory, "
            "or a hub id owner/name\\[@revision]."
        ),
    ],
    out: console.Out,
    strength: Annotated[
        float | None,
        typer.Option(help="Noise that is added, 0 to 1.  \\[default: the paper's where it gives one]"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .csv, .parquet or .jsonl file (uri,prompt), a .txt file (one a line), `captions` "
            "(captions.csv in or beside the images), `endpoint` (a vision model, named by "
            "ID2_PROMPT_BASE_URL, _MODEL and _API_KEY) or `empty`.  \\[default: captions]"
        ),
    ] = None,
    per_image: Annotated[int, typer.Option(min=1, help="Translations of each original.")] = 1,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.  \\[default: the model's, mostly 7.5]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps at strength 1.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the translated square, in pixels.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Hub id or directory to take the model's weights from instead.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision to pin.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other pictures.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="jpeg (quality 95) or png.")] = "jpeg",
    part_size: Annotated[
        int | None, typer.Option(min=1, help="Originals per part; a killed run loses at most one per worker.")
    ] = None,
    runner: console.Runner = None,
    as_json: console.AsJson = False,
) -> None:
    """Translate originals with a diffusion model; write OUT/pictures, OUT/translations, OUT/truth.csv."""
    from beam_jobs import runners
    from beam_jobs import translate as job
    from flows import translate as flow
    from id2core.translation import models
    from id2core.translation.rows import Recipe

    settings = console.settings()
    arguments = console.beam_arguments(runner, context.args)
    overrides = {
        "strength": strength,
        "guidance": guidance,
        "steps": steps,
        "size": size,
        "source": source,
        "revision": revision,
    }
    try:
        chosen, recipe = models.find(model, **overrides), Recipe(per_image, seed, file_format)
    except (OptionError, TranslatorError) as error:
        raise typer.BadParameter(str(error)) from error
    if runners.template_location(arguments):
        make = job.TranslateJob.from_settings
        typer.echo(
            console.run(
                lambda: job.write_template(
                    make(images, out, chosen, settings, prompts, recipe, part_size), arguments
                )
            )
        )
        return
    summary = console.run(
        lambda: flow.translate(
            images=images,
            model=model,
            out=out,
            prompts=prompts,
            per_image=per_image,
            seed=seed,
            format=file_format,
            part_size=part_size,
            beam_arguments=arguments,
            **overrides,
        )
    )
    if as_json:
        console.print_json(summary)
        return
    done = "nothing new to do; " if summary["resumed"] else ""
    console.stderr.print(
        f"{done}{summary['translated']} of {summary['listed']} originals translated by {summary['model']} "
        f"into {summary['pictures']} pictures, {summary['rejected']} rejected",
        highlight=False,
    )
    typer.echo(summary["truth"])
