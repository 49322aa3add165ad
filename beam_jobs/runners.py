"""Make pipelines on the Beam runner that the caller names, and check its options. No runner is guessed."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import apache_beam.runners.portability.flink_runner
import apache_beam.runners.portability.spark_runner  # both add options of their own
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.job import utils as job_utils
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo

from beam_jobs import engines
from id2core import errors
from id2core.errors import EngineError, ID2Error, OptionError

IN_PROCESS = "FnApiRunner"
RUNNERS = (IN_PROCESS, "FlinkRunner", "SparkRunner", "DataflowRunner", "PortableRunner")
# Beam ignores the case of a name, and the suffix "Runner".
_KNOWN = {name.lower().removesuffix("runner") for name in (*StandardOptions.KNOWN_RUNNER_NAMES, "DaskRunner")}
# Beam's Dask runner drops the output of finish_bundle without an error: rows would be lost.
REFUSED = ("DaskRunner",)
# The mode of Beam in which this process starts worker processes.
_PROCESSES = "multi_processing"
# Workers of an engine elsewhere that scales by itself.
_WORKERS_ELSEWHERE = 16
# The line of a worker's traceback that names an error of this project.
_ERROR_LINE = re.compile(
    rf"^{re.escape(errors.__name__)}\.(\w+): (.*?)( \[while running '.*'\])?$", re.MULTILINE
)
# What Beam adds to the message of an error in this process.
_STEP = re.compile(r"(?: \[while running '.*'\])+$")


def pipeline(arguments: Sequence[str] = ()) -> beam.Pipeline:
    """Return an empty pipeline on the runner that Beam's own options name.

    Args:
        arguments: Beam options, e.g. `--runner=DataflowRunner --project=…`. Without `--runner` the
            pipeline runs in this process; `--direct_running_mode=multi_processing
            --direct_num_workers=N` makes that N worker processes.

    Raises:
        OptionError: the runner loses rows.
    """
    options = PipelineOptions(list(arguments))
    name = _name(options)
    if name in REFUSED:
        raise OptionError(
            f"{name} loses rows silently; use FnApiRunner, PortableRunner, Flink, Spark or Dataflow"
        )
    if name == IN_PROCESS:
        return beam.Pipeline(runner=_in_process(options), options=options)
    # `runs/` has the versions of packages. Beam would run pip for seconds to send them to each worker's log.
    options.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")
    return beam.Pipeline(options=options)


@contextmanager
def running(arguments: Sequence[str] = ()) -> Iterator[beam.Pipeline]:
    """Yield a pipeline that runs when the block ends.

    Worker processes send an exception back as the text of its traceback in a RuntimeError. If it was an
    ID2Error, this raises that error again, so that its message reaches the user. Beam does not log it, too.

    Args:
        arguments: see `pipeline`.

    Raises:
        EngineError: an engine elsewhere does not answer, or refuses or fails the job.
    """
    steps = pipeline(arguments)
    try:
        with _known_errors_hidden(), steps if runs_here(arguments) else engines.waited(steps, arguments):
            yield steps
    except ID2Error as error:
        error.args = (_STEP.sub("", str(error)),)
        raise
    except RuntimeError as error:
        if known := _raised_by_worker(str(error)):
            raise known from error
        if runs_here(arguments):
            raise
        raise EngineError(f"the job failed: {engines.cause(str(error))}") from error


class _KnownErrors(logging.Filter):
    """Hides tracebacks of errors whose message reaches the user anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_known = record.exc_info is not None and isinstance(record.exc_info[1], ID2Error)
        return not is_known or bool(os.environ.get("ID2_DEBUG"))


_KNOWN_ERRORS = _KnownErrors()


@contextmanager
def _known_errors_hidden() -> Iterator[None]:
    log = logging.getLogger(beam.runners.common.__name__)
    log.addFilter(_KNOWN_ERRORS)
    try:
        yield
    finally:
        log.removeFilter(_KNOWN_ERRORS)


def submit(arguments: Sequence[str], build: Callable[[beam.Pipeline], None]) -> str:
    """Submit a job to an engine elsewhere without waiting for its end; return its id.

    Args:
        arguments: see `pipeline`. `check_outlives` must accept them.
        build: adds the job's steps.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job.
    """
    steps = pipeline(arguments)
    build(steps)
    return engines.submit(steps)


