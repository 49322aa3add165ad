"""Translate: originals to translations, and which picture came from which."""

from __future__ import annotations

from functools import partial

from beam_jobs import translate as translate_job
from beam_jobs.translate import TranslateJob
from id2 import detached
from id2.requests import TranslateRequest
from id2.results import StagedJob, SubmittedJob, TranslateSummary
from id2.stages import stage
from id2core.oripid.readers import PairSet
from id2core.runs.execution import Execution
from id2core.runs.planning import Made
from id2core.runs.records import recorded
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.translation import models
from id2core.translation.config import TranslationConfig

TRUTH = "truth.csv"


def run(request: TranslateRequest) -> StagedJob | SubmittedJob | TranslateSummary:
    """Translate the originals that have none yet; stage or submit the job alone where that is asked for.

    Raises:
        TranslatorError, PromptError, StorageError, DatasetError: the message says what to do.
        LostRowsError: an original ended in neither data set; nothing was committed.
    """
    model = models.find(request.model, **request.overrides)
    config = TranslationConfig(**{name: getattr(request, name) for name in TranslationConfig.model_fields})
    settings = request.settings()
    job = TranslateJob.from_settings(
        request.images,
        request.out,
        model,
        settings,
        request.prompts,
        config,
        request.part_size,
        request.add_source,
    )
    if request.template:
        return StagedJob(template=translate_job.write_template(job, Execution.begin(), request.beam))
    if request.detach:
        plan = partial(translate_job.plan, job)
        if submitted := detached.submit(job.out, job.images, plan, request.beam):
            return submitted
    facts = request.model_dump() | {"model": model.model_dump()}
    with recorded(job.out, "translate", facts) as recorder:
        with recorder.stage("translate"):
            made = stage("translate", lambda: translate_job.run(job, recorder.execution, request.beam))
        truth = stage("write truth", lambda: write_truth(made.translations, job.out))
        counts = Made.by(recorder.execution.run_id, made.translations)
        recorder.count(listed=made.listed, translated=counts.added, rejected=counts.rejected)
    return TranslateSummary.model_validate(vars(made) | {"truth": truth, "out": job.out})


def write_truth(translations: Dataset, out: str) -> str:
    """Write OUT/truth.csv: each picture and the original it was made from; return where it is."""
    pairs: dict[str, str | None] = {}
    for table in translations.tables(["uri", "origin_uri"]):
        pairs.update(zip(table["uri"].to_pylist(), table["origin_uri"].to_pylist(), strict=True))
    where = storage.join(out, TRUTH)
    PairSet([], list(pairs), pairs).write_truth(where)
    return where
