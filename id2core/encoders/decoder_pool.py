"""Decode files of strangers in processes of their own, under limits of memory and time.

A file that makes its decoder take too much, crash, or hang costs itself one `Reject` and ends one process,
which is replaced. Nothing else notices. The processes of a pool are started as they are needed, and shared by
all threads.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import LifoQueue
from typing import Any, Final, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from id2core import environment
from id2core.encoders import budget
from id2core.encoders.budget import DEFAULT_LIMITS, MIB, Allowance, Limits, MemoryGate
from id2core.encoders.credentials import MOST_THUMBNAIL, Credentials, CredentialState
from id2core.encoders.images import Decoded, Inset
from id2core.encoders.views import MOST_INSETS, Box
from id2core.errors import EncoderError
from id2core.store.rejects import Reason, Reject

# Of a small machine: twice as many decoders as cores, so that a core has a file while threads of this process
# take the pixels of another. With more cores this process is busy enough to hand out one file for each.
_SMALL_MACHINE: Final = 8
# Each takes 25 MiB of its own.
MOST_PROCESSES: Final = 32
# What large pictures may take together, in bytes: two of the worst small files at once, or one large file.
# Pictures of a few megapixels need not wait for it.
TOGETHER: Final = 1280 * MIB
# A decoder that takes no processor time for so long has stopped. One that takes some is ended by its limit of
# processor time, however slow the machine.
STALL_SECONDS: Final = 30.0
_START_ATTEMPTS: Final = 3
_GRACE_SECONDS: Final = 10.0
# In the place of a signal's number: this side ended the process.
_STALLED: Final = -1
_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP})
# Longer than any answer, which is written in one piece.
_ANSWER_BYTES: Final = 65536
# A larger file does not keep its memory after it was decoded.
_KEPT_BYTES: Final = 4 * MIB
# The C library keeps the memory of one picture for the next. By default it gives 128 KiB back at a time, and
# each picture pays for its pages again.
_HEAP: Final = {"MALLOC_TRIM_THRESHOLD_": str(16 * MIB), "MALLOC_MMAP_THRESHOLD_": str(4 * MIB)}
# What a process needs of the environment; its secrets stay here.
_ENVIRONMENT: Final = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
)

_Result = TypeVar("_Result")


def decode(
    data: bytes, size: int = 256, limits: Limits = DEFAULT_LIMITS, *, look: bool = False
) -> Decoded | Reject:
    """Decode a picture file as `images.decode` does, in a process of this process's pool.

    Args:
        data: the whole file.
        size: side of the square in pixels.
        limits: what decoding may cost, with the look.
        look: whether to look for `views.insets`.

    Returns:
        The picture, or a `Reject` with a reason of `images.decode`. OVER_BUDGET also says that decoding took
        more memory or time than `limits` allow, and CORRUPT that the decoder crashed.
    """
    return _shared_pool().decode(data, size, limits, look=look)


def credentials(
    data: bytes, kind: str, limits: Limits = DEFAULT_LIMITS, trust: str = "", thumbnail: bool = False
) -> Credentials | None:
    """Read Content Credentials as `credentials.read` does, in a process of this process's pool.

    Returns:
        What the manifest says. The state is UNREADABLE if reading took more memory or time than `limits`
        allow, or ended its process. None where the extra `c2pa` does not work.
    """
    return _shared_pool().credentials(data, kind, limits, trust, thumbnail)


def default_processes(cores: int | None = None) -> int:
    """Return how many processes decode on a machine: two for each core up to 8, then one, and 32 at most.

    Args:
        cores: of the machine; by default those that this process may use.
    """
    cores = cores or environment.usable_cores()
    return max(min(2 * cores, _SMALL_MACHINE), min(cores, MOST_PROCESSES))


class DecoderPool:
    """Processes that decode pictures for the threads of this one.

    Example:
        >>> pool = DecoderPool()
        >>> pool.decode(b"GIF87a and no more")
        Reject(reason=<Reason.TRUNCATED: 'truncated'>, detail='gif: unreadable header')
        >>> pool.close()
    """

    def __init__(self, processes: int | None = None, stall_seconds: float = STALL_SECONDS) -> None:
        """Make an empty pool.

        Args:
            processes: at most so many decode at once; by default `default_processes`.
            stall_seconds: how long a decoder may take no processor time.
        """
        self._stall_seconds = stall_seconds
        self._idle: LifoQueue[_Decoder | None] = LifoQueue()
        for _ in range(processes or default_processes()):
            self._idle.put(None)  # a place for a process that is not started yet
        self._memory = MemoryGate(TOGETHER)

    def decode(
        self, data: bytes, size: int = 256, limits: Limits = DEFAULT_LIMITS, *, look: bool = False
    ) -> Decoded | Reject:
        """Decode one file; waits while all processes are busy."""
        if not data:
            return Reject(Reason.EMPTY)
        if len(data) > limits.max_bytes:
            return Reject(Reason.TOO_LARGE_FILE, f"{len(data)} bytes, limit {limits.max_bytes}")
        request = {"bytes": len(data), "size": size, "look": look, "limits": _as_dict(limits)}
        result = self._ask(data, request, lambda decoder, answer: decoder.result(answer, size))
        return _why(result, budget.allowance(len(data), limits)) if isinstance(result, int) else result

    def credentials(
        self,
        data: bytes,
        kind: str,
        limits: Limits = DEFAULT_LIMITS,
        trust: str = "",
        thumbnail: bool = False,
    ) -> Credentials | None:
        """Read the Content Credentials of one file; waits while all processes are busy."""
        if not data or len(data) > limits.max_bytes:
            return Credentials(CredentialState.UNREADABLE)
        pem = trust.encode()
        wanted = {"kind": kind, "trust": len(pem), "thumbnail": thumbnail}
        request = {"bytes": len(data), "limits": _as_dict(limits), "credentials": wanted}
        result = self._ask(data + pem, request, lambda decoder, answer: decoder.credentials(answer))
        return Credentials(CredentialState.UNREADABLE) if isinstance(result, int) else result

    def _ask(
        self, data: bytes, request: dict[str, Any], take: Callable[[_Decoder, dict[str, Any]], _Result]
    ) -> _Result | int:
        """Return what `take` makes of the answer to a request, or how the process ended instead."""
        for attempt in range(2):
            with self._decoder() as decoder:
                answer = decoder.ask(data, request, self._memory)
                if answer:
                    return take(decoder, answer)
                ending = decoder.end()
            # Nothing here sends these signals: the system did, short of memory, or an operator. The file may
            # not be at fault, so that it gets a second try.
            if attempt or ending not in _FROM_OUTSIDE:
                break
        return ending

    def close(self) -> None:
        """End the processes that are idle; the others end with their picture or with this process."""
        for _ in range(self._idle.qsize()):
            decoder = self._idle.get()
            if decoder:
                decoder.end()
            self._idle.put(None)

    @contextmanager
    def _decoder(self) -> Iterator[_Decoder]:
        """Take a process, started where there is none, and put it back if it still lives."""
        decoder = self._idle.get()
        try:
            if decoder and not decoder.alive:
                decoder.end()
            if not decoder or not decoder.alive:
                decoder = _start(self._stall_seconds)
            yield decoder
        except BaseException:
            # Its answer may be under way, which the next one must not take for its own.
            if decoder:
                decoder.end()
            raise
        finally:
            self._idle.put(decoder if decoder and decoder.alive else None)


class _Decoder:
    """One process, from this side."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._shared = _memory_file()
        # -P: a folder of uploads that happens to be the working directory must not give modules.
        command = [sys.executable, "-P", "-m", "id2core.encoders.decoder_process", str(self._shared)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
            pass_fds=(self._shared,),
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._ending: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._ending is None and self._process.poll() is None

    def ask(self, data: bytes, request: dict[str, Any], memory: MemoryGate) -> dict[str, Any] | None:
        """Return the answer to a request; None where the process ended, or was ended, without one."""
        with suppress(BrokenPipeError):
            _write_at_start(self._shared, data)
            self._send(request)
            return self._grant(self.receive(), memory)
        return None

    def _grant(self, answer: dict[str, Any] | None, memory: MemoryGate) -> dict[str, Any] | None:
        """Give the memory that an answer asks for, each time it asks; return the last answer."""
        while answer and "need" in answer:
            # What it has is given back first: two that each have some and want more would wait for ever.
            with memory.taken(int(answer["need"])):
                self._send({"granted": True})
                answer = self.receive()
                if not answer:
                    self.end()  # its memory must be free before others take it
        return answer

    def result(self, answer: dict[str, Any], size: int) -> Decoded | Reject:
        """Return what an answer says, with the pixels."""
        if "reason" in answer:
            result: Decoded | Reject = Reject(Reason(answer["reason"]), str(answer["detail"]))
        else:
            boxes = [Box(**box) for box in answer["insets"][:MOST_INSETS]]
            pixels, *parts = (self._pixels(size, number) for number in range(1 + len(boxes)))
            insets = tuple(Inset(box, part) for box, part in zip(boxes, parts, strict=True))
            facts = int(answer["width"]), int(answer["height"]), str(answer["format"])
            result = Decoded(pixels, *facts, insets)
        self._settle(answer)
        return result

    def _pixels(self, size: int, number: int) -> NDArray[np.uint8]:
        """Return a square of those that lie one after another in the shared memory."""
        pixels = np.empty((size, size, 3), np.uint8)
        os.preadv(self._shared, [pixels.data], number * pixels.nbytes)
        return pixels

    def credentials(self, answer: dict[str, Any]) -> Credentials | None:
        """Return the credentials that an answer has; None where the process cannot read any."""
        said, image = answer.get("credentials"), None
        if answer.get("thumbnail") is not None:
            image = os.pread(self._shared, min(int(answer["thumbnail"]), MOST_THUMBNAIL), 0)
        self._settle(answer)
        if "reason" in answer:
            return Credentials(CredentialState.UNREADABLE)
        if not said:
            return None
        known = {**said, "state": CredentialState(said["state"]), "parent_thumbnail": image}
        return Credentials(**known)

    def _settle(self, answer: dict[str, Any]) -> None:
        """Give the memory of a large file back, and end a process that has said its last."""
        if os.fstat(self._shared).st_size > _KEPT_BYTES:
            os.ftruncate(self._shared, 0)
        if answer["last"]:
            self.end()

    def receive(self) -> dict[str, Any] | None:
        """Return the next answer; None when the process ended, or stopped and was ended."""
        before = -1.0
        while not self._poll.poll(1000 * self._stall_seconds):
            used = _processor_seconds(self._process.pid)
            if used <= before:
                self._end(_STALLED)
                return None
            before = used
        line = os.read(self._answers.fileno(), _ANSWER_BYTES)
        return dict(json.loads(line)) if line else None

    def _send(self, request: dict[str, Any]) -> None:
        self._requests.write(json.dumps(request).encode() + b"\n")

    def end(self) -> int:
        """End the process; return the number of the signal that ended it, 0 for none, or `_STALLED`."""
        if self._ending is not None:
            return self._ending
        self._requests.close()
        self._answers.close()
        try:
            self._process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._shared)
        self._ending = max(0, -self._process.returncode)
        return self._ending

    def _end(self, ending: int) -> None:
        self._process.kill()
        self.end()
        self._ending = ending


