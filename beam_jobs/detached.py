"""Planned runs that are left to their engine: the process that submits one need not live until its end."""

from __future__ import annotations

from collections.abc import Sequence

from beam_jobs import parts, runners
from id2core.runs import planning


def submit(job: parts.Job, beam_arguments: Sequence[str]) -> str | None:
    """Submit the planned parts and their commit; return the job's id, or None where nothing is left to do.

    What is staged for the job stays until it has committed, whatever runs meanwhile.

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
