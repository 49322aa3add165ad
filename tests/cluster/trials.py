"""Faults of a cluster in the middle of a run, and what must hold when all is over.

A trial starts a command on the cluster, breaks a part of the cluster while the work is at its middle, and
mends it. The command ends with the rows of one process, or with an error of one line. Then a second run of
the same command ends with these rows.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from id2core.store.datasets import Dataset
from tests import commands
from tests.cluster.flink import FlinkCluster
from tests.cluster.processes import connections
from tests.conftest import wait_until
from tests.descriptor_sets import unit, write_embeddings
from tests.drawing import draw_photos
from tests.fork_server import ForkServer

# What differs between two executions of the same work.
TIMES = {
    "run_id",
    "embedded_at",
    "scanned_at",
    "translated_at",
    "scan_date",
    "searched_at",
    "added_at",
    "segment",
}
# How long a host is gone, and how long anything may take.
GONE_SECONDS, LONGEST_SECONDS = 10.0, 600.0
# Connections of a worker that is at work: for its log, for control, and for data.
CONNECTED = 3
KILLED, TERMINATED = -int(signal.SIGKILL), 143


@dataclass(frozen=True)
class Run:
    """A command that was started.

    Attributes:
        server: that has started it.
        process: its id.
        log: what it prints.
    """

    server: ForkServer
    process: int
    log: Path

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        return self.server.wait(self.process, LONGEST_SECONDS)


class Written:
    """Counts the records that workers write, also those that replace one of the same name."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "_staging/parts"
        self._seen: set[tuple[str, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            with suppress(FileNotFoundError):
                entries = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".json")]
                self._seen.update((entry.name, entry.inode()) for entry in entries)

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return len(self._seen)


def content(uri: Path) -> list[str]:
    """Every row of a data set but for run ids and times, in one order."""
    rows = (row for table in Dataset.open(str(uri)).tables() for row in table.to_pylist())
    return sorted(repr({k: v for k, v in row.items() if k not in TIMES}) for row in rows)


def everything(out: Path) -> dict[str, list[str]]:
    """Return the content of every data set below an `--out`, and every picture; its place does not count."""
    places = [path.parent for path in out.rglob("_SUCCESS") if path.parent.name != "runs"]
    held = {str(place.relative_to(out)): content(place) for place in places}
    pictures = [path for path in (out / "pictures").rglob("*") if path.is_file()]
    held |= {str(path.relative_to(out)): [path.read_bytes().hex()] for path in pictures}
    return {name: [row.replace(str(out), "OUT") for row in rows] for name, rows in held.items()}


def lose_task_manager(cluster: FlinkCluster, run: Run) -> None:
    """End a task manager, which takes its host's work along; a new one comes after a while."""
    host = cluster.hosts[0]
    cluster.processes.kill(f"tasks-{host.name}")
    time.sleep(GONE_SECONDS)
    cluster.start_tasks(host)


def lose_worker(cluster: FlinkCluster, run: Run) -> None:
    """End a Python worker that is at work for the command.

    Beam would wait without end for one that dies before it has connected.
    """
    command = psutil.Process(run.process)

    def at_work() -> list[psutil.Process]:
        hosts = (cluster.processes.children(f"workers-{host.name}") for host in cluster.hosts)
        new = (
            worker for workers in hosts for worker in workers if worker.create_time() > command.create_time()
        )
        return [worker for worker in new if connections(worker.pid) >= CONNECTED]

    def is_due() -> bool:
        return bool(at_work()) or command.status() == psutil.STATUS_ZOMBIE  # it has ended meanwhile

    wait_until(is_due, LONGEST_SECONDS, "a worker at work")
    for worker in at_work()[-1:]:
        worker.kill()


def lose_job_server(cluster: FlinkCluster, run: Run) -> None:
    """End Beam's job server, and start it again."""
    cluster.processes.kill("jobs")
    cluster.start_job_server()


def lose_job_manager(cluster: FlinkCluster, run: Run) -> None:
    """End the job manager, which forgets its jobs, and start it again."""
    cluster.processes.kill("manager")
    cluster.start_manager()


def lose_client(cluster: FlinkCluster, run: Run) -> None:
    """End the command that waits for the job; the job goes on."""
    os.kill(run.process, signal.SIGKILL)


def stop_client(cluster: FlinkCluster, run: Run) -> None:
    """Stop the command, which cancels the job."""
    os.kill(run.process, signal.SIGTERM)


Fault = Callable[[FlinkCluster, Run], None]
FAULTS: tuple[Fault, ...] = (
    lose_task_manager,
    lose_worker,
    lose_job_server,
    lose_job_manager,
    lose_client,
    stop_client,
)


