"""Hosts of a test cluster: network namespaces on a bridge of this machine, which is their gateway."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

BRIDGE = "id2bridge"
LOCK = Path(tempfile.gettempdir()) / "id2-cluster.lock"
GATEWAY = "10.99.0.1"


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        name: of its namespace.
        address: IPv4.
    """

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command as it runs on the host."""
        return ["ip", "netns", "exec", self.name, *command]


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts with an address each; needs root. One test at a time has them, others wait."""
    every = [Host(f"id2host{i}", f"10.99.0.{10 + i}") for i in range(1, count + 1)]
    with FileLock(LOCK):
        _remove(every)  # of a test that was killed
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
            for host in every:
                _add(host)
            yield every
        finally:
            _remove(every)


def refusal() -> str:
    """Return why no host can be made here, empty where one can: in a container, root may lack the right."""
    name = "id2probe"
    for command in (
        ["ip", "netns", "add", name],
        ["ip", "link", "add", name, "type", "bridge"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            break
    subprocess.run(["ip", "link", "delete", name], capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return f"{' '.join(command)}: {done.stderr.strip()}" if done.returncode else ""


def _add(host: Host) -> None:
    outside, inside = f"{host.name}-o", f"{host.name}-i"
    _ip("netns", "add", host.name)
    _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", host.name)
    _ip("link", "set", outside, "master", BRIDGE, "up")
    for command in (
        ("addr", "add", f"{host.address}/24", "dev", inside),
        ("link", "set", inside, "up"),
        ("link", "set", "lo", "up"),
        ("route", "add", "default", "via", GATEWAY),
    ):
        _ip("-n", host.name, *command)


def _remove(every: Sequence[Host]) -> None:
    for host in every:
        subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", f"{host.name}-o"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
