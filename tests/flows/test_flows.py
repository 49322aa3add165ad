"""Flows on a real Prefect server: the same result as a direct call, seen there, with retries."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.utilities.callables import parameter_schema

import id2
import id2core
from flows import base, nightly, notifications, progress, scan
from flows.backfill import backfill
from id2 import stages
from id2core.errors import EncoderError, OptionError
from id2core.runs.progress import tally
from id2core.runs.records import read
from tests.commands import as_json, call
from tests.conftest import wait_until
from tests.drawing import draw_photos
from tests.webhook_server import Webhook, serving

pytestmark = pytest.mark.usefixtures("prefect_api")
DEMO = Path(id2core.__file__).parent / "data/demo"
OWN = ("run_id", "seconds", "scanned_at")


@pytest.fixture
def given(tmp_path: Path, tiny_vae: str) -> dict[str, str]:
    draw_photos(tmp_path / "references", 5)
    draw_photos(tmp_path / "uploads", 2, first_seed=2)
    places = {"reference": str(tmp_path / "references"), "queries": str(tmp_path / "uploads")}
    return places | {"out": str(tmp_path / "out"), "encoder": tiny_vae}


def test_a_command_with_a_server_runs_as_the_flow_with_the_same_result(
    given: dict[str, str], prefect_api: str, tmp_path: Path
) -> None:
    words = [part for name, value in given.items() for part in (f"--{name}", value)]
    served = call("scan", *words, "--json", environment={"PREFECT_API_URL": prefect_api})
    assert served.returncode == 0, served.stderr
    direct = as_json(id2.scan(**given))
    assert as_json(id2.ScanSummary.model_validate_json(served.stdout)) == direct
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["scan"])))
        [run] = [run for run in runs if run.parameters["out"] == given["out"]]
        assert run.name == f"scan {given['queries']}" and run.state and run.state.is_completed()
        tasks = {task.name for task in client.read_task_runs() if task.flow_run_id == run.id}
    today = datetime.now(UTC).date()
    stages = ("embed reference, queries", "search references", "write report")
    assert tasks == {f"{stage} {today}" for stage in stages}
    assert [run.status for run in read(given["out"])] == ["done", "done"]


def test_the_parameters_of_a_flow_are_the_options() -> None:
    schema = parameter_schema(scan.scan)
    assert schema.required == ["reference", "queries", "out"]
    assert schema.properties["top_k"]["description"] == "References kept per upload."
    assert "progress" not in schema.properties


def test_a_fault_that_passes_is_retried_and_a_mistake_is_not(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from beam_jobs import embed

    calls: list[object] = []
    real = embed.run_planned

    def unreliable(*given: Any) -> list[embed.EmbedResult]:
        calls.append(given)
        if len(calls) == 1:
            raise ConnectionError("the network was away for a moment")
        return real(*given)

    monkeypatch.setattr(embed, "run_planned", unreliable)
    monkeypatch.setitem(base.RETRY, "retry_delay_seconds", 0)
    assert scan.scan(**given).counts.references == 5
    assert len(calls) == 2

    def mistaken(*_: object) -> None:
        calls.append("mistake")
        raise EncoderError("no such encoder")

    monkeypatch.setattr(embed, "run_planned", mistaken)
    calls.clear()
    with pytest.raises(EncoderError):
        scan.scan(**given | {"out": given["out"] + "-2"})
    assert calls == ["mistake"]
    [run] = read(given["out"] + "-2")
    assert (run.status, run.error) == ("failed", "EncoderError: no such encoder")


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with serving() as server:
        monkeypatch.setenv("ID2_WEBHOOK_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(notifications, "PAUSES", ())
        yield server


def run_of(out: str) -> UUID:
    with get_client(sync_client=True) as client:
        return next(run.id for run in client.read_flow_runs() if run.parameters.get("out") == out)


def test_a_night_leaves_a_summary_links_and_a_message_of_what_is_new(
    webhook: Webhook, tmp_path: Path
) -> None:
    # Photos: what is drawn has too little content for a verdict.
    names = "references/infinite-sea-3", "references/forest-path-5", "uploads/u001", "uploads/u003"
    for uri in (f"{name}.jpg" for name in names):
        (tmp_path / uri).parent.mkdir(exist_ok=True)
        shutil.copy(DEMO / uri, tmp_path / uri)
    out = str(tmp_path / "out")
    given = {"reference": [str(tmp_path / "references")], "queries": [str(tmp_path / "uploads")], "out": out}
    summary = nightly.nightly(**given, encoder="mini", canary=False)
    assert summary.new_uploads == 2
    with get_client(sync_client=True) as client:
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_of(out)]))
        made = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=only)}
    assert {"summary", "report", "matches", "progress"} == set(made)
    assert (tmp_path / "out/report.html").as_uri() in str(made["report"].data)
    assert "new pairs: match" in str(made["summary"].data)
    [message] = webhook.messages
    assert message["event"] == "matches" and message["counts"]["match"] == 2
    assert message["links"]["report.html"] == (tmp_path / "out/report.html").as_uri()
    nightly.nightly(**given, encoder="mini", canary=False)
    assert len(webhook.messages) == 1, "nothing is new"


def test_a_failure_is_told_and_a_webhook_that_fails_changes_nothing(
    webhook: Webhook, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderError):
        scan.scan(**given | {"encoder": "no-such-encoder"})
    [message] = webhook.messages
    assert message["event"] == "failure" and "no-such-encoder" in message["text"]
    monkeypatch.setenv("ID2_WEBHOOK_URL", "ftp://nowhere")
    assert scan.scan(**given).counts.references == 5


def test_a_stage_logs_its_counts_and_one_that_hangs_is_ended(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    monkeypatch.setattr(progress, "RUN_LOG_SECONDS", 0.1)
    monkeypatch.setenv("ID2_STAGE_HOURS", str(1 / 3600))

    def hang() -> None:
        tally.start("embed", 4)
        tally.add("embed", 2, 1)
        for _ in range(600):  # one call that blocks is not interrupted, what comes after it is
            time.sleep(0.1)

    monkeypatch.setattr(id2.scan, "_work", lambda _: stages.stage("embed queries", hang))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        scan.scan(**given)
    assert time.monotonic() - began < 50, "not tried again"

    def lines() -> list[str]:
        with get_client(sync_client=True) as client:
            only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_of(given["out"])]))
            return [log.message for log in client.read_logs(log_filter=only)]

    line = "embed queries: embed: 3/4 images, 1 of them rejected"
    wait_until(lambda: any(text.startswith(line) for text in lines()), 60, "the log")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": ["gs://inbox/{date}"], "deployment": "no/such"}, "no deployment no/such"),
        ({"queries": ["gs://inbox/{date}", "gs://inbox"]}, "not gs://inbox$"),
        ({"queries": ["gs://inbox/{date}"], "last": date(2026, 11, 8)}, "2026-11-09, is after the last"),
    ],
)
def test_a_mistake_is_named_before_any_night_of_a_backfill_runs(options: dict[str, Any], says: str) -> None:
    days = {"first": date(2026, 11, 9), "last": date(2026, 11, 11)}
    with pytest.raises(OptionError, match=says):
        backfill(**days | options)  # the nights run in test_deployment.py, which has a worker
