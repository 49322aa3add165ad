"""The backfill flow: the nights of a range of dates, one after another, as runs of a deployment."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from id2core.errors import NightError, OptionError
from id2core.sources import registry

# The state of a night that ended well.
_GOOD = "Completed"


@flow(name="backfill", flow_run_name="backfill {first} to {last}")
def backfill(
    first: Annotated[date, Field(description="First night.")],
    last: Annotated[date, Field(description="Last night.")],
    queries: Annotated[
        list[str] | None,
        Field(
            description="Sources of uploads with {date}, spelled as in the nightly runs. "
            "By default those of the deployment.",
            min_length=1,
        ),
    ] = None,
    parameters: Annotated[
        dict[str, Any] | None, Field(description="Further parameters that override the deployment's.")
    ] = None,
    deployment: Annotated[str, Field(description="Deployment of the nights.")] = "nightly/nightly",
) -> dict[str, str]:
    """Run the nights from `first` to `last`, each as a run of the nightly deployment.

    A night reads its own date alone, without late days. It waits for its turn behind one that runs already.
    A night that fails does not keep the others from running. The backfill then fails at the end and names it.
    Re-run it with the same dates to repeat what failed: nights that ended well find nothing new.
    """
    if first > last:
        raise OptionError(f"the first night, {first}, is after the last, {last}")
    sources = _sources(queries, deployment)
    ended: dict[str, str] = {}
    for day in (first + timedelta(days=n) for n in range((last - first).days + 1)):
        night = {"late_days": 0} | (parameters or {}) | {"queries": sources, "date": day.isoformat()}
        ended[day.isoformat()] = _run(deployment, night, f"night of {day}, backfilled")
        get_run_logger().info("night of %s: %s", day, ended[day.isoformat()])
    if lost := [f"{day} ({state})" for day, state in ended.items() if state != _GOOD]:
        raise NightError(f"{len(lost)} of {len(ended)} nights did not end well: {', '.join(lost)}")
    return ended


def _sources(queries: list[str] | None, deployment: str) -> list[str]:
    """Return the sources of uploads, each another place every night.

    Raises:
        OptionError: one is the same place every night; or there is no such deployment.
    """
    if queries:
        _check_dated(queries)
    usual = _parameters_of(deployment).get("queries", [])
    if not queries:
        _check_dated(usual)
    return queries or list(usual)


def _parameters_of(deployment: str) -> dict[str, Any]:
    """Return the parameters that a deployment gives its runs.

    Raises:
        OptionError: there is no such deployment.
    """
    with get_client(sync_client=True) as client:
        try:
            return dict(client.read_deployment_by_name(deployment).parameters)
        except ObjectNotFound:
            raise OptionError(f"the server has no deployment {deployment}: deploy it first") from None


def _check_dated(sources: list[str]) -> None:
    """Raise OptionError unless every source is another place each night."""
    undated = [source for source in sources if not registry.parse(source).is_dated]
    if undated or not sources:
        named = ", ".join(undated) or "nothing"
        raise OptionError(
            f"a backfill needs sources of uploads with {{date}}, such as gs://inbox/{{date}}, not {named}"
        )


def _run(deployment: str, parameters: dict[str, Any], name: str) -> str:
    """Run one night and wait for its end; return its state."""
    run: FlowRun | Any = run_deployment(deployment, parameters=parameters, flow_run_name=name)
    state = run.state
    if state is None:
        return "unknown"
    return _GOOD if state.is_completed() else str(state.name)
