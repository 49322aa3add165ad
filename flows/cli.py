"""The `id2` command: puts the commands together."""

from __future__ import annotations

import importlib
import pkgutil
from importlib import metadata
from typing import Annotated

import typer

from flows import commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find which protected original an upload is an AI translation of.",
    epilog="URIs are local paths or gs://BUCKET/FOLDER. Progress goes to stderr. Exit codes: 0 done, 1 "
    "failed, 2 bad usage, 130 interrupted, 143 terminated. Defaults come from ID2_… variables (id2 doctor "
    "shows them). If PREFECT_API_URL names a Prefect server, commands run as its flows.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"id2 {metadata.version('id2')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# A module that holds an `app` is a command.
for module in pkgutil.iter_modules(commands.__path__):
    part = getattr(importlib.import_module(f"{commands.__name__}.{module.name}"), "app", None)
    if part is not None:
        app.add_typer(part)
