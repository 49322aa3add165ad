"""A real Flink: a job manager, a task manager and a worker pool on each host, and Beam's job server.

with FlinkCluster.started(folder, libraries, jar) as cluster:
    id2.embed(..., runner="PortableRunner", beam_arguments=cluster.arguments)
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from apache_beam.utils.subprocess_server import JavaJarServer

from tests.cluster import hosts, jars
from tests.cluster.hosts import GATEWAY, Host
from tests.cluster.processes import JAVA, OPENS, PACKAGES, ROOT, Processes, worker_pool
from tests.conftest import listening, wait_until
from tests.job_service import portable

REST, JOBS, ARTIFACTS, EXPANSION, POOL = 8081, 8099, 8098, 8097, 50000
READY_SECONDS = 600.0
ENDED = {"FINISHED", "CANCELED", "FAILED"}
COMPOSE = ROOT / "infra/flink/compose.yaml"
# What stands nowhere but here: addresses, and memory for a small machine.
HERE = {
    "jobmanager.rpc.address": GATEWAY,
    "jobmanager.bind-host": "0.0.0.0",
    "jobmanager.memory.process.size": "1000m",
    "taskmanager.memory.process.size": "1800m",
    "rest.address": GATEWAY,
    "rest.bind-address": GATEWAY,
}


def deployed() -> dict[str, str]:
    """Return Flink's settings as infra/flink/ deploys it."""
    text = yaml.safe_load(COMPOSE.read_text())["x-flink"]["environment"]["FLINK_PROPERTIES"]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def libraries() -> Path:
    """Return the folder of `apache-flink-libraries`."""
    return PACKAGES / "pyflink"


def missing() -> tuple[Path | None, str]:
    """Return Beam's job server, and what a cluster needs and is not here; with the one, never the other."""
    lacks = {
        "root, for network namespaces": os.geteuid() != 0,
        JAVA: not shutil.which("java"),
        "ip (Debian: iproute2)": not shutil.which("ip"),
        "Flink: run make test-cluster": not libraries().is_dir(),
    }
    for what, is_lacking in lacks.items():
        if is_lacking:
            return None, what
    if refusal := hosts.refusal():
        return None, f"the right to make network namespaces (CAP_NET_ADMIN and CAP_SYS_ADMIN): {refusal}"
    jar = _job_server()
    return jar, "" if jar else "Beam's job server for Flink 1.19: FLINK_JOB_SERVER names its jar"


def required() -> Path:
    """Return Beam's job server; end the process with what is missing if no cluster can be started here."""
    jar, lack = missing()
    return jar or sys.exit(f"no cluster can be started here, because this is missing: {lack}")


def _job_server() -> Path | None:
    """Return the jar of Beam's job server: that of FLINK_JOB_SERVER, else the one that Beam downloads."""
    if named := os.environ.get("FLINK_JOB_SERVER"):
        return jars.whole(Path(named).absolute(), PACKAGES) if Path(named).is_file() else None
    try:
        url = JavaJarServer.path_to_beam_jar(":runners:flink:1.19:job-server:shadowJar")
        return Path(JavaJarServer.local_jar(url))
    except Exception:
        return None


