"""Processes of a test cluster: Java's and Python's, by name, each in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import psutil

ROOT = Path(__file__).parents[2]
# Where `make test-cluster` puts Flink and Spark.
PACKAGES = ROOT / ".venv-flink/lib/python3.11/site-packages"
JAVA = "java (Debian: openjdk-17-jre-headless)"


def opened(packages: Iterable[str]) -> list[str]:
    """Return the options by which Java 17 lets old libraries see packages of its own."""
    return [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in packages]


# What Flink's and Spark's processes need of Java 17.
OPENS = opened(
    (
        "java.lang",
        "java.util",
        "java.net",
        "java.io",
        "java.nio",
        "sun.nio.ch",
        "java.lang.reflect",
        "java.text",
        "java.time",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "java.util.concurrent.locks",
    )
)


def worker_pool(port: int) -> list[str]:
    """Return the command of a worker pool: it starts workers as `python`, which must find the project."""
    module = "apache_beam.runners.worker.worker_pool_main"
    return [sys.executable, "-m", module, f"--service_port={port}"]


class Processes:
    """Processes by name, and their logs in a folder; the end of the block ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._running):
            self.kill(name)

    def start(self, name: str, command: Sequence[str], first: Path | None = None) -> None:
        """Start a command; its output is added to NAME.log, and `first` is first on its PATH."""
        folders = [str(first or ""), str(Path(sys.executable).parent), os.environ["PATH"]]
        path = os.pathsep.join(filter(None, folders))
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def preload(self, name: str, folder: Path, host: Callable[[list[str]], list[str]] = list) -> Path:
        """Start what serves FOLDER/python on a host; return that program, which comes when it is ready."""
        folder.mkdir()
        self.start(name, host([sys.executable, "-m", "tests.preloaded", str(folder)]))
        return folder / "python"

    def kill(self, name: str) -> None:
        """End a process, and what it started, by SIGKILL."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def children(self, name: str) -> list[psutil.Process]:
        """Return what a process has started and still runs, the oldest first."""
        children = psutil.Process(self._running[name].pid).children(recursive=True)
        return sorted(children, key=lambda child: child.create_time())


def connections(process: int) -> int:
    """Return how many TCP connections a process has, in the network namespace that it is in."""
    proc = Path(f"/proc/{process}")
    try:
        sockets = {str(file.readlink())[len("socket:[") : -1] for file in (proc / "fd").iterdir()}
        rows = [line.split() for kind in ("tcp", "tcp6") for line in (proc / "net" / kind).open()]
    except FileNotFoundError:
        return 0
    return sum(row[3] == "01" and row[9] in sockets for row in rows)
