"""Count the progress of a job, on every runner.

If this process does the work, its steps count what they do. If workers elsewhere do it, this process counts
the records that they leave in the store (`id2core.runs.units`). Either way, each object counts once, even if
an earlier attempt has recorded it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from beam_jobs import runners
from id2core.runs import units
from id2core.runs.progress import tally
from id2core.runs.units import Record

POLL_SECONDS = 2.0
# Stages whose records are being counted. `add` ignores them.
_BY_RECORDS: set[str] = set()


@dataclass(frozen=True)
class Work:
    """Work whose records are counted.

    Attributes:
        place: where the records are staged.
        total: how much work there is.
        counts: how much of it a record covers, completed and rejected; None for a record of other work.
        only_new: leave out records from before the job, because its plan has adopted them.
    """

    place: str
    total: int
    counts: Callable[[Record], tuple[int, int] | None]
    only_new: bool = False


def add(stage: str, completed: int, rejected: int = 0) -> None:
    """Count what a step of a pipeline has done in this process."""
    if stage not in _BY_RECORDS:
        tally.add(stage, completed, rejected)


@contextmanager
def counted(stage: str, work: Sequence[Work], arguments: Sequence[str]) -> Iterator[None]:
    """Count a stage while its job runs in the block; after success, count all of it.

    Args:
        stage: its name in progress.
        work: what the job does.
        arguments: Beam's options of the job.
    """
    total = sum(one.total for one in work)
    tally.start(stage, total)
    if runners.is_in_process(arguments):
        yield
        return
    watch = _Watch(stage, work, total)
    thread = threading.Thread(target=watch.run, daemon=True)
    _BY_RECORDS.add(stage)
    thread.start()
    try:
        yield
        watch.end(thread)
        tally.add(stage, total - watch.counted)
    finally:
        watch.end(thread)
        _BY_RECORDS.discard(stage)


class _Watch:
    """Counts the records of a stage until `end`."""

    def __init__(self, stage: str, work: Sequence[Work], total: int) -> None:
        self._stage, self._total = stage, total
        # Each work, with the URIs of the records that are counted.
        self._work = [(one, set(units.staged(one.place) if one.only_new else ())) for one in work]
        self._ended = threading.Event()
        self.counted = 0

    def run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            for one, seen in self._work:
                self._look(one, seen)

    def end(self, thread: threading.Thread) -> None:
        self._ended.set()
        thread.join()

    def _look(self, work: Work, seen: set[str]) -> None:
        new = units.staged(work.place, seen)
        seen.update(new)
        for counts in filter(None, map(work.counts, new.values())):
            # Two attempts of one part may have records of the same objects, cut at different places.
            completed, rejected = (min(n, self._total - self.counted) for n in counts)
            completed = min(completed, self._total - self.counted - rejected)
            tally.add(self._stage, completed, rejected)
            self.counted += completed + rejected
