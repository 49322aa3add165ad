"""Submit jobs to an engine elsewhere (Flink, Spark, Dataflow), wait for their end, and cancel them.

A job outlives the process that submitted it. So if Ctrl-C, SIGTERM, a canceled flow, or a time limit ends the
wait, the job is canceled, and its workers stop. If the job server is gone, nothing can cancel the job.
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
from types import SimpleNamespace
from typing import Any, Final

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability import job_server as beam_job_server
from apache_beam.runners.portability import portable_runner
from apache_beam.runners.runner import PipelineState
from apache_beam.utils import subprocess_server

from beam_jobs import flink, job_server, signals
from id2core.errors import EngineError, printable
from id2core.runs.progress import Counts, tally

# How long a job server may take to answer, and a canceled job to end.
SERVER_SECONDS: Final = 30.0
CANCEL_SECONDS: Final = 20.0  # Prefect kills a canceled run after 30
# When to warn that a job has finished nothing yet.
BEGUN_SECONDS: Final = 60.0
# How often the waiting process checks the job server, and how often it asks for the state of a job.
LOOK_SECONDS: Final = 10.0
STATE_SECONDS: Final = 1.0
# In an engine's own error, the root cause comes last. Its text ends where Java's stack trace begins.
_CAUSE: Final = re.compile(r"^\s*Caused by: (?:[\w$]+\.)*(?=[\w$]+(?::|$))", re.MULTILINE)
_STACK: Final = re.compile(r"^\s+at [\w$.]+[(/]|^\s*\.\.\. \d+ (?:more|common)", re.MULTILINE)
# In an error that a worker raised: the head of Python's traceback, and what Beam adds after the message.
_TRACEBACK: Final = "Traceback (most recent call last):"
_STEP: Final = re.compile(r" \[while running '[^']*'\]$")
# The value of --job_endpoint that means a job service inside this process.
_EMBEDDED: Final = "embed"
# A terminal sends Ctrl-C to a whole process group. A job server in it would end before it can cancel the job.
_APART: Final = "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
# Beam's own handler of Ctrl-C ends the job server that Beam started. Then nothing could cancel the job. Also,
# Python lets only the main thread install one.
beam_job_server.signal = SimpleNamespace(
    SIGINT=signal.SIGINT, getsignal=signal.getsignal, signal=lambda number, handler: None
)
_log = logging.getLogger("id2.engines")


@contextmanager
def waited(pipeline: beam.Pipeline, arguments: Sequence[str]) -> Iterator[beam.Pipeline]:
    """Submit a pipeline when the block ends, and wait for its job. Cancel the job if the wait ends early.

    Args:
        pipeline: an empty pipeline.
        arguments: its Beam options.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job.
        RuntimeError: the engine failed the job; the text is the engine's.
    """
    options = PipelineOptions(list(arguments))
    require_server(options)
    yield pipeline
    with _messages_to_debug(), _broken_streams_ignored(), signals.held() as held:
        _wait(_submit(pipeline, held), options, held)


def submit(pipeline: beam.Pipeline) -> str:
    """Submit a pipeline, and return the id of its job without waiting. Cancel it if a signal has come.

    Raises:
        EngineError: the job server does not answer, the engine refuses the job, or a job server cannot be
            started.
    """
    options = pipeline.options
    require_server(options)
    with signals.held() as held:
        result = _submit(pipeline, held)
        with _canceled_on_error(result, options):
            held.deliver()
    return job_id(result)


def _submit(pipeline: beam.Pipeline, held: signals.Held) -> Any:
    """Submit a pipeline, and return its `beam.runners.runner.PipelineResult`."""
    job_server.attend(pipeline.runner, held)
    _keep_job_server_apart(pipeline.options)
    try:
        return pipeline.run()
    except (grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise EngineError(f"the job was not accepted: {cause(_details(error))}") from error
    except OSError as error:
        raise EngineError(f"the job could not be submitted: {error}") from error


def job_id(result: Any) -> str:
    """Return the id of a submitted job at its engine or its job server."""
    return str(result.job_id() if hasattr(result, "job_id") else getattr(result, "_job_id", "without id"))


def endpoint_of(options: PipelineOptions) -> str | None:
    """Return the address of a running job server; None if Beam starts one, or needs none."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    return str(endpoint) if endpoint and endpoint != _EMBEDDED else None


def require_server(options: PipelineOptions) -> None:
    """Raise EngineError if the options name a job server that does not answer."""
    endpoint = endpoint_of(options)
    with signals.held() as held:
        is_there = endpoint is None or job_server.answers(endpoint, SERVER_SECONDS, held)
    if not is_there:
        raise EngineError(
            f"no job server answers at {endpoint} (--job_endpoint) within {SERVER_SECONDS:g} s: start "
            "it, or correct its address"
        )


def _wait(result: Any, options: PipelineOptions, held: signals.Held) -> None:
    """Wait for the end of a job. Cancel the job if something else ends the wait."""
    with _canceled_on_error(result, options), _Notice(job_id(result)) as notice:
        try:
            _wait_by_stream(result, endpoint_of(options), notice, held)
        except grpc.RpcError as error:  # the connection is gone, but the job may run
            _wait_by_state(result, notice, error, held)


