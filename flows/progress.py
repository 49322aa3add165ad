"""Progress of this process's jobs: a live line on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from id2core.runs.progress import Counts, tally

LOG_EVERY_SECONDS = 10.0
LIVE_EVERY_SECONDS = 0.2
# Between lines of the log of a flow's run.
RUN_LOG_SECONDS = 30.0
UNITS = {
    "embed": "images",
    "reproject": "rows",
    "index": "references",
    "canary": "known pairs found",
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


class _Pace:
    """Objects a second of the stage that works now."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def rate(self, now: float, finished: int) -> float | None:
        """Return the rate from the first count on: before it a model is loaded, and a resumed stage has many.

        None where it is not known yet.
        """
        if finished == 0:
            self._first = None
            return None
        began, before = self._first = self._first or (now, finished)
        return (finished - before) / (now - began) if finished > before and now > began else None


class _Printer:
    """Shows the stage that works now; a stage's last line stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._every = LIVE_EVERY_SECONDS if console.is_terminal else LOG_EVERY_SECONDS
        self._line = ""
        self._shown = time.monotonic()
        self._pace = _Pace()

    def __call__(self, stage: str, counts: Counts) -> None:
        now, finished = time.monotonic(), counts.completed + counts.rejected
        rate = self._pace.rate(now, finished)
        if finished == 0:
            self.finish()
            self._shown = now
            return
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


class _Log:
    """Writes where the stage that works now has come to."""

    def __init__(self, name: str, write: Callable[[str], None], show: Callable[[float], None]) -> None:
        self._name, self._write, self._show = name, write, show
        self._began = time.monotonic()
        self._pace = _Pace()
        self._last: tuple[str, Counts, float | None] | None = None

    def __call__(self, stage: str, counts: Counts) -> None:
        rate = self._pace.rate(time.monotonic(), counts.completed + counts.rejected)
        self._last = stage, counts, rate

    def tick(self) -> None:
        """Write one line, also where nothing was counted: the stage may load a model, or run elsewhere."""
        if self._last is None:
            self._write(f"{self._name}: at work for {_duration(time.monotonic() - self._began)}")
            return
        stage, counts, rate = self._last
        self._write(f"{self._name}: {_line(stage, counts, rate)}")
        if counts.total:
            self._show(100 * min(1.0, (counts.completed + counts.rejected) / counts.total))

    def finish(self) -> None:
        """Write the last counts, if there are any."""
        if self._last is not None:
            self.tick()


@contextmanager
def logged(
    name: str, write: Callable[[str], None], show: Callable[[float], None], every: float | None = None
) -> Iterator[None]:
    """Within, write a line with counts now and then, and one at the end.

    Args:
        name: of the work.
        write: takes a line; called from a thread of its own, in the context of the caller.
        show: takes the percentage that is finished, where the total is known.
        every: seconds between lines, `RUN_LOG_SECONDS` by default.
    """
    log, ended = _Log(name, write, show), threading.Event()

    def work() -> None:
        while not ended.wait(every or RUN_LOG_SECONDS):
            log.tick()

    context = contextvars.copy_context()
    ticker = threading.Thread(target=context.run, args=(work,), name="progress", daemon=True)
    stop = tally.listen(log)
    ticker.start()
    try:
        yield
    finally:
        stop()
        ended.set()
        ticker.join()
        log.finish()
