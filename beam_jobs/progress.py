"""How far a job is, on every runner.

Where this process does the work, what it does is counted as it is done. Elsewhere the records are the count:
this process looks at what workers leave in the store (`id2core.runs.units`). Either way each object is
counted once, also one that an earlier attempt has recorded.
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
# Stages that are counted by records at present. A worker in this process adds nothing to them.
_BY_RECORDS: set[str] = set()


@dataclass(frozen=True)
class Work:
    """Work whose records are counted.

    Attributes:
        place: where the records are staged.
        total: how much work there is.
        counts: how much of it a record stands for, completed and rejected; None for a record of other work.
        only_new: whether records that stand before it begins are no part of it: its plan has adopted them.
    """

    place: str
    total: int
    counts: Callable[[Record], tuple[int, int] | None]
    only_new: bool = False


def add(stage: str, completed: int, rejected: int = 0) -> None:
    """Count what was done in this process; called by steps of a pipeline."""
    if stage not in _BY_RECORDS:
        tally.add(stage, completed, rejected)


@contextmanager
def counted(stage: str, work: Sequence[Work], arguments: Sequence[str]) -> Iterator[None]:
    """Count a stage while its job runs in the block; after a job that ended well, all of it is counted.

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
    """Counts the records of a stage until it is told to end."""

    def __init__(self, stage: str, work: Sequence[Work], total: int) -> None:
        self._stage, self._total = stage, total
        # Each with the records that have been looked at.
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
            # Twins that were cut at different places have records of the same objects.
            completed, rejected = (min(n, self._total - self.counted) for n in counts)
            completed = min(completed, self._total - self.counted - rejected)
            tally.add(self._stage, completed, rejected)
            self.counted += completed + rejected
