"""Jobs on an engine elsewhere (Flink, Spark, Dataflow): submit them, wait for their end, cancel them.

A job outlives the process that submitted it. So whatever ends the wait, Ctrl-C, SIGTERM, a cancelled flow, or
a time limit, cancels the job, and workers stop. Only where the job server itself is gone does a job go on.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability import portable_runner
from apache_beam.runners.runner import PipelineState
from apache_beam.utils import subprocess_server

from beam_jobs import flink
from id2core.errors import EngineError, printable
from id2core.runs.progress import Counts, tally

# How long a job server may take to answer, and a job to end once it was told so.
SERVER_SECONDS: Final = 30.0
CANCEL_SECONDS: Final = 20.0  # Prefect kills a cancelled run after 30
# When to say that a job has finished nothing yet.
BEGUN_SECONDS: Final = 60.0
# How often the waiting process looks around, and how often it asks for a state.
LOOK_SECONDS: Final = 10.0
STATE_SECONDS: Final = 1.0
# Of an engine's own errors: what is behind the others comes last. Its text ends where Java's stack begins.
_CAUSE: Final = re.compile(r"^\s*Caused by: (?:[\w$]+\.)*(?=[\w$]+(?::|$))", re.MULTILINE)
_STACK: Final = re.compile(r"^\s+at [\w$.]+[(/]|^\s*\.\.\. \d+ (?:more|common)", re.MULTILINE)
# In an error that a worker raised: what Python's comes under, and what Beam adds behind it.
_TRACEBACK: Final = "Traceback (most recent call last):"
_STEP: Final = re.compile(r" \[while running '[^']*'\]$")
# The job service that a process of its own may be.
_EMBEDDED: Final = "embed"
# A terminal sends Ctrl-C to a whole process group. A job server in it would end before it can cancel the job.
_APART: Final = "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
_log = logging.getLogger("id2.engines")


@contextmanager
def waited(pipeline: beam.Pipeline, arguments: Sequence[str]) -> Iterator[beam.Pipeline]:
    """Submit a pipeline when the block ends, and wait for its job; cancel the job if the wait ends before it.

    Args:
        pipeline: an empty one.
        arguments: its Beam options.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job.
        RuntimeError: the engine failed the job; the text is the engine's.
    """
    options = PipelineOptions(list(arguments))
    require_server(options)
    yield pipeline
    with _messages_to_debug(), _broken_streams_ignored():
        _wait(submit(pipeline), options)


def submit(pipeline: beam.Pipeline) -> Any:
    """Submit a pipeline, and return its `beam.runners.runner.PipelineResult` without waiting.

    Raises:
        EngineError: the engine refuses the job, or a job server cannot be started.
    """
    _keep_job_server_apart(pipeline.options)
    try:
        with _own_interrupt():
            return pipeline.run()
    except (grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise EngineError(f"the job was not accepted: {cause(_details(error))}") from error
    except OSError as error:
        raise EngineError(f"the job could not be submitted: {error}") from error


def job_id(result: Any) -> str:
    """Return the id of a submitted job as its engine or its job server knows it."""
    return str(result.job_id() if hasattr(result, "job_id") else getattr(result, "_job_id", "without id"))


def endpoint_of(options: PipelineOptions) -> str | None:
    """Return the address of a job server that runs already; None where Beam starts one, or needs none."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    return str(endpoint) if endpoint and endpoint != _EMBEDDED else None


def require_server(options: PipelineOptions) -> None:
    """Raise EngineError where the options name a job server that does not answer."""
    endpoint = endpoint_of(options)
    if endpoint and not _answers(endpoint, SERVER_SECONDS):
        raise EngineError(
            f"no job server answers at {endpoint} (--job_endpoint) within {SERVER_SECONDS:g} s: start "
            "it, or give its address"
        )


def _answers(endpoint: str, seconds: float) -> bool:
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
    return True


def _wait(result: Any, options: PipelineOptions) -> None:
    """Wait for the end of a job; cancel it if something else ends the wait."""
    endpoint = endpoint_of(options)
    try:
        with _Notice(job_id(result)) as notice:
            try:
                _wait_by_stream(result, endpoint, notice)
            except grpc.RpcError as error:  # the connection is gone: the job need not be
                _wait_by_state(result, notice, error)
    except EngineError:
        raise  # nobody is there to cancel it
    except BaseException as error:
        _cancel(result, options)
        if isinstance(error, RuntimeError) or not isinstance(error, Exception):
            raise
        raise RuntimeError(str(error)) from error  # Dataflow's errors are of another class


