"""Cancel jobs by Flink's own API: a job that Beam's job server reports as canceled continues in Flink."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any, Final

import grpc
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.flink_runner import MAGIC_HOST_NAMES

_ENDED: Final = frozenset({"FINISHED", "CANCELED", "FAILED"})
_REQUEST_SECONDS: Final = 10.0
_MASTER: Final = "beam:option:flink_master:v1"


def master_of(options: PipelineOptions, endpoint: str | None, job: str) -> str | None:
    """Return the address of Flink's API from the options or the job server; None if neither has it.

    Args:
        options: of the pipeline.
        endpoint: address of a running job server; None if Beam starts one.
        job: id of the job at the job server.

    Raises:
        grpc.RpcError: the job server does not answer.
    """
    named = options.view_as(FlinkRunnerOptions).flink_master
    if endpoint and named in MAGIC_HOST_NAMES:
        named = _told_by_server(endpoint, job)
    if not named or named in MAGIC_HOST_NAMES:
        return None
    return str(named) if "://" in named else f"http://{named}"


def cancel(master: str, job: str, seconds: float) -> bool:
    """Cancel a job, and wait until it has ended; return whether it has.

    Args:
        master: address of Flink's API.
        job: id of the job at the job server: its name in Flink, and a suffix.
        seconds: how long to wait.

    Raises:
        OSError: Flink does not answer, or refuses.
        LookupError: other jobs have the same name.
    """
    name, deadline = job.rpartition("_")[0], time.monotonic() + seconds
    asked = False
    while active := _active(master, name):
        if len(active) > 1:
            raise LookupError(f"{len(active)} jobs are named {name}")
        if not asked:
            asked = True
            _ask_to_cancel(master, active[0])
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _told_by_server(endpoint: str, job: str) -> str | None:
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        jobs = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=_REQUEST_SECONDS).job_info
    for known in jobs:
        if known.job_id == job and _MASTER in known.pipeline_options:
            return str(known.pipeline_options[_MASTER])
    return None


def _active(master: str, name: str) -> list[str]:
    """Return the ids of the running jobs of a name."""
    jobs = json.loads(_ask(f"{master}/jobs/overview"))["jobs"]
    return [job["jid"] for job in jobs if job["name"] == name and job["state"] not in _ENDED]


def _ask_to_cancel(master: str, job: str) -> None:
    try:
        _ask(f"{master}/jobs/{job}?mode=cancel", "PATCH")
    except urllib.error.HTTPError as error:
        if error.code not in (404, 409):  # the job has ended meanwhile
            raise


def _ask(address: str, method: str = "GET") -> Any:
    request = urllib.request.Request(address, method=method)
    with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as answer:
        return answer.read()
