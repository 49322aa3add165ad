"""What every command shares: options with one meaning, progress, failures in one line, JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from id2core.errors import ID2Error, OptionError

stderr = Console(stderr=True)
# For commands that hand the options after `--` to Beam.
BEAM = {"allow_extra_args": True}

Out = Annotated[str, typer.Option("--out", help="Where results go; run again with the same to resume.")]
Reference = Annotated[str, typer.Option(help="Protected originals: images, or an embeddings data set.")]
Queries = Annotated[str, typer.Option(help="Uploads: images, or an embeddings data set.")]
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
        help="W: auto (the one that ships for the encoder, if any; else raw latents), none (raw latents), "
        "a .safetensors file, or the authors' checkpoint. Both sides of a scan need the same one.  "
        "\\[default: ID2_TRANSFORM or auto]"
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Thresholds for verdicts at a known false-positive rate: auto (those that ship with the "
        "bundled W, where it is used; else no verdicts), none (scores only), or a file. It holds for one "
        "encoder and one W, and for uploads like those it was made from.  "
        "\\[default: ID2_CALIBRATION or auto]"
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help="Pictures that are neither references nor their copies, or an embeddings data set of them: how "
        "near an upload lies to strangers is subtracted from its scores. For a calibration that was made "
        "with this very background, which then needs it."
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


def run(work: Callable[[], Any]) -> Any:
    """Do the work with progress shown; a failure becomes one line and exit code 1 (ID2_DEBUG shows all)."""
    from flows import progress

    try:
        with progress.shown(stderr):
            return work()
    except Exception as error:
        if os.environ.get("ID2_DEBUG"):
            raise
        known = isinstance(error, ID2Error)
        text = str(error) if known else f"{type(error).__name__}: {error} (ID2_DEBUG=1 shows the traceback)"
        stderr.print(Text("error: ", style="bold red") + Text(text), soft_wrap=True)
        raise typer.Exit(1) from error


def tell(lines: Iterable[str]) -> None:
    """Lines on stderr as they are, however wide the terminal."""
    for line in lines:
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def beam_arguments(runner: str | None, rest: list[str]) -> list[str]:
    """The options after `--`, checked: what Beam would only warn of is bad usage here."""
    from beam_jobs import runners

    arguments = ([f"--runner={runner}"] if runner else []) + rest
    try:
        runners.check(arguments)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    return arguments


def settings(**overrides: Any) -> Any:
    """The settings with some replaced; one that is not valid is bad usage."""
    from pydantic import ValidationError

    from id2core.settings import Settings

    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"ID2_{str(first['loc'][0]).upper()}: {first['msg']}") from error
