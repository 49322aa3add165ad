"""Talk to a job server that may fall silent: each answer has a deadline, and signals are not held for long.

Beam's own calls have none: if a job server hangs, they wait for half an hour, or without end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, TypeVar

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from beam_jobs import signals

T = TypeVar("T")

# How long an answer may take, and that to a call that hands something over, unless --job_server_timeout says.
ANSWER_SECONDS: Final = 10.0
SUBMIT_SECONDS: Final = 60.0
# How long Ctrl-C may have to wait.
SIGNAL_SECONDS: Final = 0.2
# Calls that hand something over. Calls that a signal does not end, or nobody would know whether a job runs.
_SUBMITTING: Final = frozenset({"Prepare", "Run"})
_COMPLETED: Final = frozenset({"Run", "Cancel"})
_SINGLE: Final = frozenset(
    {"DescribePipelineOptions", "Prepare", "Run", "GetState", "Cancel", "GetJobMetrics"}
)
_STREAMS: Final = frozenset({"GetStateStream", "GetMessageStream"})
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_MAY_RUN: Final = ". If the job has begun, cancel it in the engine's own UI"
_log = logging.getLogger("id2.engines")


class NoAnswerError(grpc.FutureTimeoutError):  # type: ignore[misc]  # gRPC is not typed
    """A job server has not answered a call in time. Beam does not repeat such a call."""


def answers(endpoint: str, seconds: float, held: signals.Held) -> bool:
    """Return whether a job server answers a call in time. A signal that comes meanwhile is not waited for."""
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        call = service.DescribePipelineOptions.future(request, timeout=seconds, wait_for_ready=True)
        while not held.has_come:
            try:
                call.result(timeout=SIGNAL_SECONDS)
            except grpc.FutureTimeoutError:
                continue
            except grpc.RpcError as error:
                return error.code() not in _SILENT
            return True
        call.cancel()
    held.deliver()
    return False


def attend(runner: Any, held: signals.Held) -> None:
    """Have a runner of Beam submit its job by calls with deadlines.

    Args:
        runner: of a pipeline that is not submitted yet. Runners that know no job server stay as they are.
        held: signals that come meanwhile. Where no job can have begun, they are delivered.
    """
    make = getattr(runner, "create_job_service_handle", None)
    if make is None:
        return

    def attended(service: Any, options: PipelineOptions) -> Any:
        if not isinstance(service, beam_job_api_pb2_grpc.JobServiceStub):
            return make(service, options)  # it is in this process
        handle = make(_Service(service, held, _given_seconds(options)), options)
        stage = handle.stage
        handle.stage = lambda *given: in_thread(lambda: stage(*given), held.deliver)
        return handle

    runner.create_job_service_handle = attended


def in_thread(call: Callable[[], T], *ticks: Callable[[], object]) -> T:
    """Call something in another thread, and meanwhile other things a few times each second.

    Args:
        call: what to call. It continues in its thread if a tick raises.
        ticks: for example `signals.Held.deliver`.
    """
    ended = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="engine", daemon=True).start()
    while not ended.wait(SIGNAL_SECONDS):
        for tick in ticks:
            tick()
    for failure in failures:
        raise failure
    return results[0]


class _Service:
    """The stub of a job server, with a deadline for each answer."""

    def __init__(self, stub: Any, held: signals.Held, seconds: float) -> None:
        self._stub, self._held, self._seconds = stub, held, seconds

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        if name in _SINGLE:
            return lambda request, timeout=None: self._ask(name, method, request)
        if name in _STREAMS:
            return lambda request, timeout=None: self._stream(name, method, request)
        return method

    def _ask(self, name: str, method: Any, request: Any) -> Any:
        seconds = self._seconds if name in _SUBMITTING else ANSWER_SECONDS
        call = method.future(request, timeout=seconds)
        while True:
            try:
                return call.result(timeout=SIGNAL_SECONDS)
            except grpc.FutureTimeoutError:
                if self._held.has_come and name not in _COMPLETED:
                    call.cancel()
                    self._held.deliver()
            except KeyboardInterrupt:
                if name == "Run":
                    _log.warning("the job server was asked to begin the job%s", _MAY_RUN)
                raise
            except grpc.RpcError as error:
                if meaning := _meaning(error, name, seconds):
                    raise meaning from error
                raise

    def _stream(self, name: str, method: Any, request: Any) -> Iterator[Any]:
        """Return a stream whose first item has a deadline, but not its end: a job may take days."""
        call = method(request)
        if name != "GetStateStream":
            return iter(call)
        deadline = time.monotonic() + ANSWER_SECONDS

        def check() -> None:
            if time.monotonic() > deadline:
                call.cancel()
                raise _no_answer(name, ANSWER_SECONDS)

        return chain([in_thread(lambda: next(call), check)], call)


def _given_seconds(options: PipelineOptions) -> float:
    given = options.view_as(PortableOptions).get_all_options(drop_default=True)
    return float(given.get("job_server_timeout", SUBMIT_SECONDS))


def _meaning(error: grpc.RpcError, name: str, seconds: float) -> NoAnswerError | None:
    """Return what a failed call means, if that is more than the error says."""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return _no_answer(name, seconds)
    if name == "Run" and error.code() == grpc.StatusCode.UNAVAILABLE:
        return NoAnswerError(f"the job server was lost{_MAY_RUN}")
    return None


def _no_answer(name: str, seconds: float) -> NoAnswerError:
    more = _MAY_RUN if name == "Run" else ""
    return NoAnswerError(f"the job server has not answered {name} in {seconds:g} s{more}")
