"""Parts of the cluster that die in the middle of a run: no row changes, and nothing is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster import trials
from tests.cluster.flink import FlinkCluster
from tests.cluster.trials import (
    FAULTS,
    IN_FLIGHT,
    KILLED,
    LONGEST_SECONDS,
    PARTS,
    TERMINATED,
    Fault,
    Work,
    lose_client,
    lose_job_manager,
    lose_job_server,
    lose_task_manager,
    lose_worker,
)
from tests.conftest import wait_until
from tests.fork_server import ForkServer

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


def _alone(work: Work, server: ForkServer, folder: Path) -> Work:
    """Do the work in one process, too: what a trial is compared with."""
    run = work.start(server, folder / f"{work.name}-alone")
    assert run.wait() == 0, run.log.read_text()
    return work


@pytest.fixture(scope="module")
def embedding(server: ForkServer, folder: Path) -> Work:
    return _alone(trials.embedding(folder), server, folder)


@pytest.fixture(scope="module")
def searching(server: ForkServer, folder: Path) -> Work:
    return _alone(trials.searching(folder), server, folder)


# What `make test-cluster` tries; `make cluster-faults` tries every fault with both.
QUICK = {
    ("embedding", lose_task_manager),
    ("embedding", lose_job_manager),
    ("embedding", lose_client),
    ("searching", lose_task_manager),
    ("searching", lose_worker),
    ("searching", lose_job_server),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, marks=[] if (name, fault) in QUICK else [pytest.mark.slow])
        for name in ("embedding", "searching")
        for fault in FAULTS
    ],
)
def test_a_fault_changes_no_row(
    name: str,
    fault: Fault,
    request: pytest.FixtureRequest,
    cluster: FlinkCluster,
    server: ForkServer,
    folder: Path,
) -> None:
    work: Work = request.getfixturevalue(name)
    outcome = trials.attempt(cluster, server, work, fault, folder / f"{work.name}-{fault.__name__}")
    assert not outcome.complaints
    assert outcome.is_equal and outcome.codes[-1] == 0
    assert set(outcome.codes[:-1]) <= {1, KILLED, TERMINATED}
    if work.counts_parts:
        assert PARTS <= outcome.written <= PARTS + IN_FLIGHT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_job_on_the_cluster(
    number: int, code: int, cluster: FlinkCluster, server: ForkServer, embedding: Work, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = embedding.start(server, out, *trials.on(cluster.arguments))
    wait_until(lambda: embedding.is_at_middle(cluster, out), LONGEST_SECONDS, "the middle")
    os.kill(run.process, number)
    assert run.wait() == code, run.log.read_text()
    assert cluster.jobs()[-1]["state"] == "CANCELED"
    assert "was canceled on the cluster" in run.log.read_text()
    wait_until(cluster.is_idle, LONGEST_SECONDS, "free slots")
