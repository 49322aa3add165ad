"""A real Spark in one process, behind Beam's job server, with a worker pool beside it.

with SparkEngine.started(folder, jars, list_of_jars) as spark:
    id2.scan(..., runner="PortableRunner", beam_arguments=spark.arguments)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import OPENS, Processes, opened, worker_pool
from tests.conftest import free_port, listening, wait_until
from tests.job_service import portable

READY_SECONDS = 600.0
DRIVER = "org.apache.beam.runners.spark.SparkJobServerDriver"
# What Spark needs of Java 17 beside what Flink does.
MORE = ("sun.security.action", "sun.nio.cs", "sun.util.calendar")


@dataclass
class SparkEngine:
    """A Spark that runs.

    Attributes:
        folder: of logs and temporary files.
        job_port, pool_port: of the job server and of the worker pool.
    """

    folder: Path
    job_port: int
    pool_port: int

    @classmethod
    @contextmanager
    def started(cls, folder: Path, jars: Path, listed: Path, cores: int = 2) -> Iterator[SparkEngine]:
        """Start Spark and wait until it takes jobs; stop it in the end.

        Args:
            folder: where it writes.
            jars: Spark's own.
            listed: a text file with the names of Beam's jars for Spark, which are in `lib/` beside it.
            cores: of the machine that Spark takes.
        """
        spark = cls(folder, free_port(), free_port())
        beam = [listed.parent / "lib" / name for name in listed.read_text().split()]
        options = {
            "spark-master-url": f"local[{cores}]",
            "job-host": "127.0.0.1",
            "job-port": spark.job_port,
            "artifact-port": free_port(),
            "expansion-port": free_port(),
            "artifacts-dir": folder / "artifacts",
        }
        # Beam's jars come first: both bring some libraries, and Spark's are older.
        path = os.pathsep.join([*map(str, beam), str(jars / "*")])
        command = ["java", "-Xmx1g", *OPENS, *opened(MORE), "-cp", path, DRIVER]
        with Processes(folder) as processes:
            processes.start("spark", [*command, *(f"--{name}={value}" for name, value in options.items())])
            python = processes.preload("workers", folder / "bin")
            processes.start("pool", worker_pool(spark.pool_port), first=python.parent)
            wait_until(python.exists, READY_SECONDS, "what workers are forks of")
            for port in (spark.job_port, spark.pool_port):
                wait_until(lambda port=port: listening(port), READY_SECONDS, "Spark")
            yield spark

    @property
    def arguments(self) -> list[str]:
        """What a job is told beside `--runner=PortableRunner`."""
        return portable(f"127.0.0.1:{self.job_port}", f"localhost:{self.pool_port}")
