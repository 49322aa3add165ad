"""Progress of this process's jobs on stderr: a live line on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from id2core.runs.progress import Counts, tally

LOG_EVERY_SECONDS = 10.0
LIVE_EVERY_SECONDS = 0.2
UNITS = {
    "embed": "images",
    "search": "blocks of uploads × shards",
    "translate": "origins",
    "features": "files",
    "pairs": "latents",
    "latents": "latents read",
    "statistics": "latents read",
    "shrinkage": "values tried",
    "training": "steps",
    "lookup": "pairs",
}


class _Printer:
    """Shows the stage that works now; a stage's last line stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._every = LIVE_EVERY_SECONDS if console.is_terminal else LOG_EVERY_SECONDS
        self._line = ""
        self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __call__(self, stage: str, counts: Counts) -> None:
        now, finished = time.monotonic(), counts.completed + counts.rejected
        if finished == 0:
            self.finish()
            self._shown, self._first = now, None
            return
        # From the first count on: before it a model is loaded, and a resumed stage starts with many.
        began, before = self._first = self._first or (now, finished)
        rate = (finished - before) / (now - began) if finished > before and now > began else None
        self._line = _line(stage, counts, rate)
        if now - self._shown >= self._every:
            self._shown = now
            self._print(end="\r" if self._console.is_terminal else "\n")

    def finish(self) -> None:
        """Print the last state of the stage, if there is any, and leave the line."""
        if self._line:
            self._print(end="\n")
        self._line = ""

    def _print(self, end: str) -> None:
        self._console.print(self._line, end=end, highlight=False)


def _line(stage: str, counts: Counts, rate: float | None) -> str:
    """What is shown; `rate` is in objects per second, None where it is not known yet."""
    finished = counts.completed + counts.rejected
    of = f"/{counts.total}" if counts.total is not None else ""
    rejected = f", {counts.rejected} of them rejected" if counts.rejected else ""
    speed = f", {rate:.1f}/s" if rate else ""
    left = (counts.total or 0) - finished
    eta = f", eta {_duration(left / rate)}" if rate and left > 0 else ""
    return f"{stage}: {finished}{of} {UNITS.get(stage, 'done')}{rejected}{speed}{eta}"


def _duration(seconds: float) -> str:
    """In the unit in which it is a number of one or two digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Within, what the jobs of this process count is shown on `console`."""
    printer = _Printer(console)
    stop = tally.listen(printer)
    try:
        yield
    finally:
        stop()
        printer.finish()