def check_outlives(arguments: Sequence[str]) -> None:
    """Raise OptionError if a job would end with the process that submits it."""
    options = PipelineOptions(list(arguments))
    portable = options.view_as(PortableOptions)
    if runs_here(arguments):
        reason = "in this process the job ends with the command. Give --runner"
    elif "dataflow" in _name(options).lower():
        return
    elif engines.endpoint_of(options) is None:
        reason = "the job server that Beam starts ends with the command. Give --job_endpoint of one that runs"
    elif str(portable.environment_type).upper() == "LOOPBACK":
        reason = "with --environment_type=LOOPBACK the workers end with the command"
    else:
        return
    raise OptionError(f"--detach: {reason}")


def runs_here(arguments: Sequence[str]) -> bool:
    """Return whether the workers of a job are threads or processes of this process, and end with it."""
    return _name(PipelineOptions(list(arguments))) == IN_PROCESS


def _raised_by_worker(traceback: str) -> ID2Error | None:
    line = _ERROR_LINE.search(traceback)
    kind = getattr(errors, line[1], None) if line else None
    return kind(line[2]) if line and isinstance(kind, type) and issubclass(kind, ID2Error) else None


def workers(arguments: Sequence[str]) -> int:
    """Return how many workers a job has at most, so far as its options say; else 1 here and 16 elsewhere.

    Args:
        arguments: see `pipeline`.
    """
    options = PipelineOptions(list(arguments))
    if _name(options) == IN_PROCESS:
        direct = options.view_as(DirectOptions)
        if direct.direct_running_mode != _PROCESSES:
            return 1
        return direct.direct_num_workers or os.cpu_count() or 1
    scale = options.view_as(WorkerOptions)
    most = scale.max_num_workers or scale.num_workers or options.get_all_options().get("parallelism")
    return int(most) if most and int(most) > 0 else _WORKERS_ELSEWHERE


def is_in_process(arguments: Sequence[str]) -> bool:
    """Return whether this process itself does the work, so that it can count it."""
    options = PipelineOptions(list(arguments))
    return _name(options) == IN_PROCESS and options.view_as(DirectOptions).direct_running_mode != _PROCESSES


def _name(options: PipelineOptions) -> str:
    return options.view_as(StandardOptions).runner or IN_PROCESS


def check(arguments: Sequence[str]) -> None:
    """Raise OptionError for stray words and unknown options, of which Beam would only warn."""
    stray = [a for a in arguments if not a.startswith("--")]
    if stray:
        raise OptionError(f"unexpected {stray[0]!r}: Beam's options are written --NAME=VALUE, after `--`")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    name = _name(PipelineOptions(list(arguments)))
    if "." not in name and name.lower().removesuffix("runner") not in _KNOWN:  # with a dot it is a class
        raise OptionError(f"no Beam runner {name!r}: choose {', '.join(RUNNERS)}")
    if unknown:
        raise OptionError(f"no Beam option {unknown[0]!r}")


def template_location(arguments: Sequence[str]) -> str | None:
    """Return where the options ask for a template to be written; None if they ask for a run."""
    location = PipelineOptions(list(arguments)).view_as(GoogleCloudOptions).template_location
    return str(location) if location else None


# A terminal sends Ctrl-C to worker processes too, but only this process handles it.
_WORKER = f"trap '' INT; exec {shlex.quote(sys.executable)} -m beam_jobs.worker"


class _InProcess(FnApiRunner):  # type: ignore[misc]  # Beam's runners are not typed
    """A runner that starts its worker processes by `_WORKER`."""

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.payload = _WORKER.encode()
        return super().run_via_runner_api(pipeline_proto, options)


def _in_process(options: PipelineOptions) -> FnApiRunner:
    """Return a runner in this process that passes the options on to its worker processes."""
    # FnApiRunner passes only the options in the provision info on.
    # A protobuf Struct has no integers: 2 would arrive as 2.0 and be refused.
    given = {
        f"beam:option:{name}:v1": str(value) if type(value) is int else value
        for name, value in options.get_all_options(drop_default=True).items()
    }
    info = beam_provision_api_pb2.ProvisionInfo(
        retrieval_token="unused", pipeline_options=job_utils.dict_to_struct(given)
    )
    return _InProcess(provision_info=ExtendedProvisionInfo(info))
