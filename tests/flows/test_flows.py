"""Flows on a real Prefect server: the same result as a direct call, seen there, with retries."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.utilities.callables import parameter_schema

import id2
from flows import base, scan
from id2core.errors import EncoderError
from id2core.runs.records import read
from tests.commands import as_json, call
from tests.drawing import draw_photos

pytestmark = pytest.mark.usefixtures("prefect_api")
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
        tasks = {
            task.name.rpartition("-")[0] for task in client.read_task_runs() if task.flow_run_id == run.id
        }
    assert tasks == {"embed reference", "embed queries", "search references", "write report"}
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

    calls: list[str] = []
    real = embed.run_planned

    def unreliable(job: embed.EmbedJob, *more: object) -> embed.EmbedResult:
        calls.append(job.images)
        if len(calls) == 1:
            raise ConnectionError("the network was away for a moment")
        return real(job, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(embed, "run_planned", unreliable)
    monkeypatch.setitem(base.RETRY, "retry_delay_seconds", 0)
    assert scan.scan(**given).counts.references == 5
    assert len(calls) == 3, "the references twice, the uploads once"

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
