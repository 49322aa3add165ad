"""The process in which pictures of strangers are decoded, one after another; `decoder_pool` starts it.

A request is a line of JSON on standard input, an answer one on standard output. The file comes, and the
pixels go back, through a file in memory that both processes have open. Content Credentials are a request of
their own, so that a manifest that ends the process costs no pixels. The process imports neither torch nor
Arrow: at rest it takes some 50 MiB.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Final

import pillow_heif

# Imported here, so that what the modules take is not charged to the first picture of their format.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from id2core.encoders import budget, credentials, images, views
from id2core.encoders.budget import MIB, Limits
from id2core.store.rejects import Reason, Reject

# Answers are read in one piece: they must fit into a pipe at once.
MOST_DETAIL: Final = 500
_ORPHAN_SECONDS: Final = 5.0
# Memory that a picture may leave behind before the process ends itself to be replaced.
_LEFT_BEHIND: Final = 32 * MIB


def main() -> None:
    """Serve requests until standard input ends or the parent is gone."""
    server = _Server(int(sys.argv[1]))
    server.run()


class _Server:
    def __init__(self, shared: int) -> None:
        self._shared = shared
        self._parent = os.getppid()
        self._answers = os.dup(1)
        self._harden()
        self._status = _open_status()
        self._rest = self._data_bytes()
        self._reads_credentials: bool | None = None  # not tried yet

    def _harden(self) -> None:
        """Give up what decoding does not need, and make it quiet."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Decoders print what they think of a file; neither answers nor logs are the place for it.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        # The pool is what spreads decoding over the cores; a thread's stack counts as memory.
        pillow_heif.options.DECODE_THREADS = 1
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1

    def run(self) -> None:
        self._answer(ready=True)
        last = False
        while not last and (request := self._next_line()):
            answer = self._serve(request)
            last = self._worn()
            self._answer(**answer, last=last)

    def _serve(self, request: dict[str, Any]) -> dict[str, Any]:
        if "credentials" in request and not self._load_credentials():
            return {"credentials": None}
        limits = Limits(**request["limits"])
        allowed = budget.allowance(request["bytes"], limits)

        held = request["bytes"] * budget.COPIES_OF_FILE
        granted = min(budget.STANDING_MEMORY, allowed.memory)
        expected = 0

        def admit(memory: int) -> None:
            """Ask for memory that not all processes of a pool may take at once."""
            nonlocal granted, expected
            expected = max(expected, memory + held)
            wanted = min(memory + held, allowed.memory)
            if wanted > granted:
                self._answer(need=wanted)
                self._next_line()
                self._limit_memory(wanted)
                granted = wanted

        self._limit_memory(granted)
        signal.setitimer(signal.ITIMER_PROF, allowed.seconds)
        try:
            admit(budget.OPENING_MEMORY)
            if "credentials" in request:
                return self._credentials(request["bytes"], **request["credentials"])
            answer = self._decode(request["bytes"], request["size"], request["look"], limits, admit)
            # Some decoders call it damage that they got no memory.
            if answer.get("reason") == Reason.CORRUPT and expected > allowed.memory:
                answer["reason"] = Reason.OVER_BUDGET
                answer["detail"] += f", with {allowed.memory // MIB} MiB of memory"
            return answer
        # Above what `decode` itself catches, and for an answer that finds no memory.
        except MemoryError:
            return _rejected(Reject(Reason.OVER_BUDGET, "more memory than decoding it may take"))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _decode(
        self, length: int, size: int, look: bool, limits: Limits, admit: Callable[[int], None]
    ) -> dict[str, Any]:
        with budget.admitting(admit):
            seen = views.insets if look else images.nowhere
            decoded = images.decode(os.pread(self._shared, length, 0), size, limits, seen)
        if isinstance(decoded, Reject):
            return _rejected(decoded)
        for number, pixels in enumerate([decoded.pixels, *(inset.pixels for inset in decoded.insets)]):
            os.pwrite(self._shared, pixels.data, number * pixels.nbytes)
        facts = {"width": decoded.width, "height": decoded.height, "format": decoded.format}
        return {**facts, "insets": [asdict(inset.box) for inset in decoded.insets]}

    def _load_credentials(self) -> bool:
        """Load the library, which no picture pays for; return whether it works."""
        if self._reads_credentials is None:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self._reads_credentials = credentials.load()
            self._rest = self._data_bytes()
        return self._reads_credentials

    def _credentials(self, length: int, kind: str, trust: int, thumbnail: bool) -> dict[str, Any]:
        data, pem = os.pread(self._shared, length, 0), os.pread(self._shared, trust, length)
        with no_new_files():
            known = credentials.read(data, kind, pem.decode(), thumbnail)
        image = known.parent_thumbnail
        os.pwrite(self._shared, image or b"", 0)
        plain = asdict(replace(known, parent_thumbnail=None))
        return {"credentials": plain, "thumbnail": None if image is None else len(image)}

    def _limit_memory(self, memory: int) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self._rest + memory, resource.RLIM_INFINITY))

    def _worn(self) -> bool:
        """Return whether pictures left memory behind, leaked or in pieces, that the next ones would lack."""
        if self._data_bytes() <= self._rest + _LEFT_BEHIND:
            return False
        _trim()
        return self._data_bytes() > self._rest + _LEFT_BEHIND

    def _data_bytes(self) -> int:
        """Return the bytes that RLIMIT_DATA counts; 0 where there is no /proc."""
        if self._status is None:
            return 0
        return int(os.pread(self._status, 256, 0).split()[5]) * resource.getpagesize()

    def _answer(self, **answer: Any) -> None:
        os.write(self._answers, json.dumps(answer).encode() + b"\n")

    def _next_line(self) -> dict[str, Any]:
        """Return the next request; {} when there will be none."""
        while not select.select([0], [], [], _ORPHAN_SECONDS)[0]:
            # A process that the parent forked may keep this pipe open beyond the parent's end.
            if os.getppid() != self._parent:
                return {}
        line = os.read(0, select.PIPE_BUF)
        return dict(json.loads(line)) if line else {}


@contextmanager
def no_new_files() -> Iterator[None]:
    """Let this process open no file and no connection until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _rejected(reject: Reject) -> dict[str, Any]:
    return {"reason": reject.reason, "detail": reject.detail[:MOST_DETAIL]}


def _open_status() -> int | None:
    """Open the file in which the system says what memory this process has; None where there is none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None


def _trim() -> None:
    """Give free memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


if __name__ == "__main__":
    main()