@contextmanager
def _canceled_on_error(result: Any, options: PipelineOptions) -> Iterator[None]:
    """Cancel a job if the block ends early."""
    try:
        yield
    except EngineError:
        raise  # no job server is left to cancel the job
    except BaseException as error:
        _cancel(result, options)
        if isinstance(error, RuntimeError) or not isinstance(error, Exception):
            raise
        raise RuntimeError(str(error)) from error  # Dataflow's errors are of another class


class _Notice:
    """Warns once if a job has finished nothing in `BEGUN_SECONDS`."""

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
        """Give the notice if it is due."""
        if self._is_given or time.monotonic() - self._since < BEGUN_SECONDS:
            return
        self._is_given = True
        _log.warning(
            "job %s has finished nothing in its first %g s. If this continues, check the engine's UI and the "
            "logs of its workers: does it have free slots, can it pull the image, does a worker start? (The "
            "`python` of a worker pool must have this project.)",
            self._job,
            BEGUN_SECONDS,
        )


def _wait_by_stream(result: Any, endpoint: str | None, notice: _Notice, held: signals.Held) -> None:
    """Wait as Beam does, in another thread: this one handles signals and checks the job server."""
    ended = threading.Event()
    heard = looked = time.monotonic()

    def wait() -> None:
        try:
            result.wait_until_finish()
        finally:
            ended.set()

    def look() -> None:
        nonlocal heard, looked
        if time.monotonic() - looked < LOOK_SECONDS:
            return
        notice.give()
        is_there = endpoint is None or job_server.answers(endpoint, LOOK_SECONDS, held)
        looked = time.monotonic()
        if is_there:
            heard = looked
        elif time.monotonic() - heard > SERVER_SECONDS and not ended.is_set():
            raise _lost(result, f"no answer at {endpoint}")

    job_server.in_thread(wait, held.deliver, look)


def _wait_by_state(result: Any, notice: _Notice, broken: grpc.RpcError, held: signals.Held) -> None:
    """Wait by polling the state of the job."""
    heard = time.monotonic()
    while True:
        try:
            state = result.state
            heard = time.monotonic()
        except (grpc.RpcError, job_server.NoAnswerError) as error:
            if not _is_unavailable(error) or time.monotonic() - heard > SERVER_SECONDS:
                raise _lost(result, cause(_details(error))) from broken
            state = PipelineState.UNKNOWN
        if PipelineState.is_terminal(state):
            break
        notice.give()
        held.deliver()
        time.sleep(STATE_SECONDS)
    if state != PipelineState.DONE:
        raise RuntimeError(f"job {job_id(result)} is {state}: the engine's log has the reason")


def _lost(result: Any, reason: str) -> EngineError:
    return EngineError(
        f"the job server is gone ({reason}). Job {job_id(result)} may go on: let it end or cancel it in the "
        "engine's own UI, and run the same command again"
    )


def _is_unavailable(error: Exception) -> bool:
    is_cut = isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE
    return is_cut or isinstance(error, job_server.NoAnswerError)


def _cancel(result: Any, options: PipelineOptions) -> None:
    """Cancel a job elsewhere, and wait at most `CANCEL_SECONDS` for its end."""
    job = job_id(result)
    try:
        if PipelineState.is_terminal(result.state):
            return
        master = flink.master_of(options, endpoint_of(options), job)
        result.cancel()
        has_ended = flink.cancel(master, job, CANCEL_SECONDS) if master else _ends(result)
    except BaseException as error:
        reason = cause(_details(error)) if isinstance(error, Exception) else "interrupted"
        _log.warning("job %s may go on, and could not be canceled (%s): cancel it there", job, reason)
        if not isinstance(error, Exception):
            raise
        return
    _log.warning("job %s was canceled on the cluster%s", job, "" if has_ended else ", and is still ending")


def _ends(result: Any) -> bool:
    """Wait for the end of a canceled job; return whether it came in time."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while not PipelineState.is_terminal(result.state):
        if time.monotonic() > deadline:
            return False
        time.sleep(STATE_SECONDS)
    return True


def _keep_job_server_apart(options: PipelineOptions) -> None:
    """Have Beam start its job server, if it starts one, in a process group of its own."""
    server = options.view_as(JobServerOptions)
    if os.name == "posix" and server.job_server_java_launcher != sys.executable:
        command = [server.job_server_java_launcher, *server.job_server_jvm_properties]
        server.job_server_java_launcher = sys.executable
        server.job_server_jvm_properties = ["-c", _APART, *command]


class _ToDebug(logging.Filter):
    """Hides messages of engines and job servers, some of them whole stack traces."""

    def filter(self, record: logging.LogRecord) -> bool:
        sources = (portable_runner.__file__, subprocess_server.__file__)
        if record.pathname not in sources or os.environ.get("ID2_DEBUG"):
            return True
        _log.debug("%s", record.getMessage())
        return False


_TO_DEBUG: Final = _ToDebug()


@contextmanager
def _messages_to_debug() -> Iterator[None]:
    """Log messages of the engine at debug level in the block, unless ID2_DEBUG asks for them.

    Messages of job servers stay at that level, because they come until this process ends.
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
    """Silence threads of Beam that lose their connection in the block: the waiting thread reports it."""
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
    """Return the root cause in an engine's error as one line."""
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
