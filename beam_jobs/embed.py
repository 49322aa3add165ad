"""The embed job: list → match generation → read → decode → encode → `embeddings/` and `rejects/`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from beam_jobs import runners
from id2core import datasets, embedding, encoders, planning, storage, transform
from id2core.encoders import EncoderError
from id2core.images import Limits
from id2core.planning import Plan
from id2core.progress import tally
from id2core.settings import Settings
from id2core.transform import Transform

STAGE = "embed"
LOOK_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class EmbedJob:
    """What to embed, with what, and where to.

    Attributes:
        images: folder or bucket prefix of images.
        out: parent of the data sets that are written.
        encoder: short name, directory, TorchScript file or hub id.
        transform: file of W; None or `none` for raw latents.
        device, dtype: of the encoder; `auto` takes what the worker has.
        part_size: objects in one part: what a killed run loses at most, per worker.
        limits: of file size and pixels.
        results: a folder whose content is not taken for images, where `out` is only a part of it.
    """

    images: str
    out: str
    encoder: str = encoders.MINI
    transform: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    part_size: int = planning.PART_SIZE
    limits: Limits = field(default_factory=Limits)
    results: str | None = None

    def __post_init__(self) -> None:
        if self.part_size < 1:
            raise ValueError(f"part_size must be at least 1, not {self.part_size}")
        object.__setattr__(self, "images", storage.normalize(self.images))
        object.__setattr__(self, "out", storage.normalize(self.out))
        if self.results:
            object.__setattr__(self, "results", storage.normalize(self.results))

    @staticmethod
    def from_settings(images: str, out: str, settings: Settings, results: str | None = None) -> EmbedJob:
        """A job with everything but its places from the settings."""
        chosen = settings.model_dump(include={"encoder", "transform", "device", "dtype", "part_size"})
        limits = Limits(settings.max_bytes, settings.max_pixels)
        return EmbedJob(images, out, limits=limits, results=results, **chosen)

    def load(self) -> tuple[encoders.Encoder, Transform]:
        """The encoder and the transform, checked against each other."""
        encoder = encoders.load(self.encoder, self.device, self.dtype)
        chosen = transform.load(self.transform)
        chosen.check_encoder(encoder.encoder_id)
        chosen.output_size(encoder.latent_size)
        return encoder, chosen

    @property
    def model_tag(self) -> str:
        """Jobs with equal tags share one loaded model in a process; a file that changed is another one."""
        stamps = [
            Path(p).stat().st_mtime_ns for p in (self.encoder, self.transform or "") if Path(p).is_file()
        ]
        return json.dumps([self.encoder, self.transform, self.device, self.dtype, stamps])


@dataclass(frozen=True)
class EmbedSummary:
    """Counts of the data sets after the run."""

    run_id: str
    listed: int
    embedded: int
    rejected: int
    encoder_id: str
    transform_id: str
    resumed: bool


class _Models:
    """Encoder and transform in a holder that `Shared` can refer to weakly."""

    def __init__(self, job: EmbedJob) -> None:
        self.encoder, self.transform = job.load()

    @property
    def ids(self) -> dict[str, str]:
        return {
            "encoder_id": self.encoder.encoder_id,
            "transform_id": self.transform.transform_id,
            "preprocess_id": self.encoder.preprocess.preprocess_id,
        }


# One per process, whatever the number of DoFn instances and pipelines.
_SHARED = Shared()


def _models(job: EmbedJob) -> _Models:
    return _SHARED.acquire(lambda: _Models(job), tag=job.model_tag)


class _EmbedPart(beam.DoFn):
    """Part number → its key, after its files and its record are in place."""

    def __init__(self, job: EmbedJob, plan: Plan) -> None:
        self._job, self._plan = job, plan
        self._embedded = Metrics.counter("EmbedParts", "embedded")
        self._rejected = Metrics.counter("EmbedParts", "rejected")

    def setup(self) -> None:
        self._models = _models(self._job)
        if self._models.ids != self._plan.lineage.ids:
            raise EncoderError(
                f"this worker loaded {self._models.ids}, the run was planned with {self._plan.lineage.ids}: "
                f"give every worker the same files, and hub models a revision"
            )

    def process(self, part: int) -> Iterator[str]:
        plan = self._plan
        record = embedding.embed_part(
            plan.out,
            planning.read_part(plan, part),
            self._models.encoder,
            self._models.transform,
            plan.lineage,
            self._job.limits,
            self._count,
        )
        yield record.key

    def _count(self, embedded: int, rejected: int) -> None:
        self._embedded.inc(embedded)
        self._rejected.inc(rejected)
        tally.add(STAGE, embedded, rejected)


@dataclass
class EmbedParts(beam.PTransform):
    """Part numbers of a plan → keys of finished parts.

    Args:
        job: what to load on a worker.
        plan: the run; its parts stand in the staged manifest.
    """

    job: EmbedJob
    plan: Plan

    def expand(self, parts: beam.PCollection[int]) -> beam.PCollection[str]:
        """Spread the parts over the workers and embed each."""
        return parts | "Spread" >> beam.Reshuffle() | "Embed" >> beam.ParDo(_EmbedPart(self.job, self.plan))


@dataclass
class Commit(beam.PTransform):
    """Keys of finished parts → the data sets, committed once all parts are done."""

    plan: Plan

    def expand(self, keys: beam.PCollection[str]) -> beam.PCollection[None]:
        """Wait for every part, then commit: also when there was none to do."""
        return (
            keys
            | "AllDone" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
            | "Commit" >> beam.Map(lambda _, plan: planning.commit(plan), plan=self.plan)
        )


def plan(job: EmbedJob) -> Plan:
    """List the images and stage what is to be done; raises on a bad URI or on rows that must not be mixed."""
    models = _models(job)
    config = {"limits": asdict(job.limits), "dtype": str(models.encoder.dtype)}
    return planning.make(job.images, job.out, models.ids, config, job.part_size, job.results)


def build(pipeline: beam.Pipeline, job: EmbedJob, plan: Plan) -> None:
    """Add the job's steps to a pipeline on any runner."""
    (
        pipeline
        | "Parts" >> beam.Create(range(plan.parts), reshuffle=False)
        | EmbedParts(job, plan)
        | Commit(plan)
    )


