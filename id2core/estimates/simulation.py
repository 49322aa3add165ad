"""Simulate workers that share the tasks of a search: slow ones, lost ones, and shards that are loaded again.

A discrete-event simulation. A task loads its shard, then searches blocks of uploads. Each task takes a
lognormal multiple of its time, of mean 1, and so does each worker. A worker is lost at a constant rate. Its
task then goes back to the front of the queue with what is left of it. The work since its last record is lost,
at most `record_seconds` of it. The next worker loads the shard again. A replacement comes after a while.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from id2core import defaults


@dataclass(frozen=True)
class Tasks:
    """Equal tasks.

    Attributes:
        count: how many.
        load_seconds: loading the shard, on one worker.
        search_seconds: searching all blocks of a task after that.
    """

    count: int
    load_seconds: float
    search_seconds: float

    @property
    def seconds(self) -> float:
        """Return the seconds of one task."""
        return self.load_seconds + self.search_seconds


@dataclass(frozen=True)
class Cluster:
    """Workers and what goes wrong.

    Attributes:
        workers: how many.
        task_sigma: spread of a task's time: standard deviation of its logarithm.
        worker_sigma: the same of a worker's speed, for as long as it lives.
        losses_per_hour: how often a worker is lost.
        replacement_seconds: until another worker is there.
        record_seconds: a worker records its finished work after so long.
    """

    workers: int
    task_sigma: float = 0.0
    worker_sigma: float = 0.0
    losses_per_hour: float = 0.0
    replacement_seconds: float = 0.0
    record_seconds: float = defaults.RECORD_SECONDS


@dataclass(frozen=True)
class Run:
    """One simulated search.

    Attributes:
        wall_seconds: until the last task is done.
        losses: workers that were lost.
        loads: shards that were loaded, also again.
        lost_seconds: search that was done and has to be repeated.
    """

    wall_seconds: float
    losses: int
    loads: int
    lost_seconds: float


def ideal_seconds(tasks: Tasks, workers: int) -> float:
    """Return the wall time if all workers are alike, none is lost, and work can be cut at will."""
    return tasks.count * tasks.seconds / workers


def simulate(tasks: Tasks, cluster: Cluster, rng: np.random.Generator) -> Run:
    """Simulate one search until its last task is done.

    Args:
        tasks: the work.
        cluster: the workers.
        rng: decides what goes wrong.

    Raises:
        ValueError: a worker is lost faster than it can load a shard and record anything.
    """
    _check(tasks, cluster)
    # Seconds of search that are left of each task, on a worker of mean speed.
    left = tasks.search_seconds * _spread(rng, cluster.task_sigma, tasks.count)
    queue = deque(range(tasks.count))
    # (time at which a worker is free, its number, its slowness, when it will be lost)
    slowness = _spread(rng, cluster.worker_sigma, cluster.workers)
    ends = _lifetimes(rng, cluster, cluster.workers)
    free = [(0.0, n, float(slowness[n]), float(ends[n])) for n in range(cluster.workers)]
    heapq.heapify(free)
    # A task of a lost worker is back in the queue only from then on.
    returned: list[tuple[float, int]] = []
    wall, losses, loads, lost = 0.0, 0, 0, 0.0
    number = cluster.workers
    while queue or returned:
        now, worker, slow, end = heapq.heappop(free)
        if returned and (returned[0][0] <= now or not queue):
            back, task = heapq.heappop(returned)
            now = max(now, back)
        else:
            task = queue.popleft()
        # A loss while a worker was idle: its replacement takes the task.
        if end <= now:
            losses += 1
            slow = float(_spread(rng, cluster.worker_sigma, 1)[0])
            now = max(now, end + cluster.replacement_seconds)
            end = now + float(_lifetimes(rng, cluster, 1)[0])
        loads += 1
        loaded = now + tasks.load_seconds * slow
        done = loaded + float(left[task]) * slow
        if done <= end:
            wall = max(wall, done)
            heapq.heappush(free, (done, worker, slow, end))
            continue
        losses += 1
        searched = max(0.0, end - loaded)
        kept = searched - searched % cluster.record_seconds
        lost += searched - kept
        left[task] -= kept / slow
        heapq.heappush(returned, (end, task))
        there = end + cluster.replacement_seconds
        fresh = float(_spread(rng, cluster.worker_sigma, 1)[0])
        heapq.heappush(free, (there, number, fresh, there + float(_lifetimes(rng, cluster, 1)[0])))
        number += 1
    return Run(wall, losses, loads, lost)


def repeat(tasks: Tasks, cluster: Cluster, runs: int, seed: int = 0) -> list[Run]:
    """Simulate a search several times, each with random numbers of its own."""
    return [simulate(tasks, cluster, rng) for rng in np.random.default_rng(seed).spawn(runs)]


def _check(tasks: Tasks, cluster: Cluster) -> None:
    hours = (tasks.load_seconds + cluster.record_seconds) / 3600
    if cluster.losses_per_hour * hours > 1:
        raise ValueError(
            f"a worker is lost {cluster.losses_per_hour:g} times an hour, and needs {hours:.2g} hours to "
            "record anything: give fewer losses, or smaller shards"
        )


def _spread(rng: np.random.Generator, sigma: float, count: int) -> NDArray[np.float64]:
    """Draw float64[count], lognormal with mean 1."""
    return rng.lognormal(-(sigma**2) / 2, sigma, count)


def _lifetimes(rng: np.random.Generator, cluster: Cluster, count: int) -> NDArray[np.float64]:
    """Draw how many seconds workers live, float64[count]."""
    if not cluster.losses_per_hour:
        return np.full(count, np.inf)
    return rng.exponential(3600 / cluster.losses_per_hour, count)
