"""The deployments of infra/prefect.yaml on a real Prefect server, with a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from id2core.runs import records
from id2core.store.datasets import Dataset
from infra import automations
from tests.conftest import free_port, listening, wait_until
from tests.drawing import draw_photos
from tests.job_service import JobService

ROOT = Path(__file__).parents[2]


@dataclass
class Prefect:
    """A Prefect home of its own, and the processes that were started in it."""

    home: Path
    port: int

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the caller's own Prefect or ID² settings; quiet, offline and quick to poll."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ID2_"))}
        return own | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect takes
        }

    @contextmanager
    def connected(self) -> Iterator[SyncPrefectClient]:
        """A client of the server."""
        with temporary_settings({PREFECT_API_URL: self.api}), get_client(sync_client=True) as client:
            yield client

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def start(self, name: str, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
        """`prefect …` in the background, in a process group of its own."""
        with (self.home / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=self.home,  # not the repository: a worker runs anywhere
                env=self.environment | extra,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *arguments: str) -> None:
        """`prefect …` as an operator types it, in the repository's root."""
        result = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def automate(self, within: float) -> None:
        """`infra/automations.py` as an operator calls it."""
        command = [sys.executable, "infra/automations.py", "--within", str(within)]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True, capture_output=True)

    def kill_workers(self) -> None:
        """What a machine that dies does to its worker and its flow runs."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "server" not in process.cmdline() and "uvicorn" not in " ".join(process.cmdline()):
                    process.kill()

    def processes(self) -> list[psutil.Process]:
        """All that live in this home, flow runs too: the worker gives each a session of its own."""
        deployments = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == str(self.home):
                    deployments.append(process)
        return deployments

    def stop(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(self.processes(), timeout=5)  # what does not listen is killed
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not self.processes(), 60, "the end of the processes")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """Server, work pool, worker and the deployments, set up as docs/operations.md says."""
    it = Prefect(tmp_path_factory.mktemp("prefect"), free_port())
    try:
        it.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(it.port))
        wait_until(lambda: listening(it.port), 900, "the Prefect server")
        it.run("work-pool", "create", "id2", "--type", "process")
        with it.connected() as client:  # a call of the command takes seconds
            client.create_work_pool(WorkPoolCreate(name="id2-gpu", type="process"))
        it.start("worker", "worker", "start", "--pool", "id2", "--type", "process", ID2_HOME=str(ROOT))
        it.run("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
        yield it
    finally:
        it.stop()


@pytest.fixture
def client(prefect: Prefect) -> Iterator[SyncPrefectClient]:
    with prefect.connected() as connected:
        yield connected


def test_a_worker_runs_the_one_off_deployment(
    prefect: Prefect, client: SyncPrefectClient, tiny_vae: str, tmp_path: Path
) -> None:
    draw_photos(tmp_path / "references", 4)
    draw_photos(tmp_path / "uploads", 2, first_seed=2)
    (tmp_path / "uploads" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    parameters = {
        "reference": str(tmp_path / "references"),
        "queries": str(tmp_path / "uploads"),
        "out": str(tmp_path / "out"),
        "encoder": tiny_vae,
    }
    deployment = client.read_deployment_by_name("scan/one-off")
    assert deployment.schedules == []
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def finished() -> FlowRun | None:
        flow_run = client.read_flow_run(run.id)
        return flow_run if flow_run.state and flow_run.state.is_final() else None

    wait_until(lambda: finished() is not None, 1800, "the flow run")
    ended = finished()
    assert ended and ended.state and ended.state.is_completed(), prefect.log("worker")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["run_id"] in (tmp_path / "out/report.html").read_text()
    counts = summary["counts"]
    assert (counts["references"], counts["queries"]) == (4, 2)
    assert (counts["reference_rejects"], counts["query_rejects"]) == (0, 1)


@pytest.mark.slow
def test_a_run_that_is_cancelled_cancels_its_job_elsewhere(
    prefect: Prefect, client: SyncPrefectClient, tmp_path: Path
) -> None:
    draw_photos(tmp_path / "originals", 60)
    parameters = {
        "images": str(tmp_path / "originals"),
        "out": str(tmp_path / "out"),
        "model": "mini-a",
        "prompts": "empty",
        "steps": 500,  # minutes
        "runner": "PortableRunner",
    }
    deployment = client.read_deployment_by_name("translate/one-off")
    with JobService.started() as service:
        parameters["beam_arguments"] = service.options
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        wait_until(lambda: service.states() == ["RUNNING"], 900, "the job")
        prefect.run("flow-run", "cancel", str(run.id))
        wait_until(lambda: service.states() == ["CANCELLED"], 300, "the end of the job")

    def state() -> State:
        present = client.read_flow_run(run.id).state
        assert present
        return present

    # The run may say that it crashed, before its worker says that it was canceled.
    wait_until(lambda: state().is_cancelled(), 600, "the end of the run")


def test_the_server_schedules_the_nightly_deployment(prefect: Prefect, client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name("nightly/nightly")
    [schedule] = deployment.schedules
    assert schedule.active and not deployment.paused
    assert isinstance(schedule.schedule, CronSchedule)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "UTC")
    assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options
    assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE

    def scheduled() -> list[FlowRun]:
        only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        return client.read_flow_runs(deployment_filter=only)

    # The schedule alone proves nothing: with an unsuitable SQLAlchemy the server keeps it and makes no runs.
    wait_until(lambda: len(scheduled()) >= 3, 900, "the scheduler")
    for run in scheduled():
        assert run.auto_scheduled and run.state and run.state.is_scheduled()
        assert run.expected_start_time and run.expected_start_time > datetime.now(UTC)
        assert run.expected_start_time.astimezone(UTC).time() == time(2, 0)
        assert run.parameters["queries"][0].startswith("gs://")


def test_the_automation_is_created_once_and_brought_up_to_date(
    prefect: Prefect, client: SyncPrefectClient
) -> None:
    for within in (540, 540, 100):
        prefect.automate(within)
        [standing] = client.read_automations_by_name(automations.NAME)
        assert standing.enabled and standing.trigger.within.total_seconds() == within


@pytest.mark.slow
def test_a_backfill_runs_its_nights_in_order_and_names_the_one_that_failed(
    prefect: Prefect, client: SyncPrefectClient, tmp_path: Path
) -> None:
    photos = sorted(draw_photos(tmp_path / "photos", 4).iterdir())
    days = ["2026-11-09", "2026-11-10", "2026-11-11"]
    for day, photo in zip(days, photos, strict=False):
        (tmp_path / f"{day}.csv").write_text(f"uri\n{photo}\n")
    broken = tmp_path / f"{days[1]}.csv"
    broken.write_text("no column of that name\n")
    out = tmp_path / "out"
    common = {"reference": [str(tmp_path / "photos")], "out": str(out), "encoder": "pdq", "canary": False}
    parameters = {
        "first": days[0],
        "last": days[2],
        "queries": [f"list:{tmp_path}/{{date}}.csv"],
        "parameters": common | {"transform": "none"},
    }
    deployment = client.read_deployment_by_name("backfill/backfill")

    def backfilled() -> tuple[str, str]:
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

        def state() -> State | None:
            return client.read_flow_run(run.id).state

        wait_until(lambda: bool((ended := state()) and ended.is_final()), 1800, "the backfill")
        ended = state()
        assert ended
        return str(ended.name), str(ended.message)

    name, message = backfilled()
    assert name == "Failed" and "1 of 3 nights did not end well: 2026-11-10 (Failed)" in message
    embeddings = Dataset.open(str(out / "queries/embeddings"))
    assert embeddings.rows == 2
    nights = records.read(str(out))
    assert [(run.config["date"], run.status, run.new_queries) for run in nights] == [
        (days[0], "done", 1),
        (days[1], "failed", None),
        (days[2], "done", 1),
    ]
    broken.write_text(f"uri\n{photos[1]}\n")
    assert backfilled()[0] == "Completed"
    again = records.read(str(out))[3:]
    assert [(run.config["date"], run.new_queries) for run in again] == list(zip(days, (0, 1, 0), strict=True))
    scored = Dataset.open(str(out / "matches")).rows
    assert scored == 3 * 4


@pytest.mark.slow
def test_a_killed_night_is_seen_and_the_next_night_runs(
    prefect: Prefect, client: SyncPrefectClient, tiny_vae: str, tmp_path: Path
) -> None:
    draw_photos(tmp_path / "references", 300)
    draw_photos(tmp_path / "uploads", 2)
    out = tmp_path / "out"
    parameters = {
        "reference": [str(tmp_path / "references")],
        "queries": [str(tmp_path / "uploads")],
        "out": str(out),
        "encoder": tiny_vae,
    }
    prefect.automate(75)
    deployment = client.read_deployment_by_name("nightly/nightly")

    def night() -> FlowRun:
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state(run: FlowRun) -> str:
        return str(client.read_flow_run(run.id).state_name)

    killed = night()
    wait_until((out / "runs/_SUCCESS").exists, 1800, "the night")
    prefect.kill_workers()
    following = night()
    assert state(killed) == "Running"
    prefect.start("worker-2", "worker", "start", "--pool", "id2", "--type", "process", ID2_HOME=str(ROOT))
    wait_until(lambda: state(killed) == "Crashed", 900, "the automation")
    wait_until(lambda: state(following) in ("Completed", "Failed", "Crashed"), 1800, "the next night")
    assert state(following) == "Completed", prefect.log("worker-2")
    found = client.read_flow_run(killed.id).state
    assert found and "No heartbeat for 75 s" in str(found.message)
