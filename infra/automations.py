"""The automation that sees killed runs: `python infra/automations.py`, with PREFECT_API_URL set.

A run whose machine dies stays Running in Prefect, and keeps the slot that the next night needs. Prefect Cloud
sees that, a server of one's own does not. This creates the automation there, or brings it up to date: a flow
run that sends no heartbeat for `--within` seconds is marked Crashed, which frees its slot.

Flow runs send a heartbeat every 180 s, or every PREFECT_FLOWS_HEARTBEAT_FREQUENCY of the worker. `--within`
is three times that, so that one heartbeat that is lost kills no run.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "id2: mark killed flow runs as crashed"
# Prefect's own default is a heartbeat every 180 s.
WITHIN_SECONDS = 540
HEARTBEAT = "prefect.flow-run.heartbeat"
# Any of these says that a run lives, or that its end is known.
_SIGNS = {HEARTBEAT} | {
    f"prefect.flow-run.{state}"
    for state in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Cancelling", "AwaitingRetry")
}


def automation(within_seconds: float) -> AutomationCore:
    """Return the automation: after a heartbeat, one of the signs is expected within so many seconds."""
    trigger = EventTrigger(
        after={HEARTBEAT},
        expect=_SIGNS,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_seconds),
    )
    message = f"No heartbeat for {within_seconds:.0f} s: its process or its machine has died."
    return AutomationCore(
        name=NAME,
        description="Frees the slot of a night whose worker has died. Created by infra/automations.py.",
        enabled=True,
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def ensure(client: SyncPrefectClient, within_seconds: float = WITHIN_SECONDS) -> UUID:
    """Create the automation, or bring the one of this name up to date; return its id."""
    wanted = automation(within_seconds)
    standing = [found for found in client.read_automations_by_name(NAME) if found.name == NAME]
    for extra in standing[1:]:  # two deployments at once may both have created it
        client.delete_automation(extra.id)
    if not standing:
        return client.create_automation(wanted)
    if _content(standing[0]) != _content(wanted):
        client.update_automation(standing[0].id, wanted)
    return UUID(str(standing[0].id))


def _content(it: AutomationCore) -> dict[str, Any]:
    """Return what an operator sees of an automation: without ids."""
    kept = it.model_dump(
        mode="json", include=set(AutomationCore.model_fields) - {"trigger", "owner_resource"}
    )
    return kept | {"trigger": it.trigger.model_dump(mode="json", exclude={"id"})}


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--within",
        type=float,
        default=WITHIN_SECONDS,
        help=f"seconds without a heartbeat; default: {WITHIN_SECONDS}",
    )
    options = parser.parse_args()
    with get_client(sync_client=True) as client:
        print(f"automation {ensure(client, options.within)}: {NAME}")


if __name__ == "__main__":
    main()
