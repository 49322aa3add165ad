"""Job servers that accept calls and do not answer them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from beam_jobs import detached, embed, engines, job_server, runners
from id2core.encoders.embed_job import plan_embed
from id2core.errors import EngineError
from id2core.runs.execution import Execution
from tests.conftest import wait_until
from tests.drawing import draw_photos
from tests.embedding import embed_job

RUNNING = beam_job_api_pb2.JobStateEvent(state=beam_job_api_pb2.JobState.RUNNING)


class _Server(beam_job_api_pb2_grpc.JobServiceServicer):  # type: ignore[misc]
    """Takes any job, which never ends; falls silent in one call."""

    def __init__(self, silent: str) -> None:
        self.silent = silent
        self.asked: list[str] = []
        self.released = threading.Event()

    def _answer(self, name: str, answer: Any) -> Any:
        self.asked.append(name)
        if name == self.silent:
            self.released.wait()
        return answer

    def DescribePipelineOptions(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("DescribePipelineOptions", beam_job_api_pb2.DescribePipelineOptionsResponse())

    def Prepare(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Prepare", beam_job_api_pb2.PrepareJobResponse(preparation_id="job"))

    def Run(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Run", beam_job_api_pb2.RunJobResponse(job_id="job"))

    def GetState(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetState", RUNNING)

    def GetStateStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield RUNNING
        self.asked.append("GetStateStream")
        self.released.wait()

    def GetMessageStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.released.wait()
        yield from ()


@contextmanager
def _serving(silent: str) -> Iterator[tuple[_Server, list[str]]]:
    """Serve; yield the server, and Beam's options for it."""
    servicer, server = _Server(silent), grpc.server(futures.ThreadPoolExecutor(16))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        pool = ["--environment_type=EXTERNAL", "--environment_config=x"]
        yield servicer, ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{port}", *pool]
    finally:
        servicer.released.set()
        server.stop(0)


@pytest.mark.parametrize(
    ("silent", "reason"),
    [
        ("DescribePipelineOptions", "no job server answers"),
        ("Prepare", "not accepted: the job server has not answered Prepare in 1 s$"),
        ("Run", "not accepted: the job server has not answered Run .* If the job has begun, cancel it"),
    ],
)
def test_a_silent_job_server_is_an_error_in_time(
    silent: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SERVER_SECONDS", 5.0)
    if silent == "DescribePipelineOptions":
        monkeypatch.setattr(engines, "SERVER_SECONDS", 1.0)
    with _serving(silent) as (_, arguments):
        refused = pytest.raises(EngineError, match=reason)
        with refused as caught, runners.running([*arguments, "--job_server_timeout=1"]) as pipeline:
            pipeline | beam.Create([1])
    assert "\n" not in str(caught.value)


def test_a_job_server_that_dies_as_the_job_begins_leaves_it_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: _Server, request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "Stream removed")

    monkeypatch.setattr(_Server, "Run", die)
    lost = pytest.raises(EngineError, match=r"the job server was lost.* If the job has begun")
    with _serving("") as (_, arguments), lost, runners.running(arguments) as pipeline:
        pipeline | beam.Create([1])


@pytest.mark.parametrize(
    ("silent", "at", "said"),
    [("Prepare", "Prepare", None), ("GetState", "GetStateStream", "could not be canceled (the job server")],
)
def test_a_signal_ends_the_wait_for_a_silent_job_server(
    silent: str, at: str, said: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_server, "ANSWER_SECONDS", 1.0)
    with _serving(silent) as (server, arguments):

        def interrupt() -> None:
            wait_until(lambda: at in server.asked, 600, at)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt), runners.running(arguments) as pipeline:
            pipeline | beam.Create([1])
    messages = [record.getMessage() for record in caplog.records if record.name == "id2.engines"]
    assert len(messages) == (1 if said else 0) and all(said in message for message in messages if said)


@pytest.mark.parametrize("is_accepted", [False, True])
def test_a_signal_cancels_a_detached_job_or_its_id_is_shown(
    is_accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit = runners.submit

    def interrupted(*given: Any) -> str:
        if is_accepted:
            job_id = submit(*given)
        os.kill(os.getpid(), signal.SIGINT)
        return job_id if is_accepted else submit(*given)

    monkeypatch.setattr(runners, "submit", interrupted)
    job = embed_job(str(draw_photos(tmp_path / "photos", 2)), str(tmp_path / "out"), "pdq", "none")
    with _serving("") as (server, arguments), pytest.raises(KeyboardInterrupt):
        detached.submit(embed.planned(job, plan_embed(job, Execution.begin())), arguments)
    messages = [record.getMessage() for record in caplog.records if record.name == "id2.engines"]
    assert messages == (["job job was submitted, and continues"] if is_accepted else [])
    assert ("Run" in server.asked) == is_accepted
    assert len(list((tmp_path / "out/_staging").glob("keep-*"))) == is_accepted
