"""The embed job: list → match generation → read → decode → encode → `embeddings/` and `rejects/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apache_beam.utils.shared import Shared

from beam_jobs import parts
from id2core.encoders import embedding
from id2core.encoders.embed_job import EmbedJob, EmbedResult, finished, plan_embed, row_ids
from id2core.encoders.records import EncoderIds
from id2core.errors import EncoderError
from id2core.runs import leases, takedowns
from id2core.runs.execution import Execution
from id2core.runs.parts import OnBatch
from id2core.runs.planning import Plan
from id2core.runs.units import Record
from id2core.store.storage import Object

STAGE = "embed"


class _Models:
    """Encoder and transform in a holder that `Shared` can refer to weakly."""

    def __init__(self, job: EmbedJob) -> None:
        self.encoder, self.transform = job.load()

    @property
    def ids(self) -> dict[str, str]:
        encoder = self.encoder
        return row_ids(EncoderIds(encoder.encoder_id, encoder.preprocess.preprocess_id), self.transform)


# One per process, for any number of DoFn instances and pipelines.
_SHARED = Shared()


def _models(job: EmbedJob) -> _Models:
    models: _Models = _SHARED.acquire(lambda: _Models(job), tag=job.model_tag)
    return models


@dataclass(frozen=True)
class EmbedMaker:
    """Make rows of `embeddings/` from one part of the listing, in a worker."""

    job: EmbedJob

    def load(self) -> dict[str, str]:
        """Load encoder and transform; return their ids."""
        return _models(self.job).ids

    def make(self, plan: Plan, objects: list[Object], progress: OnBatch) -> list[Record]:
        """Embed the objects of one part: read, decode, encode, apply W."""
        models = _models(self.job)
        return embedding.embed_part(
            plan.out,
            objects,
            models.encoder,
            models.transform,
            plan.lineage,
            self.job.limits,
            progress,
            self.job.record_seconds,
            takedowns.refused(self.job.results or plan.out),
            self.job.trust,
            self.job.views,
        )


def planned(job: EmbedJob, plan: Plan) -> parts.Job:
    """Return the planned run with its worker."""
    return parts.Job(STAGE, plan, EmbedMaker(job.settled(plan.listed)), EncoderError)


def run(job: EmbedJob, execution: Execution, beam_arguments: Sequence[str] = ()) -> EmbedResult:
    """Embed a folder or bucket, commit the data sets, and return when the job has ended.

    Args:
        job: what, with what, where to.
        execution: gives new rows their run_id and time.
        beam_arguments: Beam's own options, see `runners.pipeline`.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError: the message says what to do.
        LostRowsError: an object ended in neither data set; nothing was committed.
        RunInProgressError: another run adds the same images.
    """
    with leases.held(job.out, job.images, execution):
        work = plan_embed(job, execution)
        if (before := finished(job, work)) is not None:
            return before
        [made] = run_planned([(job, work)], beam_arguments)
        return made


def run_planned(
    works: Sequence[tuple[EmbedJob, Plan]], beam_arguments: Sequence[str] = ()
) -> list[EmbedResult]:
    """Embed what plans leave to do as one pipeline, and wait for the end; errors as of `run`."""
    committed = parts.run([planned(job, work) for job, work in works], beam_arguments)
    return [
        EmbedResult.of(job, work, made.rows, made.rejects)
        for (job, work), made in zip(works, committed, strict=True)
    ]


def write_template(job: EmbedJob, execution: Execution, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later; return where the template was written."""
    return parts.write_template(planned(job, plan_embed(job, execution)), beam_arguments)
