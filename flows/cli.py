"""The `id2` command: puts the commands together."""

from __future__ import annotations

import os

import typer

# Before Prefect is imported: a command line tool neither reports its use nor chats.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # on a busy machine
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # failures are told in one line of our own

from flows.commands import doctor, experiment, importing, pictures, scanning, training

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find which protected original an upload is an AI translation of.",
    epilog="URIs are local paths or gs://BUCKET/FOLDER. Progress goes to stderr; exit codes: "
    "0 done, 1 failed, 2 bad usage. Defaults come from ID2_… variables (id2 doctor shows them).",
)
for part in (pictures, importing, scanning, training, experiment, doctor):
    app.add_typer(part.app)


def main() -> None:
    """Entry point of the `id2` command."""
    app()


if __name__ == "__main__":
    main()
