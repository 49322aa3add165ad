"""The embed job: list → match generation → read → decode → encode → `embeddings/` and `rejects/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from apache_beam.utils.shared import Shared

from beam_jobs import parts
from id2core.encoders import embedding
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI
from id2core.encoders.images import Limits
from id2core.encoders.registry import load_encoder
from id2core.errors import EncoderError, OptionError
from id2core.runs import planning
from id2core.runs.parts import PartRecord, Progress
from id2core.runs.planning import Plan
from id2core.settings import Settings
from id2core.store import storage
from id2core.transforms.files import load_transform, local_file, source_of
from id2core.transforms.linear import AUTO, Transform

STAGE = "embed"


@dataclass(frozen=True)
class EmbedJob:
    """What to embed, with what, and where to.

    Attributes:
        images: folder or bucket prefix of images.
        out: parent of the data sets that are written.
        encoder: short name, directory, TorchScript file or hub id.
        transform: file of W, `auto` for the encoder's own; None or `none` for raw latents.
        device, dtype: of the encoder; `auto` takes what the worker has.
        part_size: objects in one part: what a killed run loses at most, per worker.
        limits: of file size and pixels.
        results: a folder whose content is not taken for images, where `out` is only a part of it.
    """

    images: str
    out: str
    encoder: str = MINI
    transform: str | None = AUTO
    device: str = "auto"
    dtype: str = "auto"
    part_size: int = planning.PART_SIZE
    limits: Limits = field(default_factory=Limits)
    results: str | None = None

    def __post_init__(self) -> None:
        if self.part_size < 1:
            raise OptionError(f"part_size must be at least 1, not {self.part_size}")
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

    def load(self) -> tuple[Encoder, Transform]:
        """The encoder and the transform, checked against each other."""
        encoder = load_encoder(self.encoder, self.device, self.dtype)
        chosen = load_transform(self.transform, encoder.encoder_id)
        chosen.check_encoder(encoder.encoder_id)
        chosen.output_size(encoder.latent_size)
        return encoder, chosen

    @property
    def model_tag(self) -> str:
        """Jobs with equal tags share one loaded model in a process; a file that changed is another one."""
        files = [Path(self.encoder), local_file(self.transform)]
        stamps = [(str(p), p.stat().st_mtime_ns) for p in files if p and p.is_file()]
        return json.dumps([self.encoder, self.transform, self.device, self.dtype, stamps])


@dataclass(frozen=True)
class EmbedSummary:
    """Counts of the data sets after the run; `transform_from` is `transform.source` of the transform."""

    run_id: str
    listed: int
    embedded: int
    rejected: int
    encoder_id: str
    transform_id: str
    transform_from: str
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


@dataclass(frozen=True)
class EmbedMaker:
    """Makes rows of `embeddings/`."""

    job: EmbedJob

    def load(self) -> dict[str, str]:
        """Load encoder and transform; their ids."""
        return _models(self.job).ids

    def make(self, plan: Plan, part: int, progress: Progress) -> PartRecord:
        """Embed one part."""
        models = _models(self.job)
        objects = planning.read_part(plan, part)
        return embedding.embed_part(
            plan.out, objects, models.encoder, models.transform, plan.lineage, self.job.limits, progress
        )


def plan(job: EmbedJob) -> Plan:
    """List the images and stage what is to be done; raises on a bad URI or on rows that must not be mixed."""
    models = _models(job)
    config = {"limits": asdict(job.limits), "dtype": str(models.encoder.dtype)}
    return planning.make(
        embedding.PRODUCT, job.images, job.out, models.ids, config, job.part_size, job.results
    )


def planned(job: EmbedJob, plan: Plan) -> parts.Job:
    """The planned run for `parts`."""
    return parts.Job(STAGE, plan, EmbedMaker(job), EncoderError)


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
    counted = parts.run(planned(job, todo), beam_arguments)
    ids = todo.lineage.ids
    return EmbedSummary(
        run_id=todo.lineage.run_id,
        listed=counted.listed,
        embedded=counted.made,
        rejected=counted.rejected,
        encoder_id=ids["encoder_id"],
        transform_id=ids["transform_id"],
        transform_from=source_of(job.transform, ids["transform_id"], ids["encoder_id"]),
        resumed=todo.done,
    )


def write_template(job: EmbedJob, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later; where the template was written."""
    return parts.write_template(planned(job, plan(job)), beam_arguments)
