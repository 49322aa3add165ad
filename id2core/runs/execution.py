"""One execution of a flow: its id, the same in every table that it writes, and the processes it has."""

from __future__ import annotations

import os
import platform
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

import psutil


@dataclass(frozen=True)
class Execution:
    """One execution of a flow.

    Attributes:
        run_id: `<UTC time>-<6 hex>`, for example `20261126T014500-3f9a1c`; ids sort by time.
        started: when it began, in UTC, whole seconds.
        PATTERN: a regular expression that a run_id matches.
    """

    PATTERN: ClassVar[str] = r"\d{8}T\d{6}-[0-9a-f]{6}"

    run_id: str
    started: datetime

    @staticmethod
    def begin() -> Execution:
        """Return a new execution that starts now."""
        now = datetime.now(UTC).replace(microsecond=0)
        return Execution(f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", now)


def rank() -> int:
    """Return this process's number among those that `torchrun` has started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def this_process() -> tuple[str, int, float]:
    """Return what identifies this process: host, process id, when it was created."""
    process = psutil.Process()
    return platform.node(), process.pid, process.create_time()


def is_alive(process: tuple[str, int, float] | None) -> bool:
    """Return whether a process of this host still runs; one of another host counts as ended.

    If it was alive after all, its own end replaces what was recorded of it meanwhile.
    """
    host, pid, created = process or ("", 0, 0.0)
    if host != platform.node():
        return False
    try:
        return bool(psutil.Process(pid).create_time() == created)
    except psutil.Error:
        return False
