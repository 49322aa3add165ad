"""Embed: images to embeddings."""

from __future__ import annotations

from id2 import detached
from id2.corpora import embed_images
from id2.requests import EmbedRequest
from id2.results import EmbedSummary, StagedJob, SubmittedJob
from id2.stages import stage
from id2core.encoders.embed_job import EmbedJob, plan_embed
from id2core.runs.execution import Execution
from id2core.runs.planning import Made
from id2core.runs.records import recorded
from id2core.store import storage


def run(request: EmbedRequest) -> EmbedSummary | StagedJob | SubmittedJob:
    """Embed the images that have no row yet; stage or submit the job alone where that is asked for.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError: the message says what to do.
        LostRowsError: an object ended in neither data set; nothing was committed.
    """
    job = EmbedJob.from_settings(request.images, request.out, request.settings(), **request.feed)
    if request.template:
        from beam_jobs import embed as embed_job

        return StagedJob(template=embed_job.write_template(job, Execution.begin(), request.beam))
    job.identify()  # an encoder or W that cannot be had is refused before anything is written
    if request.detach and (submitted := _detached(job, request.beam)):
        return submitted
    with recorded(storage.normalize(request.out), "embed", request.model_dump()) as recorder:
        with recorder.stage("embed"):
            [made] = stage("embed", lambda: embed_images([job], recorder.execution, request.beam))
        counts = Made.by(recorder.execution.run_id, made.embeddings)
        recorder.count(listed=made.listed, embedded=counts.added, rejected=counts.rejected)
    return EmbedSummary.model_validate(made, from_attributes=True)


def _detached(job: EmbedJob, beam: list[str]) -> SubmittedJob | None:
    """Submit the job; return None where nothing is left to do."""
    from beam_jobs import embed as embed_job

    return detached.submit(
        job.out, job.images, lambda execution: embed_job.planned(job, plan_embed(job, execution)), beam
    )