class _Notice:
    """Says once that a job has finished nothing, when it should have begun."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._since = time.monotonic()
        self._is_given = False

    def __enter__(self) -> _Notice:
        self._stop = tally.listen(self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _hear(self, stage: str, counts: Counts) -> None:
        self._is_given = self._is_given or counts.completed + counts.rejected > 0

    def give(self) -> None:
        """Give the notice where it is due."""
        if self._is_given or time.monotonic() - self._since < BEGUN_SECONDS:
            return
        self._is_given = True
        _log.warning(
            "job %s has finished nothing in its first %g s. If this goes on, look at the engine's UI and at "
            "the logs of its workers: has it free slots, can it pull the image, does a worker start? (The "
            "`python` of a worker pool must have this project.)",
            self._job,
            BEGUN_SECONDS,
        )


def _wait_by_stream(result: Any, endpoint: str | None, notice: _Notice) -> None:
    """Wait as Beam does, in a thread: this one stays free for signals, and sees whether somebody answers."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            result.wait_until_finish()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=wait, name="engine", daemon=True).start()
    heard = time.monotonic()
    while not ended.wait(LOOK_SECONDS):
        notice.give()
        if endpoint is None or _answers(endpoint, LOOK_SECONDS):
            heard = time.monotonic()
        elif time.monotonic() - heard > SERVER_SECONDS and not ended.is_set():
            raise _lost(result, f"no answer at {endpoint}")
    for failure in failures:
        raise failure


def _wait_by_state(result: Any, notice: _Notice, broken: grpc.RpcError) -> None:
    """Wait by asking for the state now and then."""
    heard = time.monotonic()
    while True:
        try:
            state = result.state
            heard = time.monotonic()
        except grpc.RpcError as error:
            if not _is_unavailable(error) or time.monotonic() - heard > SERVER_SECONDS:
                raise _lost(result, cause(_details(error))) from broken
            state = PipelineState.UNKNOWN
        if PipelineState.is_terminal(state):
            break
        notice.give()
        time.sleep(STATE_SECONDS)
    if state != PipelineState.DONE:
        raise RuntimeError(f"job {job_id(result)} is {state}: the engine's log has the reason")


def _lost(result: Any, reason: str) -> EngineError:
    return EngineError(
        f"the job server is gone ({reason}). Job {job_id(result)} may go on: let it end or cancel it in the "
        "engine's own UI, and run the same command again"
    )


def _is_unavailable(error: grpc.RpcError) -> bool:
    return isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE


def _cancel(result: Any, options: PipelineOptions) -> None:
    """Cancel a job that goes on elsewhere, and wait a little until it has ended."""
    job = job_id(result)
    try:
        if PipelineState.is_terminal(result.state):
            return
        master = flink.master_of(options, endpoint_of(options), job)
        result.cancel()
        has_ended = flink.cancel(master, job, CANCEL_SECONDS) if master else _ends(result)
    except Exception as error:
        reason = cause(_details(error))
        _log.warning("job %s may go on, and could not be cancelled (%s): cancel it there", job, reason)
        return
    _log.warning("job %s was cancelled on the cluster%s", job, "" if has_ended else ", and is still ending")


def _ends(result: Any) -> bool:
    """Return whether a job that was told to end does so."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while not PipelineState.is_terminal(result.state):
        if time.monotonic() > deadline:
            return False
        time.sleep(STATE_SECONDS)
    return True


def _keep_job_server_apart(options: PipelineOptions) -> None:
    """Let Beam start a job server, where it starts one, in a process group of its own."""
    server = options.view_as(JobServerOptions)
    if os.name == "posix" and server.job_server_java_launcher != sys.executable:
        command = [server.job_server_java_launcher, *server.job_server_jvm_properties]
        server.job_server_java_launcher = sys.executable
        server.job_server_jvm_properties = ["-c", _APART, *command]


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keep the handler of Ctrl-C: Beam puts in one that ends the job server, which nothing then can ask."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Beam cannot change it there
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _ToDebug(logging.Filter):
    """Takes messages of engines and of job servers, some of them whole stack traces, out of sight."""

    def filter(self, record: logging.LogRecord) -> bool:
        sources = (portable_runner.__file__, subprocess_server.__file__)
        if record.pathname not in sources or os.environ.get("ID2_DEBUG"):
            return True
        _log.debug("%s", record.getMessage())
        return False


_TO_DEBUG: Final = _ToDebug()


@contextmanager
def _messages_to_debug() -> Iterator[None]:
    """Within, messages of the engine are logged as details, unless ID2_DEBUG asks for them.

    Those of job servers stay so: they come until this process ends.
    """
    root = logging.getLogger()
    logging.getLogger(subprocess_server.__name__).addFilter(_TO_DEBUG)
    root.addFilter(_TO_DEBUG)
    try:
        yield
    finally:
        root.removeFilter(_TO_DEBUG)


@contextmanager
def _broken_streams_ignored() -> Iterator[None]:
    """Within, a thread of Beam's that loses its connection ends in silence: whoever waits says so."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, grpc.RpcError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def cause(text: str) -> str:
    """Return the last cause in an engine's error as one line."""
    *_, tail = _CAUSE.split(text)
    lines = [line for line in _STACK.split(tail)[0].splitlines() if line.strip()]
    if not lines:
        return "no reason was given"
    is_own = tail == text or _TRACEBACK in tail
    return printable(_STEP.sub("", lines[-1 if is_own else 0].strip()))


def _details(error: BaseException) -> str:
    if isinstance(error, grpc.Call):
        return str(error.details() or error.code().name)
    return str(error)
