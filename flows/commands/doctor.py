"""`id2 doctor`."""

from __future__ import annotations

import os

import typer

from flows.commands import console

app = typer.Typer()


@app.command()
def doctor(as_json: console.AsJson = False) -> None:
    """Say what is installed, which devices there are, and whether the model hub can be reached."""
    from id2core import environment

    facts = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "faiss": environment.faiss_status(),
        "hub": environment.hub_status(),
        "prefect_api": os.environ.get("PREFECT_API_URL", "none: flows start a temporary server"),
        "settings": console.settings().model_dump(),
    }
    if as_json:
        console.print_json(facts)
        return
    for section, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for name, content in rows:
            typer.echo(f"{section:<12} {name:<22} {content}".rstrip())