@functools.lru_cache(maxsize=8)
def _as_dict(limits: Limits) -> dict[str, Any]:
    return asdict(limits)


def _start(stall_seconds: float) -> _Decoder:
    """Start a process and wait until it is ready."""
    for _ in range(_START_ATTEMPTS):
        decoder = _Decoder(stall_seconds)
        if decoder.receive():
            return decoder
        decoder.end()
    raise EncoderError(
        f"the process that decodes pictures does not start: try `{sys.executable} -P -c "
        '"import id2core.encoders.decoder_process"`, and see whether memory is short'
    )


def _why(ending: int, allowed: Allowance) -> Reject:
    """Return the reject of a file whose decoder ended."""
    if ending == signal.SIGPROF:
        return Reject(Reason.OVER_BUDGET, f"more than {allowed.seconds:.1f} s of processor time")
    if ending == _STALLED:
        return Reject(Reason.OVER_BUDGET, "its decoder stopped")
    if ending in _FROM_OUTSIDE:
        return Reject(Reason.OVER_BUDGET, f"its decoder was ended twice by {signal.Signals(ending).name}")
    name = signal.Signals(ending).name if ending else "no signal"
    return Reject(Reason.CORRUPT, f"its decoder crashed: {name}")


def _memory_file() -> int:
    """Return a file that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("id2-decoder")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_at_start(file: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], written)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # What this process can import, so can the other one; threads of its own would only take memory.
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"} | _HEAP


def _processor_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


_lock = threading.Lock()
_pool: DecoderPool | None = None


def _shared_pool() -> DecoderPool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = DecoderPool()
        return _pool


def _close() -> None:
    if _pool:
        _pool.close()


def _forget() -> None:
    """In a process that was forked: the decoders belong to the other one."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