def run(job: EmbedJob, beam_arguments: Sequence[str] = ()) -> EmbedSummary:
    """Embed a folder or bucket and wait for the end.

    Args:
        job: what, with what, where to.
        beam_arguments: Beam's own options, see `runners.pipeline`.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError: what to do stands in the message.
        LostRowsError: an object ended in neither data set; nothing was committed.
    """
    todo = plan(job)
    tally.start(STAGE, todo.objects)
    if not todo.done:
        counted = nullcontext() if runners.is_in_process(beam_arguments) else _parts_counted(todo)
        with counted, runners.pipeline(beam_arguments) as pipeline:
            build(pipeline, job, todo)
    return summary(todo)


@contextmanager
def _parts_counted(plan: Plan) -> Iterator[None]:
    """While other processes work, count the parts whose records they leave in the store."""
    seen = set(planning.staged_by_uri(plan.out))
    stop = threading.Event()
    objects = 0

    def look() -> None:
        nonlocal objects
        while not stop.wait(LOOK_EVERY_SECONDS):
            with suppress(FileNotFoundError):  # the commit, elsewhere, is tidying up
                new = planning.staged_by_uri(plan.out, seen)
                seen.update(new)
                for record in new.values():
                    tally.add(STAGE, *record.counts)
                    objects += sum(record.counts)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
        tally.add(STAGE, plan.objects - objects)
    finally:
        stop.set()
        thread.join()


def write_template(job: EmbedJob, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later (Dataflow's `--template_location`).

    The images are listed now; the commit is a step of the job, so nothing has to wait here for its end.

    Returns:
        Where the template was written.
    """
    todo = plan(job)
    pipeline = runners.pipeline(beam_arguments)
    build(pipeline, job, todo)
    pipeline.run()
    return str(runners.template_location(beam_arguments))


def summary(plan: Plan) -> EmbedSummary:
    """Counts of a finished run, from what was committed."""
    embedded, rejected = (
        datasets.require_commit(storage.join(plan.out, d)).rows
        for d in (embedding.EMBEDDINGS, embedding.REJECTS)
    )
    return EmbedSummary(
        run_id=plan.lineage.run_id,
        listed=plan.listed,
        embedded=embedded,
        rejected=rejected,
        encoder_id=plan.lineage.encoder_id,
        transform_id=plan.lineage.transform_id,
        resumed=plan.done,
    )
