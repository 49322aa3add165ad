"""A `python` that starts in milliseconds: a fork of a process that has imported what workers import.

    python -m tests.preloaded FOLDER      # makes FOLDER/python, and serves it

Beam's worker pool starts workers as `python -c CODE`. With FOLDER first on its PATH, each is a fork that runs
the same code, and whoever asked for it waits for its end and passes signals on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET = "preloaded.sock"
SHIM = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "{SOCKET}"))
socket.send_fds(server, [json.dumps(sys.argv[1:]).encode()], [1, 2])
worker = int(server.recv(20))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(worker, number))
server.recv(1)
"""


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Serve FOLDER/python from a process that ends with the block; yield the folder once that is there."""
    from tests.conftest import wait_until  # which changes the environment of this process

    command = [sys.executable, "-m", __name__, str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        wait_until((folder / "python").exists, 900, "what workers are forks of")
        yield folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve(folder: Path) -> None:
    """Serve forks until this process is killed; each holds its connection open as long as it lives."""
    from tests import fork_server

    fork_server.prepare()
    __import__("apache_beam.runners.worker.sdk_worker")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / SOCKET))
    listener.listen(16)
    shim = folder / "python"
    shim.write_text(SHIM)
    shim.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child becomes a zombie
    while True:
        asking, _ = listener.accept()
        text, outputs, _, _ = socket.recv_fds(asking, 1 << 16, 2)
        if worker := os.fork():
            asking.send(str(worker).encode())
        else:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(json.loads(text), outputs)
        for connection in (asking.detach(), *outputs):
            os.close(connection)


def _run(arguments: list[str], outputs: list[int]) -> None:
    """Run `python -c CODE` in a fork; never return."""
    try:
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        assert arguments[0] == "-c" and threading.active_count() == 1
        sys.argv = arguments
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
