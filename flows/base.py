"""What every flow shares: its parameters are the options of a function of `id2`, its stages are tasks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Flow, flow, task
from prefect.client.schemas.objects import State, TaskRun

import id2
from id2 import stages
from id2.options import Request, signature_of
from id2core.errors import ID2Error

R = TypeVar("R", bound=Request)
T = TypeVar("T")


def _worth_retrying(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake would only be repeated; what else went wrong may pass."""
    try:
        state.result()
    except ID2Error as error:
        return error.transient
    except Exception:
        return True
    return False


RETRY: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": _worth_retrying,
    "cache_policy": None,  # the data sets themselves know what is done
}


def as_task(name: str, work: Callable[[], T]) -> T:
    """Run one stage of a function as a Prefect task, with retries."""
    # Under torchrun the other processes leave when one fails, and all are started again.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    result: T = task(name=name, **(RETRY if alone else RETRY | {"retries": 0}))(work)()
    return result


def flow_of(function: id2.Function[Any, T], run_name: str) -> Callable[[Callable[[R], T]], Flow[Any, T]]:
    """Make a flow of a function that takes a request: its parameters are the request's options.

    Args:
        function: of `id2`; its options, defaults and help become the flow's parameters.
        run_name: name of a run, with parameters in braces.
    """

    def decorate(body: Callable[[R], T]) -> Flow[Any, T]:
        @functools.wraps(body)
        def run(**parameters: Any) -> T:
            request = function.request(**parameters)
            request.check()
            with stages.run_by(as_task):
                return body(request)  # type: ignore[arg-type]

        del run.__wrapped__
        run.__signature__ = signature_of(function.request)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        made: Flow[Any, T] = flow(name=function.name, flow_run_name=run_name, validate_parameters=True)(run)
        return made

    return decorate
