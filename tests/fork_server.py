"""Runs `id2` commands in forks of one process that has imported everything, and kills them where asked.

    python -m tests.fork_server        # reads requests as JSON lines, answers each with a JSON line

A killed process must be a process of its own. A fork costs milliseconds where a start of Python, Beam, and
torch costs seconds. Here and nowhere in the product, each change of a local store is counted, and the process
ends by SIGKILL in place of the change that it was told.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import itertools
import json
import math
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

# What changes a local store: a file appears whole, replaces another one, or goes.
CHANGES = ("publish", "move", "copy", "delete", "write_if", "update")
# The last line of the log of a process that ends by itself.
COUNTED = "changes of the store: {}"


class ForkServer:
    """A server in a process of its own; threads may share it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()

    def start(self, *arguments: object, kill_at: int | None = None, log: Path) -> int:
        """Start `id2 ARGUMENTS`; it dies in place of its `kill_at`-th change, from 1. Return its process."""
        return int(self._ask(arguments=list(map(str, arguments)), kill_at=kill_at, log=str(log)))

    def wait(self, process: int, seconds: float = math.inf) -> int:
        """Wait for a process; return its exit code, negative for a signal.

        One that has not ended in time prints where its threads are, and is killed.
        """
        deadline = time.monotonic() + seconds
        while (code := self._ask(poll=process)) is None:
            time.sleep(0.01)
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGUSR1)
                time.sleep(1.0)
                os.kill(process, signal.SIGKILL)
                deadline = math.inf
        return int(code)

    def call(self, *arguments: object, kill_at: int | None = None, log: Path) -> int:
        """Run `id2 ARGUMENTS` to its end; return its exit code, negative for a signal."""
        return self.wait(self.start(*arguments, kill_at=kill_at, log=log))

    @staticmethod
    def changes(log: Path) -> int:
        """Return how many changes of a local store a process made, which has ended by itself."""
        return int(log.read_text().rstrip().rsplit(" ", 1)[1])

    def _ask(self, **request: Any) -> Any:
        assert self._server.stdin and self._server.stdout
        with self._lock:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())


def _serve() -> None:
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                _run(**request)
        print(json.dumps(answer), flush=True)


def prepare() -> None:
    """Import what commands import as they go, and add the toy encoder; nothing may start a thread."""
    gc.disable()
    import torch

    import beam_jobs
    import id2.jobs
    from id2core.encoders import decoder_pool, registry

    for package in (beam_jobs, id2.jobs):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("tests.toy_encoder")
    importlib.import_module("tests.quick_beam").remember()
    torch.set_num_threads(1)
    # A start of a decoder costs more than the few tiny pictures of a run.
    decoder_pool.default_processes = lambda cores=None: 1
    toy = registry.Kind("toy", lambda spec: spec.startswith("toy:"), "tests.toy_encoder:load_encoder")
    registry.KINDS = [toy, *registry.KINDS]  # type: ignore[misc]
    assert threading.active_count() == 1, threading.enumerate()
    # A collection in a fork neither looks at what was imported nor copies its pages.
    gc.freeze()
    gc.enable()


def _run(arguments: list[str], kill_at: int | None, log: str) -> None:
    """Run a command in a fork; never return."""
    code = 1
    try:
        with Path(log).open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, file=2)
        changes = _count_changes(kill_at)
        from flows.cli import app

        try:
            app(arguments)
        finally:
            print(COUNTED.format(next(changes) - 1))
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_changes(kill_at: int | None) -> Iterator[int]:
    """Number the changes of local stores from 1, and let this process die in place of one of them."""
    from id2core.store.local import LocalStore

    changes = itertools.count(1)

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(change)
        def wrapper(*given: Any) -> Any:
            if next(changes) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*given)

        return wrapper

    for name in CHANGES:
        setattr(LocalStore, name, counted(getattr(LocalStore, name)))
    return changes


if __name__ == "__main__":
    _serve()