@dataclass
class FlinkCluster:
    """A cluster that runs.

    Attributes:
        folder: of configuration, logs and temporary files.
        libraries: the folder of `apache-flink-libraries`.
        jar: Beam's job server.
        hosts: each with a task manager and a worker pool.
        processes: by name: `jobs`, `manager`, `tasks-HOST`, `pool-HOST`, `workers-HOST`.
        preloads: whether workers are forks of a process that has imported everything.
    """

    folder: Path
    libraries: Path
    jar: Path
    hosts: list[Host]
    processes: Processes
    preloads: bool = True

    @classmethod
    @contextmanager
    def started(
        cls, folder: Path, libraries: Path, jar: Path, count: int = 2, *, preloads: bool = True
    ) -> Iterator[FlinkCluster]:
        """Start a cluster and wait until it takes jobs; stop it in the end.

        Raises:
            RuntimeError: another cluster, or a part that it has left behind, listens where this one would.
        """
        with hosts.hosts(count) as every, Processes(folder) as processes:
            for port in (REST, JOBS):
                if listening(port, GATEWAY):
                    raise RuntimeError(
                        f"{GATEWAY}:{port} is taken: end what listens there (ps aux | grep java)"
                    )
            cluster = cls(folder, libraries, jar, every, processes, preloads)
            cluster._configure()
            cluster.start_manager()
            for host in every:
                cluster.start_tasks(host)
                cluster.start_pool(host)
            cluster.start_job_server()
            cluster.wait_until_ready()
            yield cluster

    @property
    def arguments(self) -> list[str]:
        """What a job is told beside `--runner=PortableRunner`."""
        options = portable(f"{GATEWAY}:{JOBS}", f"localhost:{POOL}")
        return [*options, f"--parallelism={len(self.hosts)}"]

    def start_manager(self) -> None:
        """Start the job manager."""
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self.processes.start("manager", [*self._java(), "-Xmx448m", entry, "--configDir", str(self._conf)])

    def start_tasks(self, host: Host) -> None:
        """Start the task manager of a host."""
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        jvm, dynamic = self._task_options
        addresses = ["-D", f"taskmanager.host={host.address}", "-D", f"taskmanager.bind-host={host.address}"]
        command = [*self._java(), *jvm, entry, "--configDir", str(self._conf), *dynamic, *addresses]
        self.processes.start(f"tasks-{host.name}", host.command(command))

    def start_pool(self, host: Host) -> None:
        """Start the worker pool of a host, and what its workers are forks of, if anything."""
        first = None
        if self.preloads:
            first = self.processes.preload(f"workers-{host.name}", self._bin(host), host.command).parent
        self.processes.start(f"pool-{host.name}", host.command(worker_pool(POOL)), first=first)

    def start_job_server(self) -> None:
        """Start Beam's job server."""
        options = {
            "job-host": GATEWAY,
            "flink-master": f"{GATEWAY}:{REST}",
            "job-port": JOBS,
            "artifact-port": ARTIFACTS,
            "expansion-port": EXPANSION,
            "artifacts-dir": self.folder / "artifacts",
        }
        command = [
            "java",
            "-Xmx512m",
            *OPENS,
            "-jar",
            str(self.jar),
            *(f"--{k}={v}" for k, v in options.items()),
        ]
        self.processes.start("jobs", command)

    def wait_until_ready(self) -> None:
        """Wait until every task manager offers its slot and the job server answers."""
        wait_until(lambda: self.slots() == len(self.hosts), READY_SECONDS, "the task managers")
        for host in self.hosts:
            wait_until(lambda host=host: listening(POOL, host.address), READY_SECONDS, "a worker pool")
            python = self._bin(host) / "python"
            if self.preloads:
                wait_until(python.exists, READY_SECONDS, "what workers are forks of")
        wait_until(lambda: listening(JOBS, GATEWAY), READY_SECONDS, "the job server")

    def slots(self) -> int:
        """Return how many slots are free; 0 where the job manager does not answer."""
        try:
            return int(self.ask("/overview")["slots-available"])
        except OSError:
            return 0

    def ask(self, path: str) -> dict[str, Any]:
        """Return what the REST API of the job manager answers."""
        with urllib.request.urlopen(f"http://{GATEWAY}:{REST}{path}", timeout=10) as answer:
            return dict(json.load(answer))

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, the last one last."""
        jobs: list[dict[str, Any]] = self.ask("/jobs/overview")["jobs"]
        return sorted(jobs, key=lambda job: int(job["start-time"]))

    def steps(self) -> dict[str, str]:
        """Return the steps of the last job by name, each with its state; none where nobody answers."""
        try:
            vertices = [v for job in self.jobs()[-1:] for v in self.ask(f"/jobs/{job['jid']}")["vertices"]]
        except OSError:
            return {}
        return {vertex["name"]: vertex["status"] for vertex in vertices}

    def is_idle(self) -> bool:
        """Return whether every job has ended, and every slot is free."""
        try:
            return self.slots() == len(self.hosts) and ENDED.issuperset(job["state"] for job in self.jobs())
        except OSError:
            return False

    def _bin(self, host: Host) -> Path:
        return self.folder / f"bin-{host.name}"

    @property
    def _conf(self) -> Path:
        return self.folder / "conf"

    def _configure(self) -> None:
        self._conf.mkdir(parents=True)
        config = deployed() | HERE | {"io.tmp.dirs": str(self.folder / "tmp")}
        (self.folder / "tmp").mkdir()
        text = "".join(f"{name}: {value}\n" for name, value in config.items())
        (self._conf / "config.yaml").write_text(text)

    def _classpath(self) -> str:
        left_out = ("flink-table", "flink-scala", "flink-cep")
        jars = (jar for jar in (self.libraries / "lib").glob("*.jar") if not jar.name.startswith(left_out))
        return os.pathsep.join([*map(str, sorted(jars)), str(self.jar)])  # as deployed

    def _java(self) -> list[str]:
        return ["java", *OPENS, "-cp", self._classpath()]

    @functools.cached_property
    def _task_options(self) -> tuple[list[str], list[str]]:
        """Return JVM options and dynamic properties of a task manager, as Flink computes them."""
        utilities = self.libraries / "bin" / "bash-java-utils.jar"
        done = subprocess.run(
            [
                "java",
                "-cp",
                f"{utilities}{os.pathsep}{self._classpath()}",
                "org.apache.flink.runtime.util.bash.BashJavaUtils",
                "GET_TM_RESOURCE_PARAMS",
                "--configDir",
                str(self._conf),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        marker = "BASH_JAVA_UTILS_EXEC_RESULT:"
        jvm, dynamic = (
            line.partition(marker)[2].split() for line in done.stdout.splitlines() if line.startswith(marker)
        )
        return jvm, dynamic
