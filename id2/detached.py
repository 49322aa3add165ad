"""Submit a job and leave it to its engine, for every function that is one job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from id2.results import SubmittedJob
from id2core.runs import leases
from id2core.runs.execution import Execution

if TYPE_CHECKING:
    from beam_jobs import parts


def submit(
    out: str, images: str, plan: Callable[[Execution], parts.Job], beam: list[str]
) -> SubmittedJob | None:
    """Plan and submit a job without waiting for its end; return None if nothing is left to do.

    Args:
        out: parent of the data sets that it writes.
        images: the source whose rows it adds. No other run plans for it meanwhile.
        plan: returns the job of an execution.
        beam: Beam's arguments.
    """
    from beam_jobs import detached

    execution = Execution.begin()
    with leases.held(out, images, execution):
        job_id = detached.submit(plan(execution), beam)
    return SubmittedJob(job_id=job_id, run_id=execution.run_id) if job_id else None
