"""The `id2` command. It reads arguments, starts jobs and flows, and says what came out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

# Before Prefect is imported: a command line tool neither reports its use nor chats.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # failures are told in one line of our own

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find which protected original an upload is an AI translation of.",
    epilog="URIs are local paths or gs://BUCKET/FOLDER. Progress goes to stderr; exit codes: "
    "0 done, 1 failed, 2 bad usage. Defaults come from ID2_… variables (id2 doctor shows them).",
)
stderr = Console(stderr=True)

Out = Annotated[str, typer.Option("--out", help="Where results go; run again with the same to resume.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="mini (bundled), sd2, sdxl, sd3 (from the hub), a diffusers directory, a TorchScript file, "
        "or a hub id owner/name\\[:subfolder]\\[@revision].  \\[default: ID2_ENCODER or mini]"
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(
        help="W: .safetensors, the authors' checkpoint, or none.  \\[default: ID2_TRANSFORM or none]"
    ),
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="References kept per upload.  \\[default: ID2_TOP_K or 10]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")]
Runner = Annotated[
    str | None,
    typer.Option(
        help="Beam runner: FnApiRunner (this process, the default), FlinkRunner, SparkRunner, "
        "DataflowRunner, PortableRunner. Its own options follow after `--`."
    ),
]


def _run(work: Callable[[], Any]) -> Any:
    """Do the work with progress shown; a failure becomes one line and exit code 1 (ID2_DEBUG shows all)."""
    from flows import progress

    try:
        with progress.shown(stderr):
            return work()
    except Exception as error:
        if os.environ.get("ID2_DEBUG"):
            raise
        from flows.tasks import PERMANENT

        known = isinstance(error, PERMANENT)
        text = str(error) if known else f"{type(error).__name__}: {error} (ID2_DEBUG=1 shows the traceback)"
        stderr.print(Text("error: ", style="bold red") + Text(text), soft_wrap=True)
        raise typer.Exit(1) from error


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def _beam_arguments(runner: str | None, rest: list[str]) -> list[str]:
    """The options after `--`, checked: what Beam would only warn of is bad usage here."""
    from beam_jobs import runners

    arguments = ([f"--runner={runner}"] if runner else []) + rest
    try:
        runners.check(arguments)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return arguments


def _settings(**overrides: Any) -> Any:
    from pydantic import ValidationError

    from id2core.settings import Settings

    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"ID2_{str(first['loc'][0]).upper()}: {first['msg']}") from error


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Example: id2 embed --images gs://corpus/originals --out gs://corpus/id2 --encoder sd2",
)
def embed(
    context: typer.Context,
    images: Annotated[str, typer.Option(help="Folder or bucket prefix of images.")],
    out: Out,
    encoder: Encoder = None,
    transform: Transform = None,
    part_size: Annotated[
        int | None, typer.Option(min=1, help="Images per part; a killed run loses at most one.")
    ] = None,
    runner: Runner = None,
    as_json: AsJson = False,
) -> None:
    """Embed images into OUT/embeddings and OUT/rejects; images embedded before are not embedded again."""
    from beam_jobs import embed as job
    from beam_jobs import runners

    settings = _settings(encoder=encoder, transform=transform, part_size=part_size)
    arguments = _beam_arguments(runner, context.args)
    if runners.template_location(arguments):
        where = _run(lambda: job.write_template(job.EmbedJob.from_settings(images, out, settings), arguments))
        typer.echo(where)
        return
    summary = asdict(_run(lambda: job.run(job.EmbedJob.from_settings(images, out, settings), arguments)))
    if as_json:
        _print_json(summary)
        return
    done = "nothing new to do; " if summary["resumed"] else ""
    stderr.print(
        f"{done}{summary['embedded']} embedded, {summary['rejected']} rejected "
        f"of {summary['listed']} listed: {out}",
        highlight=False,
    )


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Examples: id2 scan --reference originals --queries uploads --out results; the same in worker "
    "processes, with `-- --direct_running_mode=multi_processing --direct_num_workers=4` at the end.",
)
def scan(
    context: typer.Context,
    reference: Annotated[str, typer.Option(help="Protected originals: images, or an embeddings data set.")],
    queries: Annotated[str, typer.Option(help="Uploads: images, or an embeddings data set.")],
    out: Out,
    encoder: Encoder = None,
    transform: Transform = None,
    top_k: TopK = None,
    truth: Annotated[
        str | None, typer.Option(help="CSV or Parquet query_uri,reference_uri: adds accuracy to the report.")
    ] = None,
    runner: Runner = None,
    as_json: AsJson = False,
) -> None:
    """Compare uploads with protected originals; write OUT/report.html, OUT/summary.json and OUT/matches."""
    from flows import scan as flow

    _settings(encoder=encoder, transform=transform, top_k=top_k)
    arguments = _beam_arguments(runner, context.args)
    summary = _run(
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


@app.command(
    context_settings={"allow_extra_args": True},
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
    out: Out,
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
    runner: Runner = None,
    as_json: AsJson = False,
) -> None:
    """Translate originals with a diffusion model; write OUT/pictures, OUT/translations, OUT/truth.csv."""
    from beam_jobs import runners
    from beam_jobs import translate as job
    from flows import translate as flow
    from id2core.oripid import models
    from id2core.oripid.translation import Recipe
    from id2core.oripid.translators import TranslatorError

    settings = _settings()
    arguments = _beam_arguments(runner, context.args)
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
    except (ValueError, TranslatorError) as error:
        raise typer.BadParameter(str(error)) from error
    if runners.template_location(arguments):
        make = job.TranslateJob.from_settings
        typer.echo(
            _run(
                lambda: job.write_template(
                    make(images, out, chosen, settings, prompts, recipe, part_size), arguments
                )
            )
        )
        return
    summary = _run(
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
        _print_json(summary)
        return
    done = "nothing new to do; " if summary["resumed"] else ""
    stderr.print(
        f"{done}{summary['translated']} of {summary['listed']} originals translated by {summary['model']} "
        f"into {summary['pictures']} pictures, {summary['rejected']} rejected",
        highlight=False,
    )
    typer.echo(summary["truth"])


@app.command()
def demo(
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Scan the bundled demo: 200 uploads, 80 of them AI translations, against 200 protected tiles."""
    from importlib import resources

    from flows import scan as flow

    with resources.as_file(resources.files("id2core") / "data" / "demo") as data:
        summary = _run(
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
        _print_json(summary)
        return
    counts = summary["counts"]
    stderr.print(
        f"{counts['queries']} uploads compared with {counts['references']} originals; "
        f"{counts['query_rejects'] + counts['reference_rejects']} files rejected",
        highlight=False,
    )
    if summary.get("accuracy") is not None:
        stderr.print(
            f"Acc {summary['accuracy']:.1%} of {summary['accuracy_of']} uploads with an origin",
            highlight=False,
        )
    typer.echo(f"{out.rstrip('/')}/report.html")


@app.command()
def report(
    uri: Annotated[str, typer.Argument(help="--out of a finished scan.")],
    max_pairs: Annotated[int, typer.Option(min=1, help="Uploads shown with pictures.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Write report.html and summary.json of a finished scan again, from its data sets."""
    from flows import scan as flow

    summary = _run(lambda: flow.rewrite_report(uri, max_pairs))
    _announce(summary, uri, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which devices there are, and whether the model hub can be reached."""
    from id2core import environment

    facts = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "faiss": environment.faiss_status(),
        "hub": environment.hub_status(),
        "prefect_api": os.environ.get("PREFECT_API_URL", "none: flows start a temporary server"),
        "settings": _settings().model_dump(),
    }
    if as_json:
        _print_json(facts)
        return
    for section, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for name, content in rows:
            typer.echo(f"{section:<12} {name:<22} {content}".rstrip())


def main() -> None:
    """Entry point of the `id2` command."""
    app()


if __name__ == "__main__":
    main()
