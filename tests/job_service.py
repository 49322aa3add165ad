"""Beam's own job service and an external worker pool: the protocol of Flink and Spark, without Java."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from tests.conftest import free_port, listening, wait_until

ROOT = Path(__file__).parents[1]


def portable(job_server: str, pool: str) -> list[str]:
    """Return Beam's options for a job server and a worker pool, by their addresses."""
    return [f"--job_endpoint={job_server}", "--environment_type=EXTERNAL", f"--environment_config={pool}"]


@dataclass
class JobService:
    """A job service that runs.

    Attributes:
        job_port, pool_port: of the service and of the worker pool.
        process, pool: the two.
    """

    job_port: int
    pool_port: int
    process: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def started(cls, preloaded: Path | None = None) -> Iterator[JobService]:
        """Start both and wait until they answer; stop them in the end.

        Args:
            preloaded: a folder with the `python` of `tests.preloaded`, whose workers start in milliseconds.
        """
        job_port, pool_port = free_port(), free_port()
        # The pool starts its workers with `python`, which must be this one and must find the project.
        folders = [*([str(preloaded)] if preloaded else []), str(Path(sys.executable).parent)]
        path = os.pathsep.join([*folders, os.environ["PATH"]])
        own = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        service = cls(
            job_port,
            pool_port,
            _start(own, "portability.local_job_service_main", "--job_port", str(job_port)),
            _start(own, "worker.worker_pool_main", "--service_port", str(pool_port)),
        )
        try:
            for port in (job_port, pool_port):
                wait_until(lambda port=port: listening(port), 900, f"port {port}")
            yield service
        finally:
            for process in (service.process, service.pool):
                os.killpg(process.pid, signal.SIGKILL)  # with the workers that it has started
                process.wait()

    @property
    def options(self) -> list[str]:
        """What a job is told beside `--runner=PortableRunner`."""
        return portable(f"127.0.0.1:{self.job_port}", f"127.0.0.1:{self.pool_port}")

    @property
    def arguments(self) -> list[str]:
        return ["--runner=PortableRunner", *self.options]

    def states(self) -> list[str]:
        """Return the states of all jobs, the last one last."""
        with grpc.insecure_channel(f"127.0.0.1:{self.job_port}") as channel:
            request = beam_job_api_pb2.GetJobsRequest()
            jobs = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(request).job_info
        return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in jobs]


def _start(environment: Mapping[str, str], module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"apache_beam.runners.{module}", *arguments]
    return subprocess.Popen(command, env=dict(environment), stderr=subprocess.DEVNULL, start_new_session=True)
