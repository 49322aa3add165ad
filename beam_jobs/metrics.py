"""Figures of a running job, shown by every runner: how much, and how long each stage took.

    with timed("search_load"):
        shard = shards.load(...)
    count("search_bytes_read", file.bytes)

Both work inside a DoFn or a CombineFn. A distribution has the sum, the number, the smallest and the largest
of its values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from apache_beam.metrics import Metrics

NAMESPACE = "id2"
EACH, MILLISECONDS = "_each", "_ms"


@dataclass(frozen=True)
class Distribution:
    """Sum, count and extremes of the values of a distribution."""

    sum: int
    count: int
    min: int
    max: int


@dataclass(frozen=True)
class Figures:
    """The metrics of a finished pipeline, by name."""

    counters: dict[str, int]
    distributions: dict[str, Distribution]


def count(name: str, number: int = 1) -> None:
    """Add to the counter `name`, and to the distribution `NAME_each` of what was added at a time.

    A count per batch thus gives the batch sizes, a count per file the sizes of files.
    """
    Metrics.counter(NAMESPACE, name).inc(number)
    Metrics.distribution(NAMESPACE, name + EACH).update(number)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the milliseconds that the block takes to the distribution `STAGE_ms`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        add_time(stage, time.perf_counter() - began)


def add_time(stage: str, seconds: float) -> None:
    """Add to the distribution `STAGE_ms`, where the time is not that of a block."""
    Metrics.distribution(NAMESPACE, stage + MILLISECONDS).update(round(1000 * seconds))


def read(result: Any) -> Figures:
    """Return the counters and distributions of a finished pipeline.

    Args:
        result: a `beam.runners.runner.PipelineResult`.
    """
    query = result.metrics().query()
    distributions = {
        m.key.metric.name: Distribution(m.result.sum, m.result.count, m.result.min, m.result.max)
        for m in _own(query["distributions"])
    }
    return Figures({m.key.metric.name: m.result for m in _own(query["counters"])}, distributions)


def _own(metrics: list[Any]) -> list[Any]:
    return [m for m in metrics if m.key.metric.namespace == NAMESPACE]
