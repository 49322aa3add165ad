"""A real Flink: a job manager, a task manager and a worker pool on each host, and Beam's job server.

with FlinkCluster.started(folder, libraries, jar) as cluster:
    id2.embed(..., runner="PortableRunner", beam_arguments=cluster.arguments)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.hosts import GATEWAY, Host, hosts
from tests.conftest import listening, wait_until

ROOT = Path(__file__).parents[2]
REST, JOBS, ARTIFACTS, EXPANSION, POOL = 8081, 8099, 8098, 8097, 50000
READY_SECONDS = 600.0
# What Flink's processes need of Java 17.
OPENS = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
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
]
CONFIG = {
    "jobmanager.rpc.address": GATEWAY,
    "jobmanager.bind-host": "0.0.0.0",
    "jobmanager.memory.process.size": "1000m",
    "taskmanager.memory.process.size": "1800m",
    "taskmanager.numberOfTaskSlots": "1",
    "rest.address": GATEWAY,
    "rest.bind-address": GATEWAY,
    "heartbeat.interval": "3000",
    "heartbeat.timeout": "15000",
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": "5",
    "restart-strategy.fixed-delay.delay": "2 s",
}


@dataclass
class FlinkCluster:
    """A cluster that runs.

    Attributes:
        folder: of configuration, logs and temporary files.
        libraries: the folder of `apache-flink-libraries`.
        jar: Beam's job server.
        hosts: with a task manager and a worker pool each.
        processes: by name: `jobs`, `manager`, `tasks-HOST`, `pool-HOST`.
    """

    folder: Path
    libraries: Path
    jar: Path
    hosts: list[Host]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def started(cls, folder: Path, libraries: Path, jar: Path, count: int = 2) -> Iterator[FlinkCluster]:
        """Start a cluster and wait until it takes jobs; stop it in the end."""
        with hosts(count) as every:
            cluster = cls(folder, libraries, jar, every)
            try:
                cluster._configure()
                cluster.start_manager()
                for host in every:
                    cluster.start_tasks(host)
                    cluster.start_pool(host)
                cluster.start_job_server()
                cluster.wait_until_ready()
                yield cluster
            finally:
                for name in list(cluster.processes):
                    cluster.kill(name)

    @property
    def arguments(self) -> list[str]:
        """What a job is told beside `--runner=PortableRunner`."""
        return [
            f"--job_endpoint={GATEWAY}:{JOBS}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{POOL}",
            f"--parallelism={len(self.hosts)}",
        ]

    def start_manager(self) -> None:
        """Start the job manager."""
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._start("manager", [*self._java(), "-Xmx448m", entry, "--configDir", str(self._conf)])

    def start_tasks(self, host: Host) -> None:
        """Start the task manager of a host."""
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        jvm, dynamic = self._task_options()
        addresses = ["-D", f"taskmanager.host={host.address}", "-D", f"taskmanager.bind-host={host.address}"]
        command = [*self._java(), *jvm, entry, "--configDir", str(self._conf), *dynamic, *addresses]
        self._start(f"tasks-{host.name}", host.command(command))

    def start_pool(self, host: Host) -> None:
        """Start the worker pool of a host: it starts workers as `python`, which must find the project."""
        module = "apache_beam.runners.worker.worker_pool_main"
        self._start(
            f"pool-{host.name}", host.command([sys.executable, "-m", module, f"--service_port={POOL}"])
        )

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
        command = ["java", "-Xmx512m", "-jar", str(self.jar), *(f"--{k}={v}" for k, v in options.items())]
        self._start("jobs", command)

    def wait_until_ready(self) -> None:
        """Wait until every task manager offers its slot and the job server answers."""
        wait_until(lambda: self.slots() == len(self.hosts), READY_SECONDS, "the task managers")
        for host in self.hosts:
            wait_until(lambda host=host: listening(POOL, host.address), READY_SECONDS, "a worker pool")
        wait_until(lambda: listening(JOBS, GATEWAY), READY_SECONDS, "the job server")

    def slots(self) -> int:
        """Return how many slots are free; 0 where the job manager does not answer."""
        try:
            return int(self.ask("/overview")["slots-available"])
        except OSError:
            return 0

    def ask(self, path: str) -> dict[str, object]:
        """Return what the REST API of the job manager answers."""
        with urllib.request.urlopen(f"http://{GATEWAY}:{REST}{path}", timeout=10) as answer:
            return dict(json.load(answer))

    def states(self) -> list[str]:
        """Return the states of all jobs."""
        return [job["status"] for job in self.ask("/jobs")["jobs"]]  # type: ignore[attr-defined]

    def kill(self, name: str) -> None:
        """End a process, and what it started, by SIGKILL."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @property
    def _conf(self) -> Path:
        return self.folder / "conf"

    def _configure(self) -> None:
        self._conf.mkdir(parents=True)
        config = CONFIG | {"io.tmp.dirs": str(self.folder / "tmp")}
        (self.folder / "tmp").mkdir()
        text = "".join(f"{name}: {value}\n" for name, value in config.items())
        (self._conf / "config.yaml").write_text(text)

    def _classpath(self) -> str:
        left_out = ("flink-table", "flink-scala", "flink-cep")
        jars = (jar for jar in (self.libraries / "lib").glob("*.jar") if not jar.name.startswith(left_out))
        return os.pathsep.join(map(str, sorted(jars)))

    def _java(self) -> list[str]:
        return ["java", *OPENS, "-cp", self._classpath()]

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

    def _start(self, name: str, command: Sequence[str]) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        log = (self.folder / f"{name}.log").open("ab")
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.processes[name] = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        log.close()
