"""The job server that Beam starts itself, with a Flink of its own in the same process of Java."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import pytest

from beam_jobs import runners
from tests.conftest import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def arguments(jar: Path) -> list[str]:
    return ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--environment_type=LOOPBACK"]


def _sleep(seconds: float, begun: str) -> None:
    Path(begun).touch()
    time.sleep(seconds)


def _run(arguments: list[str], seconds: float, begun: Path) -> None:
    with runners.running(arguments) as pipeline:
        pipeline | beam.Create([seconds]) | beam.Map(_sleep, begun=str(begun))


def test_a_job_can_be_submitted_in_any_thread(arguments: list[str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_run, arguments, 0.0, tmp_path / "begun").result()
    assert (tmp_path / "begun").exists()


def test_a_signal_cancels_the_job(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = tmp_path / "begun"

    def interrupt() -> None:
        wait_until(begun.exists, 600, "the job")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        _run(arguments, 30.0, begun)
    assert any("was canceled on the cluster" in record.getMessage() for record in caplog.records)
