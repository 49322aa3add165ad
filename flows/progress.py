"""Progress of this process's jobs on stderr: a live line on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from id2core.progress import Counts, tally

LOG_EVERY_SECONDS = 10.0
LIVE_EVERY_SECONDS = 0.2
UNITS = {"embed": "images", "search": "blocks of uploads × shards", "translate": "origins"}


class _Printer:
    """Shows the stage that works now; a stage's last line stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._every = LIVE_EVERY_SECONDS if console.is_terminal else LOG_EVERY_SECONDS
        self._line = ""
        self._started = self._shown = time.monotonic()

    def __call__(self, stage: str, counts: Counts) -> None:
        now = time.monotonic()
        if counts.done + counts.rejected == 0:
            self.finish()
            self._started = self._shown = now
            return
        self._line = _line(stage, counts, now - self._started)
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


def _line(stage: str, counts: Counts, seconds: float) -> str:
    finished = counts.done + counts.rejected
    of = f"/{counts.total}" if counts.total is not None else ""
    rate = f", {finished / seconds:.1f}/s" if seconds > 0 else ""
    rejected = f", {counts.rejected} of them rejected" if counts.rejected else ""
    return f"{stage}: {finished}{of} {UNITS.get(stage, 'done')}{rejected}{rate}"


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