@dataclass(frozen=True)
class Work:
    """A command, and how to see that it is at its middle.

    Attributes:
        name: of the work.
        arguments: of the command, without `--out` and the runner.
        datasets: what it makes.
        is_at_middle: takes the cluster and the `--out`.
        counts_parts: whether its workers leave records of parts that can be counted.
    """

    name: str
    arguments: Sequence[object]
    datasets: tuple[str, ...]
    is_at_middle: Callable[[FlinkCluster, Path], bool]
    counts_parts: bool = False

    def start(self, server: ForkServer, out: Path, *runner: str) -> Run:
        """Start the command."""
        log = out.with_suffix(f".{len(list(out.parent.glob(out.name + '.*.log')))}.log")
        return Run(server, server.start(*self.arguments, "--out", out, *runner, log=log), log)


@dataclass(frozen=True)
class Outcome:
    """What a trial has seen.

    Attributes:
        codes: exit codes of the runs.
        is_equal: whether the rows are those of one process.
        complaints: what else is wrong.
        written: records of parts that were written; 0 where they are not counted.
    """

    codes: tuple[int, ...]
    is_equal: bool
    complaints: tuple[str, ...]
    written: int


PART = 10
PARTS = 20
# Parts that may be made twice: those in work, one for each worker, when the job restarts, and as many of a
# job that goes on beside the next run.
IN_FLIGHT = 4


def embedding(folder: Path) -> Work:
    """Return the work of embedding 20 parts of drawn photos; they are drawn where they are not there."""
    images = folder / "images"
    if not images.exists():
        draw_photos(images, PARTS * PART)
    options = ["--encoder", "pdq", "--transform", "none", "--part-size", PART]

    def is_at_middle(cluster: FlinkCluster, out: Path) -> bool:
        return len(list((out / "_staging/parts").glob("*.json"))) >= 8

    arguments = ["embed", "--images", images, *options]
    return Work("embed", arguments, ("embeddings", "rejects"), is_at_middle, counts_parts=True)


def searching(folder: Path) -> Work:
    """Return the work of searching uploads among references, which are drawn where they are not there."""
    corpora = folder / "references", folder / "uploads"
    if not corpora[0].exists():
        write_embeddings(corpora[0] / "embeddings", unit(60_000, 256, 1), 20, "r")
        write_embeddings(corpora[1] / "embeddings", unit(8_000, 256, 2), 4, "q")
    names = [f"dataset:{corpus}" for corpus in corpora]

    def is_at_middle(cluster: FlinkCluster, out: Path) -> bool:
        states = cluster.steps()
        has_begun = list(states.values()).count("FINISHED") > 1
        return has_begun and any("SearchShards" in n and s == "RUNNING" for n, s in states.items())

    arguments = ["scan", "--reference", names[0], "--queries", names[1], "--top-k", 2]
    return Work("search", arguments, ("matches",), is_at_middle)


def on(arguments: Sequence[str]) -> list[str]:
    """Return how a command is told to run on an engine."""
    return ["--runner", "PortableRunner", "--", *arguments]


def attempt(cluster: FlinkCluster, server: ForkServer, work: Work, fault: Fault, out: Path) -> Outcome:
    """Run a trial: its `--out` is a new folder, whose rows are compared with those of `alone` beside it."""
    watch = Written(out)
    runs = [work.start(server, out, *on(cluster.arguments))]
    wait_until(lambda: work.is_at_middle(cluster, out), LONGEST_SECONDS, "the middle")
    fault(cluster, runs[0])
    codes = [runs[0].wait()]
    while codes[-1] and len(codes) < 4:
        runs.append(work.start(server, out, *on(cluster.arguments)))
        codes.append(runs[-1].wait())
    wait_until(cluster.is_idle, LONGEST_SECONDS, "the end of jobs that go on")
    alone = out.parent / f"{work.name}-alone"
    is_equal = not codes[-1] and all(content(out / name) == content(alone / name) for name in work.datasets)
    complaints = [
        *_errors(runs, codes),
        *(_leftovers(work, out) if not codes[-1] else ["no run has ended well"]),
    ]
    return Outcome(tuple(codes), is_equal, tuple(complaints), watch.stop() if work.counts_parts else 0)


def _errors(runs: Sequence[Run], codes: Sequence[int]) -> list[str]:
    """Return what failed runs printed that is not one line of error."""
    return [
        run.log.read_text()
        for run, code in zip(runs, codes, strict=True)
        if code not in (0, KILLED, TERMINATED)
        and (code != 1 or "Traceback" in run.log.read_text() or run.log.read_text().count("error: ") != 1)
    ]


def _leftovers(work: Work, out: Path) -> list[str]:
    """Return what is wrong below an `--out`, or is there for nothing once the grace period is over."""
    checked = commands.call("doctor", "--out", out)
    complaints = [] if not checked.returncode else [checked.stdout + checked.stderr]
    environment = {"ID2_LEFTOVER_HOURS": "0", "ID2_CALIBRATION": "none"}
    swept = commands.call(*work.arguments, "--out", out, environment=environment)
    if swept.returncode:
        complaints.append(swept.stderr)
    return complaints + [str(path) for path in out.rglob("_staging/**/*") if path.is_file()]
