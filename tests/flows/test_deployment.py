"""The deployments of infra/prefect.yaml on a real Prefect server, with a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, time
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, State
from prefect.client.schemas.schedules import CronSchedule

from id2core.runs import records
from id2core.store.datasets import Dataset
from infra import automations
from tests.conftest import wait_until
from tests.drawing import draw_photos
from tests.job_service import JobService
from tests.prefect_server import ROOT, Prefect


@pytest.fixture(scope="module")
def prefect(prefect_server: Prefect) -> Iterator[Prefect]:
    """Work pools, a worker and the deployments, set up as docs/operations.md says."""
    prefect_server.run("work-pool", "create", "id2", "--type", "process")
    with prefect_server.connected() as client:  # a call of the command takes seconds
        client.create_work_pool(WorkPoolCreate(name="id2-gpu", type="process"))
    worker = ("worker", "start", "--pool", "id2", "--type", "process")
    prefect_server.start("worker", *worker, ID2_HOME=str(ROOT))
    prefect_server.run("deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    yield prefect_server
    prefect_server.kill_workers()


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
    def check(within: float) -> None:
        [standing] = client.read_automations_by_name(automations.NAME)
        assert standing.enabled and standing.trigger.within.total_seconds() == within

    prefect.automate(540)
    check(540)
    for within in (540, 100):
        automations.ensure(client, within)
        check(within)


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
