"""The stages of a function: plain calls, unless an orchestrator runs them in another way (Prefect tasks)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
# Takes the name of a stage and its work, and returns what the work returns.
Runner = Callable[[str, Callable[[], Any]], Any]


def _call(name: str, work: Callable[[], Any]) -> Any:
    return work()


_runner: ContextVar[Runner] = ContextVar("runner", default=_call)


def stage(name: str, work: Callable[[], T]) -> T:
    """Run one stage; it may be called again after a fault that passes, so it must be safe to repeat."""
    result: T = _runner.get()(name, work)
    return result


@contextmanager
def run_by(runner: Runner) -> Iterator[None]:
    """Run the stages inside the block by `runner`."""
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)
