"""Hosts of a test cluster: network namespaces on a bridge of this machine, which is their gateway."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

BRIDGE = "id2bridge"
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
    """Make hosts with an address each; needs root."""
    every = [Host(f"id2host{i}", f"10.99.0.{10 + i}") for i in range(1, count + 1)]
    _remove(every)  # of a test that was killed
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    try:
        for host in every:
            _add(host)
        yield every
    finally:
        _remove(every)


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
