"""Submit planned runs and leave them to their engine: the submitting process may end before its job."""

from __future__ import annotations

from collections.abc import Sequence

from beam_jobs import parts, runners
from id2core.runs import planning


def submit(job: parts.Job, beam_arguments: Sequence[str]) -> str | None:
    """Submit the planned parts and their commit; return the job's id, or None if nothing is left to do.

    The files staged for the job stay until it has committed. No run removes them as leftovers.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job.
    """
    if job.plan.committed:
        return None
    planning.keep_staged(job.plan)
    try:
        return runners.submit(beam_arguments, lambda pipeline: parts.build(pipeline, [job]))
    except BaseException:
        planning.release_staged(job.plan)
        raise
