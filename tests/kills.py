"""A process that is killed in place of some change of the local store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from id2core.store.local import LocalStore
from tests.fork_server import CHANGES


class _KilledError(BaseException):
    pass


def is_killed(number: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run some work that dies in place of its change `number`, from 1; return False where it makes fewer."""
    done = 0
    with monkeypatch.context() as context:
        for name, change in [(name, getattr(LocalStore, name)) for name in CHANGES]:

            def or_die(*given: Any, change: Any = change) -> Any:
                nonlocal done
                done += 1
                if done >= number:
                    raise _KilledError
                return change(*given)

            context.setattr(LocalStore, name, or_die)
        try:
            work()
        except _KilledError:
            return True
    return False
