"""The backfill flow: the nights of a range of dates, one after another, as runs of a deployment."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from pydantic import Field

from id2core.errors import NightError, OptionError
from id2core.sources import dates


@flow(name="backfill", flow_run_name="backfill {first} to {last}")
def backfill(
    first: Annotated[date, Field(description="First night.")],
    last: Annotated[date, Field(description="Last night.")],
    queries: Annotated[
        list[str], Field(description="Sources of uploads, in which {date} is the night.", min_length=1)
    ],
    parameters: Annotated[
        dict[str, Any] | None, Field(description="Further parameters that override the deployment's.")
    ] = None,
    deployment: Annotated[str, Field(description="Deployment of the nights.")] = "nightly/nightly",
) -> dict[str, str]:
    """Run the nights from `first` to `last`, each as a run of the nightly deployment.

    A night waits for its turn behind one that runs already. A night that fails does not keep the others from
    running; the backfill fails at the end, and names it.
    """
    if first > last:
        raise OptionError(f"the first night, {first}, is after the last, {last}")
    ended: dict[str, str] = {}
    for day in (first + timedelta(days=n) for n in range((last - first).days + 1)):
        given = (parameters or {}) | {"queries": [dates.filled(uri, day) for uri in queries]}
        run = run_deployment(deployment, parameters=given, flow_run_name=f"night of {day}, backfilled")
        ended[day.isoformat()] = _state(run)
        get_run_logger().info("night of %s: %s", day, ended[day.isoformat()])
    if lost := [day for day, state in ended.items() if state != "Completed"]:
        raise NightError(f"{len(lost)} of {len(ended)} nights did not end well: {', '.join(lost)}")
    return ended


def _state(run: FlowRun | Any) -> str:
    return str(run.state.name) if run.state else "unknown"
