"""Whether a night looks like the nights before it: reject rate, match rate and throughput.

Each is compared with the last good nights of the same flow in the same `--out`, by the rows of `runs/`. A
night is off where a value is further than 3 MAD (median absolute deviations) from their median. Nights are
often so alike that the MAD is zero or close to it. What chance alone moves a rate by, and a tenth of a
throughput, is therefore always within bounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from id2core.runs.records import Run, Status

# Good nights that a night is compared with, and how few say nothing.
NIGHTS, LEAST_NIGHTS = 14, 7
DEVIATIONS = 3.0
# Least share of the median throughput that counts as a change: machines are busy now and then.
THROUGHPUT_SHARE = 0.1
# Pictures that a night embeds at least to have a throughput: of fewer, loading the model takes the time.
LEAST_EMBEDDED = 100
# Stages of a run that embed pictures begin with this.
_EMBED = "embed"
# Flows that compare uploads with references.
_SCANS = frozenset({"nightly", "scan"})


class Measure(StrEnum):
    """What is watched.

    `reject_rate` is the share of the night's new files that were rejected, `match_rate` the share of the
    uploads compared for the first time that have a match, `throughput` the pictures embedded a second. What a
    back-scan finds in earlier uploads is in none of them.
    """

    REJECT_RATE = "reject_rate"
    MATCH_RATE = "match_rate"
    THROUGHPUT = "throughput"


class Finding(BaseModel):
    """A measure of a night that is out of bounds.

    Attributes:
        measure: which.
        value: of the night.
        median, low, high: of the good nights before it, and the bounds that follow.
        nights: how many good nights were compared.
    """

    model_config = ConfigDict(frozen=True)

    measure: Measure
    value: float
    median: float
    low: float
    high: float
    nights: int

    def __str__(self) -> str:
        """Return one line for a person."""
        side = "above" if self.value > self.high else "below"
        bound = self.high if self.value > self.high else self.low
        return (
            f"{self.measure.replace('_', ' ')} {self.value:.4g} is {side} {bound:.4g} "
            f"(median {self.median:.4g} of the last {self.nights} good nights)"
        )


class _Sample(NamedTuple):
    """A measure of one night: a value, and of how many objects."""

    value: float
    size: int


def check(runs: Iterable[Run], run_id: str) -> list[Finding]:
    """Compare a night with the good nights before it.

    Args:
        runs: rows of `runs/`, in any order, as `records.read` returns them.
        run_id: of the night; its row may be complete or not.

    Returns:
        A finding for each measure that is out of bounds, in the order of `Measure`. None where the night has
        no such value (nothing was new), or fewer than `LEAST_NIGHTS` good nights have one.
    """
    ordered = sorted(runs, key=_order)
    night = next((run for run in ordered if run.run_id == run_id), None)
    if night is None:
        return []
    before = [run for run in ordered if _order(run) < _order(night)]
    good = [run for run in before if run.flow == night.flow and run.status is Status.DONE]
    return [finding for measure in Measure if (finding := _compare(measure, night, good))]


def _order(run: Run) -> tuple[float, str]:
    return run.started.timestamp() if run.started else -math.inf, run.run_id


def _compare(measure: Measure, night: Run, good: Sequence[Run]) -> Finding | None:
    sample = _OF[measure](night)
    values = [s.value for run in reversed(good) if (s := _OF[measure](run))][:NIGHTS]
    if sample is None or len(values) < LEAST_NIGHTS:
        return None
    median = statistics.median(values)
    spread = statistics.median(abs(value - median) for value in values)
    margin = max(DEVIATIONS * spread, _least_margin(measure, median, sample.size))
    if abs(sample.value - median) <= margin:
        return None
    return Finding(
        measure=measure,
        value=sample.value,
        median=median,
        low=max(0.0, median - margin),
        high=median + margin,
        nights=len(values),
    )


def _least_margin(measure: Measure, median: float, size: int) -> float:
    """Return what chance alone explains, however alike the nights before were."""
    if measure is Measure.THROUGHPUT:
        return THROUGHPUT_SHARE * median
    # Standard error of a share of `size` objects. One success and one failure are added: a share that has
    # always been 0 would have no error at all.
    share = (median * size + 1) / (size + 2)
    return DEVIATIONS * math.sqrt(share * (1 - share) / size)


def _reject_rate(run: Run) -> _Sample | None:
    if run.flow in _SCANS and run.new_queries is None:
        return None  # an earlier version counted all rejects that stood
    files = (run.embedded or 0) + (run.rejected or 0)
    return _Sample((run.rejected or 0) / files, files) if files else None


def _match_rate(run: Run) -> _Sample | None:
    if not run.first_searched or run.first_matched is None:
        return None
    return _Sample(run.first_matched / run.first_searched, run.first_searched)


def _throughput(run: Run) -> _Sample | None:
    seconds, embedded = sum(_embed_seconds(run)), run.embedded or 0
    return _Sample(embedded / seconds, embedded) if embedded >= LEAST_EMBEDDED and seconds > 0 else None


def _embed_seconds(run: Run) -> Iterator[float]:
    return (seconds for name, seconds in run.seconds.items() if name.startswith(_EMBED))


_OF: dict[Measure, Callable[[Run], _Sample | None]] = {
    Measure.REJECT_RATE: _reject_rate,
    Measure.MATCH_RATE: _match_rate,
    Measure.THROUGHPUT: _throughput,
}
