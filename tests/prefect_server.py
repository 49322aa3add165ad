"""A real Prefect server in a home of its own, and commands of Prefect there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.conftest import wait_until

ROOT = Path(__file__).parents[1]


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
        """End all of it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(self.processes(), timeout=5)  # what does not listen is killed
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not self.processes(), 60, "the end of the processes")
