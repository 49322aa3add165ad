"""What every command shares: progress, failures in one line, JSON on stdout, and whether a flow runs."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

import id2
from flows import progress
from id2.options import Request
from id2core.errors import ID2Error, OptionError, PrefectServerError, printable
from id2core.runs.execution import rank

if TYPE_CHECKING:
    from id2.results import StagedJob, SubmittedJob

T = TypeVar("T")
BAD_USAGE, INTERRUPTED, TERMINATED = 2, 130, 143
stderr = Console(stderr=True)


def run(work: Callable[[], T]) -> T:
    """Do the work and show its progress; a failure becomes one line and an exit code.

    A mistake of the user's exits with 1, or with 2 where an option does not fit; for a bug, `ID2_DEBUG=1`
    shows the traceback.
    """
    exit_code = INTERRUPTED

    def terminate(number: int, frame: object) -> None:
        nonlocal exit_code
        exit_code = TERMINATED
        raise KeyboardInterrupt

    try:
        with progress.shown(stderr), _warnings_shown(), _on_sigterm(terminate):
            return work()
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("ID2_DEBUG"):
            raise
        if _is_interrupt(error):
            stderr.print("interrupted: run the same command again to go on from here")
            raise typer.Exit(exit_code) from error
        known = isinstance(error, ID2Error)
        text = str(error) if known else f"{type(error).__name__}: {error} (ID2_DEBUG=1 shows the traceback)"
        stderr.print(Text("error: ", style="bold red") + Text(printable(text)), soft_wrap=True)
        raise typer.Exit(BAD_USAGE if isinstance(error, OptionError) else 1) from error


class _WarningLines(logging.Handler):
    """Prints each warning as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr.print(
            Text("warning: ", style="bold yellow") + Text(printable(record.getMessage())), soft_wrap=True
        )


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Within, warnings of the work look alike, whether or not Beam has set up logging by then."""
    log, handler = logging.getLogger("id2"), _WarningLines(logging.WARNING)
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


@contextmanager
def _on_sigterm(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Within, SIGTERM ends the work as Ctrl-C does: jobs elsewhere are canceled, leases are given back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a signal has no handler there
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C is behind an error: Beam raises a RuntimeError in its place."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or str(error).startswith("KeyboardInterrupt"):
            return True
        error = error.__cause__ or error.__context__
    return False


def flow_or_function(function: id2.Function[Any, T], request: Request, flow: str) -> T:
    """Run a request as a flow where PREFECT_API_URL names a server, else directly, without Prefect.

    Args:
        function: what runs it directly.
        request: what is asked for.
        flow: `module:name` of the flow.
    """
    # Under torchrun the first process alone is the flow.
    if not os.environ.get("PREFECT_API_URL") or rank():
        return function.run(request)
    quiet_prefect()
    module, _, name = flow.partition(":")
    given = {option: getattr(request, option) for option in request.model_fields_set}
    try:
        result: T = getattr(importlib.import_module(module), name)(**given)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        server = os.environ["PREFECT_API_URL"]
        raise PrefectServerError(
            f"no Prefect server answers at PREFECT_API_URL={server}: start it, or unset the variable"
        ) from error
    return result


def quiet_prefect() -> None:
    """Before Prefect is imported: report no use, and leave failures to our own one line."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def percent(share: float) -> str:
    """Return a share in percent, to three digits; what no count could tell from nothing is 0."""
    return f"{100 * share if share >= 1e-9 else 0:.3g}%"


def interval(confidence: float, low: float, high: float) -> str:
    """Return an interval of a rate in words."""
    return f"{confidence:.0%} interval {percent(low)} to {percent(high)}"


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines on stderr as they are, however wide the terminal."""
    for line in lines:
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)


def echo_job(job: StagedJob | SubmittedJob) -> None:
    """Print the place or the id of a job that nobody waits for, and how to follow it."""
    from id2 import results

    if isinstance(job, results.StagedJob):
        typer.echo(job.template)
        return
    typer.echo(job.job_id)
    echo_lines(
        [
            "The job continues without this command. Follow it, or cancel it, in the engine's own UI. When "
            "it has ended, run the same command without --detach"
        ]
    )


def truth_lines(queries: int | None, origins: int | None) -> Iterator[str]:
    """Yield a warning for each kind of name in a truth file that no corpus holds."""
    if queries:
        names, counted = (
            ("1 upload that is", "it") if queries == 1 else (f"{queries} uploads that are", "them")
        )
        yield (
            f"warning: the truth file names {names} not among the uploads. "
            f"No figure counts {counted}. Check the column query_uri"
        )
    if origins:
        uploads = "1 upload" if origins == 1 else f"{origins} uploads"
        yield (
            f"warning: the truth file gives {uploads} an origin that is not among the references. "
            "Such a row counts as a miss. Check the column reference_uri"
        )


def print_json(value: BaseModel) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(value.model_dump_json(by_alias=True) + "\n")
