"""The translate job: list → read → decode → prompts → diffusion model → pictures, rows and rejects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from apache_beam.utils.shared import Shared

from beam_jobs import parts
from id2core import defaults
from id2core.encoders.images import Limits
from id2core.errors import OptionError, TranslatorError
from id2core.runs import leases, planning, takedowns
from id2core.runs.execution import Execution
from id2core.runs.parts import OnBatch
from id2core.runs.planning import Plan
from id2core.runs.units import Record
from id2core.settings import Settings
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.store.storage import Object
from id2core.translation import loading, prompts, rows
from id2core.translation.config import TranslationConfig
from id2core.translation.prompts import PromptSource
from id2core.translation.spec import DiffusionModel
from id2core.translation.translators import Translator

STAGE = "translate"
# Pictures of a part, by default: minutes of a GPU.
PART_PICTURES = 512


@dataclass(frozen=True)
class TranslateJob:
    """What to translate, with what, and where to.

    Attributes:
        images: folder or bucket prefix of the origins.
        out: parent of `translations/`, `rejects/` and `pictures/`.
        model: a row of `models.TABLE`, or what `models.find` made of a name and overrides.
        prompts: a source as `prompts.load` takes it; None for captions beside the images.
        config: translations per origin, seed, file format.
        device, dtype: of the model; `auto` takes what the worker has.
        part_size: origins in one part; by default as many as make 512 pictures.
        limits: of file size and pixels.
        record_seconds: after so long a part keeps what it has made, see `parts.write`.
        allow_shrink: whether a corpus may lose more than a tenth of its rows.
        add_source: whether `out` may hold rows of other folders alone.
    """

    images: str
    out: str
    model: DiffusionModel
    prompts: str | None = None
    config: TranslationConfig = field(default_factory=TranslationConfig)
    device: str = defaults.AUTO
    dtype: str = defaults.AUTO
    part_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    record_seconds: float = defaults.RECORD_SECONDS
    allow_shrink: bool = False
    add_source: bool = False

    def __post_init__(self) -> None:
        default = max(1, PART_PICTURES // self.config.per_image)
        part_size = default if self.part_size is None else self.part_size
        if part_size < 1:
            raise OptionError(f"part_size must be at least 1, not {part_size}")
        object.__setattr__(self, "part_size", part_size)
        object.__setattr__(self, "images", storage.normalize(self.images))
        object.__setattr__(self, "out", storage.normalize(self.out))

    @staticmethod
    def from_settings(
        images: str,
        out: str,
        model: DiffusionModel,
        settings: Settings,
        prompts: str | None = None,
        config: TranslationConfig | None = None,
        part_size: int | None = None,
        add_source: bool = False,
    ) -> TranslateJob:
        """Return a job with device, precision and limits from the settings."""
        limits = Limits.from_settings(settings)
        return TranslateJob(
            images,
            out,
            model,
            prompts,
            config or TranslationConfig(),
            settings.device,
            settings.dtype,
            part_size,
            limits,
            settings.record_seconds,
            settings.allow_shrink,
            add_source,
        )

    @property
    def model_tag(self) -> str:
        """Name the loaded model: jobs with equal tags share one in a process."""
        return json.dumps([self.model.model_dump(), self.device, self.dtype])


@dataclass(frozen=True)
class TranslateResult:
    """The data sets after a translate run, and counts of them.

    Attributes:
        translations, rejects: the data sets.
        run_id: the run that committed them last: this one, or an earlier one where there was nothing to do.
        listed: origins; each is translated or rejected.
        pictures: translations of all origins together.
        model, revision, recipe_id: what made the pictures.
        resumed: True when there was nothing to do.
    """

    translations: Dataset = field(compare=False)
    rejects: Dataset = field(compare=False)
    run_id: str
    listed: int
    translated: int
    rejected: int
    pictures: int
    model: str
    revision: str
    recipe_id: str
    resumed: bool


class _Loaded:
    """The model in a holder that `Shared` can refer to weakly."""

    def __init__(self, job: TranslateJob) -> None:
        self.translator: Translator = loading.load(job.model, job.device, job.dtype)


_SHARED = Shared()


def _translator(job: TranslateJob) -> Translator:
    loaded: _Loaded = _SHARED.acquire(lambda: _Loaded(job), tag=job.model_tag)
    return loaded.translator


@dataclass(frozen=True)
class TranslateMaker:
    """Make pictures and rows of `translations/` from one part of the origins, in a worker."""

    job: TranslateJob
    source: PromptSource

    def load(self) -> dict[str, str]:
        """Load the model; ids of it and of the config."""
        return rows.lineage_ids(self.job.config, _translator(self.job), self.source)

    def make(self, plan: Plan, objects: list[Object], progress: OnBatch) -> list[Record]:
        """Translate the origins of one part and write their pictures."""
        job = self.job
        return rows.translate_part(
            plan.out,
            objects,
            _translator(job),
            self.source,
            job.config,
            plan.lineage,
            job.limits,
            progress,
            job.record_seconds,
            takedowns.refused(plan.out),
        )


def plan(job: TranslateJob, execution: Execution) -> parts.Job:
    """List the origins and stage the parts that have no rows yet.

    Raises:
        TranslatorError, PromptError, StorageError, DatasetError: the message says what to do.
    """
    source = prompts.load(job.prompts, job.images, job.out)
    maker = TranslateMaker(job, source)
    ids = maker.load()
    dtype = str(_translator(job).pipeline.dtype)
    config = {"limits": asdict(job.limits), "dtype": dtype, "prompts": source.identity}
    product, part_size = rows.product(job.config), job.part_size or 1
    excluded = frozenset({source.uri})
    work = planning.make(
        product,
        job.images,
        job.out,
        ids,
        config,
        execution,
        part_size,
        excluded=excluded,
        allow_shrink=job.allow_shrink,
        add_source=job.add_source,
    )
    return parts.Job(STAGE, work, maker, TranslatorError)


def run(job: TranslateJob, execution: Execution, beam_arguments: Sequence[str] = ()) -> TranslateResult:
    """Translate a folder or bucket and wait for the end.

    Args:
        job: what, with what, where to.
        execution: gives new rows their run_id and time.
        beam_arguments: Beam's own options, see `runners.pipeline`.

    Raises:
        TranslatorError, PromptError, StorageError, DatasetError: the message says what to do.
        LostRowsError: an origin ended in neither data set; nothing was committed.
    """
    with leases.held(job.out, job.images, execution):
        planned = plan(job, execution)
        [committed] = parts.run([planned], beam_arguments)
    return TranslateResult(
        translations=committed.rows,
        rejects=committed.rejects,
        run_id=committed.run_id,
        listed=committed.listed,
        translated=committed.made,
        rejected=committed.rejects.rows,
        pictures=committed.made * job.config.per_image,
        resumed=planned.plan.committed,
        **planned.plan.lineage.ids,
    )


def write_template(job: TranslateJob, execution: Execution, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later; return where the template was written."""
    return parts.write_template(plan(job, execution), beam_arguments)
