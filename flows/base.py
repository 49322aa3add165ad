"""What every flow shares: its parameters are the options of a function of `id2`, its stages are tasks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow, flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_engine import TaskRunTimeoutError
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

import id2
from flows import outcomes, progress
from id2 import stages
from id2.options import Request, signature_of
from id2core.errors import ID2Error, OptionError
from id2core.settings import EnvironmentSettings

R = TypeVar("R", bound=Request)
T = TypeVar("T")


class FlowSettings(EnvironmentSettings):
    """How long runs may take, from environment variables of the worker."""

    model_config = SettingsConfigDict(env_prefix="ID2_", extra="ignore")

    stage_hours: float = Field(72.0, gt=0, description="Hours after which a stage of a flow is ended.")
    flow_hours: float = Field(96.0, gt=0, description="Hours after which a run of a flow is ended.")


def load_settings() -> FlowSettings:
    """Return the settings of flows.

    Raises:
        OptionError: a value is out of bounds.
    """
    try:
        return FlowSettings()
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(f"ID2_{str(first['loc'][0]).upper()}: {first['msg']}") from error


def _worth_retrying(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake would only be repeated; what else went wrong may pass."""
    try:
        state.result()
    except TaskRunTimeoutError:
        return False  # it would take as long again
    except ID2Error as error:
        return error.transient
    except Exception:
        return True
    return False


RETRY: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [5, 30, 180],
    "retry_jitter_factor": 0.5,  # workers that lost the same server do not come back together
    "retry_condition_fn": _worth_retrying,
    "cache_policy": None,  # the data sets themselves know what is done
}


def as_task(day: str, name: str, work: Callable[[], T]) -> T:
    """Run one stage of a function as a Prefect task: named, with retries, a timeout, and lines of counts.

    Args:
        day: that is behind the name of the task's run.
        name: of the stage.
        work: the stage.
    """
    title = f"{name} {day}"

    def counted() -> T:
        with progress.logged(name, get_run_logger().info, _ProgressArtifact(title)):
            return work()

    # Under torchrun the other processes leave when one fails, and all are started again.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    options = RETRY if alone else RETRY | {"retries": 0}
    seconds = load_settings().stage_hours * 3600
    made = task(
        name=name, task_run_name=title.replace("{", "(").replace("}", ")"), timeout_seconds=seconds, **options
    )
    result: T = made(counted)()
    return result


class _ProgressArtifact:
    """A bar in Prefect's UI, made when there is something to show."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._id: UUID | None = None
        self._percent = -1.0

    def __call__(self, percent: float) -> None:
        if percent == self._percent:
            return
        self._percent = percent
        try:
            if self._id is None:
                made = create_progress_artifact(percent, key="progress", description=self._title)
                self._id = UUID(str(made))
            else:
                update_progress_artifact(self._id, percent)
        except Exception as error:  # the work goes on without
            get_run_logger().debug("no progress artifact: %s", error)


def flow_of(function: id2.Function[Any, T], run_name: str) -> Callable[[Callable[[R], T]], Flow[Any, T]]:
    """Make a flow of a function that takes a request: its parameters are the request's options.

    Args:
        function: of `id2`; its options, defaults and help become the flow's parameters.
        run_name: name of a run, with parameters in braces.
    """

    def decorate(body: Callable[[R], T]) -> Flow[Any, T]:
        @functools.wraps(body)
        def run(**parameters: Any) -> T:
            with outcomes.reported(function.name, parameters):
                request = function.request(**parameters)
                request.check()
                with stages.run_by(functools.partial(as_task, _day_of(request))):
                    return body(request)  # type: ignore[arg-type]

        del run.__wrapped__
        run.__signature__ = signature_of(function.request)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        made: Flow[Any, T] = flow(
            name=function.name,
            flow_run_name=run_name,
            validate_parameters=True,
            timeout_seconds=load_settings().flow_hours * 3600,
        )(run)
        return made

    return decorate


def _day_of(request: Request) -> str:
    """Return the date that a request is about, else today's in UTC."""
    return str(getattr(request, "date", None) or datetime.now(UTC).date())
