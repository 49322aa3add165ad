"""Jobs on an engine elsewhere (Flink, Spark, Dataflow): wait for their end, cancel them, say what went wrong.

A job outlives the process that submitted it. So whatever ends the wait, Ctrl-C, SIGTERM, a cancelled flow, or
a time limit, cancels the job, and workers stop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

from id2core.errors import EngineError, printable

# How long a job server may take to answer.
SERVER_SECONDS: Final = 30.0
# Of an engine's own errors: what is behind the others comes last.
_CAUSE: Final = re.compile(r"^\s*Caused by: (?:[\w$]+\.)*([\w$]+(?:: .*)?)$", re.MULTILINE)
# The job service that a process of its own may be.
_EMBEDDED: Final = "embed"
_log = logging.getLogger("id2.engines")


@contextmanager
def waited(pipeline: beam.Pipeline, arguments: Sequence[str]) -> Iterator[beam.Pipeline]:
    """Submit a pipeline when the block ends, and wait for its job; cancel the job if the wait ends before it.

    Args:
        pipeline: an empty one.
        arguments: its Beam options.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job or fails it.
    """
    options = PipelineOptions(list(arguments))
    require_server(options)
    pipeline.options.view_as(StandardOptions).no_wait_until_finish = True
    try:
        with pipeline:
            yield pipeline
    except grpc.RpcError as error:
        raise EngineError(f"the job was not accepted: {cause(_details(error))}") from error
    _wait(pipeline.result)


def require_server(options: PipelineOptions) -> None:
    """Raise EngineError where the options name a job server that does not answer."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    if not endpoint or endpoint == _EMBEDDED:
        return
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=SERVER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise EngineError(
                f"no job server answers at {endpoint} (--job_endpoint) within {SERVER_SECONDS:g} s: start "
                "it, or give its address"
            ) from error


def _wait(result: Any) -> None:
    try:
        result.wait_until_finish()
    except RuntimeError:
        raise
    except BaseException:
        _cancel(result)
        raise


def _cancel(result: Any) -> None:
    """Cancel a job that goes on elsewhere."""
    try:
        if not PipelineState.is_terminal(result.state):
            result.cancel()
            _log.warning("the job was cancelled on the cluster")
    except Exception as error:
        _log.warning("the job goes on and could not be cancelled (%s): cancel it on the cluster", error)


def cause(text: str) -> str:
    """Return the last cause in an engine's error as one line."""
    causes = _CAUSE.findall(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(causes[-1] if causes else lines[-1] if lines else "no reason was given")


def _details(error: grpc.RpcError) -> str:
    return str(error.details() if isinstance(error, grpc.Call) else error)
