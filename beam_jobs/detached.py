"""Submit planned runs and leave them to their engine: the submitting process may end before its job."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from beam_jobs import parts, runners, signals
from id2core.runs import planning

_log: Final = logging.getLogger("id2.engines")


def submit(job: parts.Job, beam_arguments: Sequence[str]) -> str | None:
    """Submit the planned parts and their commit; return the job's id, or None if nothing is left to do.

    A signal that comes before the job server has accepted the job cancels it. A later one cannot: a warning
    then gives the job's id. The files staged for the job stay until it has committed. No run removes them as
    leftovers.

    Raises:
        EngineError: the job server does not answer, or the engine refuses the job.
    """
    if job.plan.committed:
        return None
    with signals.held() as held:
        planning.keep_staged(job.plan)
        try:
            job_id = runners.submit(beam_arguments, lambda pipeline: parts.build(pipeline, [job]))
        except BaseException:
            planning.release_staged(job.plan)
            raise
        if held.has_come:
            _log.warning("job %s was submitted, and continues", job_id)
    return job_id
