"""What an embed run is asked for, what it has to do, and what it leaves; loads neither Beam nor torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from id2core import defaults
from id2core.encoders import embedding, trust_list
from id2core.encoders.hub import MINI
from id2core.encoders.images import Limits
from id2core.encoders.records import EncoderIds
from id2core.encoders.registry import load_encoder, recorded
from id2core.errors import EncoderError, OptionError
from id2core.runs import planning, takedowns
from id2core.runs.execution import Execution
from id2core.runs.planning import Plan
from id2core.settings import Settings
from id2core.sources import dates, registry
from id2core.sources.base import Mode, Source
from id2core.sources.posts import PostsRecorder
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason
from id2core.transforms.files import load_transform, local_file, source_of
from id2core.transforms.linear import AUTO, Transform

if TYPE_CHECKING:
    from id2core.encoders.base import Encoder  # imports torch


class Feed(TypedDict, total=False):
    """What is said of a source besides its name; attributes of `EmbedJob`."""

    mode: Mode | None
    night: date | None
    add_source: bool


# Pictures from which compiling pays. On an H200 it took 16 s, and SD2's VAE then took 0.63 ms less for each.
COMPILED_FROM = 100_000
# Settings that are options of a job, under the same name.
_SETTINGS = {
    "encoder",
    "transform",
    "views",
    "device",
    "dtype",
    "compile",
    "batch_size",
    "part_size",
    "allow_shrink",
    "record_seconds",
    "late_days",
    "retention_days",
}


@dataclass(frozen=True)
class EmbedJob:
    """What to embed, with what, and where to.

    Attributes:
        images: the source of the images, as `sources.registry.parse` takes it.
        out: parent of the data sets that are written.
        encoder: short name, directory, TorchScript file or hub id.
        transform: file of W, `auto` for the encoder's own; None or `none` for raw latents.
        device, dtype: of the encoder; `auto` takes what the worker has.
        compile: whether it is compiled, see `registry.load_encoder`; `auto` decides by the pictures listed.
        batch_size: pictures that the encoder takes at once; None for what suits the device.
        part_size: objects in one part.
        limits: of file size and pixels.
        results: a folder whose content is not taken for images, where `out` is only a part of it.
        record_seconds: a worker records what it has made of a part after so long, see `parts.write`.
        allow_shrink: whether a corpus may lose more than a tenth of its rows.
        mode: what happens to rows that the source no longer lists, see `registry.parse`.
        night, late_days: of a dated source, what is read; by default the present night.
        retention_days: days for which rows of a source that is appended stay; None for ever.
        allowed_places: folders and prefixes that a list may name beside its own.
        trust: certificates in PEM, by which signers of Content Credentials are trusted; None to read none.
        views: what rows get besides latent and descriptor, see `embedding.embed_objects`.
        add_source: whether `out` may hold rows of other sources alone.

    Example:
        >>> job = EmbedJob("photos", "embedded", encoder="mini")
        >>> result = embed.run(job, Execution.begin())
        >>> (result.listed, result.embedded, result.rejected)
        (3, 3, 0)
        >>> [table.num_rows for table in result.embeddings.tables(["uri", "image_id"])]
        [3]
    """

    images: str
    out: str
    encoder: str = MINI
    transform: str | None = AUTO
    device: str = defaults.AUTO
    dtype: str = defaults.AUTO
    compile: str = defaults.AUTO
    batch_size: int | None = None
    part_size: int = defaults.PART_SIZE
    limits: Limits = field(default_factory=Limits)
    results: str | None = None
    allow_shrink: bool = False
    record_seconds: float = defaults.RECORD_SECONDS
    mode: Mode | None = None
    night: date | None = None
    late_days: int = defaults.LATE_DAYS
    retention_days: float | None = None
    allowed_places: tuple[str, ...] = ()
    add_source: bool = False
    trust: str | None = ""
    views: str = defaults.AUTO

    def __post_init__(self) -> None:
        if self.part_size < 1:
            raise OptionError(f"part_size must be at least 1, not {self.part_size}")
        source = registry.parse(self.images, self.mode, self.allowed_places)
        object.__setattr__(self, "images", source.uri)
        object.__setattr__(self, "night", self.night or dates.today(defaults.TIME_ZONE))
        object.__setattr__(self, "out", storage.normalize(self.out))
        if self.results:
            object.__setattr__(self, "results", storage.normalize(self.results))

    @staticmethod
    def from_settings(
        images: str,
        out: str,
        settings: Settings,
        results: str | None = None,
        **feed: Unpack[Feed],
    ) -> EmbedJob:
        """Return a job with everything but its places, and what is said of its source, from the settings."""
        return EmbedJob(
            images,
            out,
            limits=Limits.from_settings(settings),
            results=results,
            mode=feed.get("mode"),
            night=feed.get("night") or dates.today(settings.time_zone),
            add_source=feed.get("add_source", False),
            allowed_places=tuple(settings.allowed_places),
            trust=None if settings.credentials == "none" else trust_list.read(settings.c2pa_trust_list),
            **settings.model_dump(include=_SETTINGS),
        )

    @property
    def source(self) -> Source:
        """Where the images come from, in the night of the job."""
        source = registry.parse(self.images, self.mode, self.allowed_places)
        return source.on(self.night, self.late_days) if self.night else source

    def settled(self, listed: int) -> EmbedJob:
        """Return the job as workers take it, by how many pictures its source lists.

        What is left to do would decide otherwise in a resumed run, whose rows must have the same bits.
        """
        if self.compile != defaults.AUTO:
            return self
        return replace(self, compile="on" if listed >= COMPILED_FROM else "off")

    def load(self) -> tuple[Encoder, Transform]:
        """Load the encoder and the transform, checked against each other."""
        encoder = load_encoder(self.encoder, self.device, self.dtype, self.batch_size, self.compile)
        chosen = load_transform(self.transform, encoder.encoder_id)
        chosen.check_encoder(encoder.encoder_id)
        chosen.output_size(encoder.latent_size)
        return encoder, chosen

    def identify(self) -> dict[str, str]:
        """Return the ids of encoder and transform; loads no weights where the encoder is recorded."""
        record = recorded(self.encoder)
        chosen = load_transform(self.transform, record.encoder_id)
        chosen.check_encoder(record.encoder_id)
        chosen.output_size(record.latent_size)
        return row_ids(record.ids, chosen)

    @property
    def descriptor_size(self) -> int:
        """How many numbers a descriptor will have; loads no weights where the encoder is recorded."""
        record = recorded(self.encoder)
        return load_transform(self.transform, record.encoder_id).output_size(record.latent_size)

    @property
    def model_tag(self) -> str:
        """Name the loaded models: jobs with equal tags share them. A file that changed is another one."""
        files = [Path(self.encoder), local_file(self.transform)]
        stamps = [(str(p), p.stat().st_mtime_ns) for p in files if p and p.is_file()]
        asked = [self.encoder, self.transform, self.device, self.dtype, self.compile, self.batch_size]
        return json.dumps([*asked, stamps])


@dataclass(frozen=True)
class EmbedResult:
    """The data sets after an embed run, and counts of them.

    Attributes:
        embeddings, rejects: the data sets.
        run_id: the run that committed them last: this one, or an earlier one where there was nothing to do.
        listed: images of the source; each is embedded or rejected.
        encoder_id, transform_id: of the embeddings.
        transform_from: where the transform comes from, see `transforms.files.source_of`.
        resumed: True when there was nothing to do.
    """

    embeddings: Dataset = field(compare=False)
    rejects: Dataset = field(compare=False)
    run_id: str
    listed: int
    embedded: int
    rejected: int
    encoder_id: str
    transform_id: str
    transform_from: str
    resumed: bool

    @staticmethod
    def of(job: EmbedJob, plan: Plan, embeddings: Dataset, rejects: Dataset) -> EmbedResult:
        """Return the result of a plan whose data sets are committed.

        Raises:
            EncoderError: every picture was lost to an overflow, so that nothing could ever be found.
        """
        ids = plan.lineage.ids
        if not embeddings.rows and rejects.rows > 1:
            reasons = set(rejects.read(schemas.REJECTS, ["reason"])["reason"].to_pylist())
            if reasons == {Reason.NOT_ENCODABLE}:
                raise EncoderError(
                    f"{ids['encoder_id']} gives no finite latent of any of the {rejects.rows} pictures of "
                    f"{job.images}: set ID2_DTYPE=float32, or take another encoder"
                )
        return EmbedResult(
            embeddings=embeddings,
            rejects=rejects,
            run_id=embeddings.run_id,
            listed=plan.listed,
            embedded=embeddings.rows,
            rejected=rejects.rows,
            encoder_id=ids["encoder_id"],
            transform_id=ids["transform_id"],
            transform_from=source_of(job.transform, ids["transform_id"], ids["encoder_id"]),
            resumed=plan.committed,
        )


def row_ids(encoder: EncoderIds, transform: Transform) -> dict[str, str]:
    """Return the ids (`schemas.ROW_IDS`) of rows that an encoder and a transform make."""
    return asdict(encoder) | {"transform_id": transform.transform_id}


def plan_embed(job: EmbedJob, execution: Execution) -> Plan:
    """List the images and stage what is to be done; loads no weights where the encoder is recorded.

    What the source says of its images goes to `posts/` first: a run that is killed later writes it no more.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError: the message says what to do.
    """
    config = {"limits": asdict(job.limits), "dtype": job.dtype, "compile": job.compile}
    withheld = partial(takedowns.withheld, job.results or job.out, job.out)
    posts = PostsRecorder(job.out, execution.run_id, withheld)
    plan = planning.make(
        embedding.PRODUCT,
        job.source,
        job.out,
        job.identify(),
        config,
        execution,
        job.part_size,
        job.results,
        allow_shrink=job.allow_shrink,
        retention_days=job.retention_days,
        add_source=job.add_source,
        lister=posts.items,
        options={"views": job.views},
    )
    posts.commit()
    return plan


def finished(job: EmbedJob, plan: Plan) -> EmbedResult | None:
    """Return the result of a plan that was committed before; None where there is something to do."""
    rows, rejects = plan.held.rows, plan.held.rejects
    return EmbedResult.of(job, plan, rows, rejects) if plan.committed and rows and rejects else None
