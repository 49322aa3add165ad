"""Counts of work done in this process, for whoever shows progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

Listener = Callable[[str, "Counts"], None]
# Told of a stage: its name, how much is done, of how much.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """For callers that show no progress."""


@dataclass(frozen=True)
class Counts:
    """Work done so far in one stage, out of `total` where that is known."""

    done: int = 0
    rejected: int = 0
    total: int | None = None


class Tally:
    """Counts by stage, safe to add to from any thread. Jobs add; the command line listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counts] = {}
        self._listeners: list[Listener] = []

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage, or begin it anew: its counts are zero."""
        self._set(stage, lambda old: Counts(total=total))

    def add(self, stage: str, done: int, rejected: int = 0) -> None:
        """Count `done` objects of a stage, and `rejected` ones besides."""
        self._set(stage, lambda old: replace(old, done=old.done + done, rejected=old.rejected + rejected))

    def _set(self, stage: str, change: Callable[[Counts], Counts]) -> None:
        with self._lock:
            counts = change(self._counts.get(stage, Counts()))
            self._counts[stage] = counts
        for listener in self._listeners:
            listener(stage, counts)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(stage, counts)` after every change; the result takes it off again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


tally = Tally()
