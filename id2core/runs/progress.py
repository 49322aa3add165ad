"""Counts of work done in this process, for whoever shows progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

# Called with a stage, how much of it is completed, and of how much.
OnStage = Callable[[str, int, int], None]


def silent(stage: str, completed: int, total: int) -> None:
    """Show no progress: an `OnStage` that does nothing."""


@dataclass(frozen=True)
class Counts:
    """Objects completed and rejected so far in one stage, out of `total` where that is known."""

    completed: int = 0
    rejected: int = 0
    total: int | None = None


# Called after every change with the stage and its counts.
Listener = Callable[[str, Counts], None]


class Tally:
    """Counts by stage, safe to add to from any thread: jobs add, and the command line listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counts] = {}
        self._listeners: list[Listener] = []
        self._is_muted = False

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage with counts of zero, also one that was begun before."""
        self._set(stage, lambda old: Counts(total=total))

    def add(self, stage: str, completed: int, rejected: int = 0) -> None:
        """Count objects of a stage that were completed, and others that were rejected."""
        self._set(
            stage,
            lambda old: replace(old, completed=old.completed + completed, rejected=old.rejected + rejected),
        )

    def _set(self, stage: str, change: Callable[[Counts], Counts]) -> None:
        with self._lock:
            counts = change(self._counts.get(stage, Counts()))
            self._counts[stage] = counts
        for listener in [] if self._is_muted else list(self._listeners):
            listener(stage, counts)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Within, no listener hears of what is counted: work that is a part of another stage."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(stage, counts)` after every change; return a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


tally = Tally()


def into_tally() -> OnStage:
    """Return a callback (stage, completed, total) that counts into the tally."""
    last: dict[str, tuple[int, int]] = {}

    def count(stage: str, completed: int, total: int) -> None:
        before, known_total = last.get(stage, (0, -1))
        if known_total != total or completed < before:
            tally.start(stage, total)
            before = 0
        tally.add(stage, completed - before)
        last[stage] = completed, total

    return count
