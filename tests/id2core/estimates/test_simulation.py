"""The simulation of workers that are slow, or lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.estimates import simulation
from id2core.estimates.simulation import Cluster, Tasks


def run(tasks: Tasks, cluster: Cluster, seed: int = 0) -> simulation.Run:
    return simulation.simulate(tasks, cluster, np.random.default_rng(seed))


@given(count=st.integers(1, 200), workers=st.integers(1, 50))
def test_without_trouble_tasks_go_in_rounds(count: int, workers: int) -> None:
    tasks = Tasks(count, 10.0, 50.0)
    done = run(tasks, Cluster(workers))
    assert done.wall_seconds == pytest.approx(-(-count // workers) * 60)
    assert (done.losses, done.loads, done.lost_seconds) == (0, count, 0)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    workers=st.integers(1, 10),
    losses=st.floats(0.01, 3),
    replacement=st.floats(0, 600),
)
def test_lost_workers_cost_no_task_and_at_most_a_record_each(
    seed: int, count: int, workers: int, losses: float, replacement: float
) -> None:
    tasks = Tasks(count, 60.0, 1200.0)
    cluster = Cluster(
        workers, 0.2, 0.1, losses_per_hour=losses, replacement_seconds=replacement, record_seconds=120.0
    )
    done = run(tasks, cluster, seed)
    assert count <= done.loads <= count + done.losses
    assert done.lost_seconds <= done.losses * cluster.record_seconds
    assert done == run(tasks, cluster, seed)


def test_slow_tasks_and_lost_workers_take_longer_than_the_ideal() -> None:
    tasks = Tasks(400, 60.0, 1200.0)
    calm = Cluster(20)
    slow = Cluster(20, task_sigma=0.5)
    lost = Cluster(20, losses_per_hour=0.5, replacement_seconds=120.0)
    ideal = simulation.ideal_seconds(tasks, 20)
    medians = {
        cluster: np.median([r.wall_seconds for r in simulation.repeat(tasks, cluster, 20)])
        for cluster in (calm, slow, lost)
    }
    assert medians[calm] == pytest.approx(ideal)
    assert ideal < medians[slow] < 1.3 * ideal and ideal < medians[lost] < 1.3 * ideal


def test_workers_that_cannot_record_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller shards"):
        run(Tasks(1, 3600.0, 10.0), Cluster(1, losses_per_hour=2.0))
