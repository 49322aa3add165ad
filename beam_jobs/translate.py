"""The translate job: list → read → decode → prompts → diffusion model → pictures, rows and rejects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from apache_beam.utils.shared import Shared

from beam_jobs import parts
from id2core.encoders.images import Limits
from id2core.errors import OptionError, TranslatorError
from id2core.runs import planning
from id2core.runs.parts import PartRecord, Progress
from id2core.runs.planning import Plan
from id2core.settings import Settings
from id2core.store import storage
from id2core.translation import models, prompts, rows
from id2core.translation.prompts import PromptSource
from id2core.translation.rows import Recipe
from id2core.translation.spec import DiffusionModel
from id2core.translation.translators import Translator

STAGE = "translate"
# A killed run loses at most this many pictures per worker: minutes of a GPU.
PART_PICTURES = 512


@dataclass(frozen=True)
class TranslateJob:
    """What to translate, with what, and where to.

    Attributes:
        images: folder or bucket prefix of the origins.
        out: parent of `translations/`, `rejects/` and `pictures/`.
        model: a row of `models.TABLE`, or what `models.find` made of a name and overrides.
        prompts: a source as `prompts.load` takes it; None for captions beside the images.
        recipe: translations per origin, seed, file format.
        device, dtype: of the model; `auto` takes what the worker has.
        part_size: origins in one part; by default as many as make 512 pictures.
        limits: of file size and pixels.
    """

    images: str
    out: str
    model: DiffusionModel
    prompts: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"
    dtype: str = "auto"
    part_size: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.part_size is None:
            object.__setattr__(self, "part_size", max(1, PART_PICTURES // self.recipe.per_image))
        if self.part_size < 1:
            raise OptionError(f"part_size must be at least 1, not {self.part_size}")
        object.__setattr__(self, "images", storage.normalize(self.images))
        object.__setattr__(self, "out", storage.normalize(self.out))

    @staticmethod
    def from_settings(
        images: str,
        out: str,
        model: DiffusionModel,
        settings: Settings,
        prompts: str | None = None,
        recipe: Recipe | None = None,
        part_size: int | None = None,
    ) -> TranslateJob:
        """A job with device, precision and limits from the settings."""
        limits = Limits(settings.max_bytes, settings.max_pixels)
        return TranslateJob(
            images,
            out,
            model,
            prompts,
            recipe or Recipe(),
            settings.device,
            settings.dtype,
            part_size,
            limits,
        )

    @property
    def model_tag(self) -> str:
        """Jobs with equal tags share one loaded model in a process."""
        return json.dumps([asdict(self.model), self.device, self.dtype])


@dataclass(frozen=True)
class TranslateSummary:
    """Counts of the data sets after the run, in origins, and what made the pictures."""

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
        self.translator: Translator = models.load(job.model, job.device, job.dtype)


_SHARED = Shared()


def _translator(job: TranslateJob) -> Translator:
    loaded: _Loaded = _SHARED.acquire(lambda: _Loaded(job), tag=job.model_tag)
    return loaded.translator


@dataclass(frozen=True)
class TranslateMaker:
    """Makes pictures and rows of `translations/`."""

    job: TranslateJob
    source: PromptSource

    def load(self) -> dict[str, str]:
        """Load the model; ids of it and of the recipe."""
        return self.job.recipe.ids(_translator(self.job), self.source)

    def make(self, plan: Plan, part: int, progress: Progress) -> PartRecord:
        """Translate one part."""
        job = self.job
        objects = planning.read_part(plan, part)
        return rows.translate_part(
            plan.out,
            objects,
            _translator(job),
            self.source,
            job.recipe,
            plan.lineage,
            job.limits,
            progress,
        )


def plan(job: TranslateJob) -> parts.Job:
    """List the origins and stage what is to be done.

    Raises:
        TranslatorError, PromptError, StorageError, DatasetError: what to do stands in the message.
    """
    source = prompts.load(job.prompts, job.images, job.out)
    maker = TranslateMaker(job, source)
    ids = maker.load()
    dtype = str(_translator(job).pipeline.dtype)
    config = {"limits": asdict(job.limits), "dtype": dtype, "prompts": source.identity}
    product, part_size = job.recipe.product, job.part_size or 1
    todo = planning.make(product, job.images, job.out, ids, config, part_size, leave=frozenset({source.uri}))
    return parts.Job(STAGE, todo, maker, TranslatorError)


def run(job: TranslateJob, beam_arguments: Sequence[str] = ()) -> TranslateSummary:
    """Translate a folder or bucket and wait for the end.

    Args:
        job: what, with what, where to.
        beam_arguments: Beam's own options, see `runners.pipeline`.

    Raises:
        TranslatorError, PromptError, StorageError, DatasetError: what to do stands in the message.
        LostRowsError: an origin ended in neither data set; nothing was committed.
    """
    planned = plan(job)
    counted = parts.run(planned, beam_arguments)
    lineage = planned.plan.lineage
    return TranslateSummary(
        run_id=lineage.run_id,
        listed=counted.listed,
        translated=counted.made,
        rejected=counted.rejected,
        pictures=counted.made * job.recipe.per_image,
        resumed=planned.plan.done,
        **lineage.ids,
    )


def write_template(job: TranslateJob, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later; where the template was written."""
    return parts.write_template(plan(job), beam_arguments)
