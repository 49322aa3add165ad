"""`id2 doctor`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from id2core import settings
from id2core.errors import OptionError

app = typer.Typer()


def _settings() -> dict[str, object]:
    try:
        return settings.load().model_dump()
    except OptionError as error:
        return {"error": str(error)}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Print what is installed, which devices there are, and whether the model hub can be reached."""
    import json

    from id2core import environment

    facts = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "faiss": environment.faiss_status(),
        "hub": environment.hub_status(),
        "prefect_api": os.environ.get("PREFECT_API_URL", "none: commands run without Prefect"),
        "settings": _settings(),
    }
    if as_json:
        sys.stdout.write(json.dumps(facts, default=str) + "\n")
        return
    for section, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for name, content in rows:
            typer.echo(f"{section:<12} {name:<22} {content}".rstrip())
