"""Experiments: make what they are measured on, run them, join them to one page."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from beam_jobs import embed as embed_job
from beam_jobs import translate as translate_job
from beam_jobs.translate import TranslateJob
from id2.jobs.translate import write_truth
from id2.requests import ExperimentDataRequest, ExperimentRequest
from id2.results import DroppedQueries, ExperimentData, ExperimentReport
from id2.stages import stage
from id2core import settings
from id2core.encoders.embed_job import EmbedJob
from id2core.encoders.embedding import EMBEDDINGS
from id2core.encoders.hub import MINI
from id2core.encoders.registry import identify
from id2core.errors import ExperimentError, OptionError
from id2core.experiments import evaluation_sets, oripid_bench, photo_bench, registry, results
from id2core.experiments.evaluation_sets import DISTRACTORS, TEST, TRAIN, EvaluationSet
from id2core.experiments.methods import PAPER_PASSES, Methods
from id2core.experiments.oripid_bench import LinkedSet
from id2core.experiments.photo_bench import SEEN, UNSEEN, TranslationRun
from id2core.oripid import imports
from id2core.oripid.imports import ImportSummary
from id2core.runs.execution import Execution
from id2core.runs.progress import into_tally
from id2core.runs.records import recorded
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.transforms.linear import NONE
from id2core.translation import models
from id2core.translation.config import TranslationConfig
from id2core.translation.rows import TRANSLATIONS


def run(request: ExperimentRequest) -> ExperimentReport:
    """Run experiments, and write NAME.md, NAME.parquet and NAME.png of each below `out`.

    Raises:
        ExperimentError: there is no such experiment, or the folder is not filled.
        EncoderError: the second encoder cannot be loaded.
        OptionError: the second encoder is the first.
    """
    names = registry.select(request.names)
    folder = Path(request.data)
    data = EvaluationSet.load(folder)
    if request.also and (encoder_id := identify(request.also).encoder_id) == data.ids["encoder_id"]:
        raise OptionError(f"--also is the encoder of {folder} itself ({encoder_id}): give another one")
    with recorded(storage.normalize(request.out), "experiment", request.model_dump()) as recorder:
        passes = request.passes or PAPER_PASSES
        methods = Methods(data, folder, passes, into_tally(), request.also)
        tables = {}
        for name in names:
            with recorder.stage(name):
                tables[name] = stage(name, partial(_measure, name, methods, request.out))
        if request.page:
            text = results.collect(request.out, registry.titles(), request.page)
            storage.write_bytes(storage.normalize(request.page), text.encode())
    return ExperimentReport(tables=tables, out=request.out, page=request.page)


def _measure(name: str, methods: Methods, out: str) -> str:
    experiment = registry.load(name)
    return results.write(experiment.run(methods), name, experiment.title, out)


def make_data(request: ExperimentDataRequest) -> ExperimentData:
    """Lay out photos or OriPID by role, translate what has to be, embed all. Re-run to resume.

    Raises:
        ExperimentError: there are too few photos, no captions, or `data` holds other data.
        ReaderError: a part of OriPID is missing, or its names do not fit.
    """
    place = Path(storage.normalize(request.data))
    with recorded(str(place), "experiment-data", request.model_dump()) as recorder:
        make = _Maker(request, place, recorder.execution)
        return make.from_oripid(request.oripid) if request.oripid else make.from_photos(str(request.photos))


class _Maker:
    """Fills a folder with pictures by role and their latents."""

    def __init__(self, request: ExperimentDataRequest, place: Path, execution: Execution) -> None:
        self._request, self._place, self._execution = request, place, execution
        self._latents = place / (f"latents-{request.name}" if request.name else "latents")

    def from_photos(self, photos: str) -> ExperimentData:
        """Lay out photos, translate them by the bundled models, embed all."""
        self._check_free(SEEN)
        encoder, name = self._request.encoder or MINI, self._request.name
        photo_bench.lay_out(Path(storage.normalize(photos)), self._place)
        # An encoder that was trained on the training pictures is only asked what is looked up.
        needed = evaluation_sets.tested((SEEN, UNSEEN)) if name.startswith(evaluation_sets.TUNED) else None
        for role in sorted({run.role for run in photo_bench.RUNS} | {DISTRACTORS}):
            if role not in photo_bench.PARTS and (needed is None or role in needed):
                self._embed(self._place / "photos" / role, role, encoder)
        for run in photo_bench.RUNS:
            if needed is None or run.name in needed:
                stage(f"translate {run.name}", partial(self._translate, run))
                self._embed(self._place / "translations" / run.name / "pictures", run.name, encoder)
        evaluation_sets.write_facts(self._place, SEEN, [UNSEEN], name, encoder)
        return ExperimentData(data=str(self._place))

    def from_oripid(self, root: str) -> ExperimentData:
        """Link the pictures of a downloaded OriPID by role, import its training latents, embed the rest."""
        self._check_free(oripid_bench.SEEN)
        request = self._request
        encoder = request.encoder or oripid_bench.SEEN
        features = None if request.name else oripid_bench.features_of(root, request.features)
        linked = stage("link pictures", lambda: oripid_bench.lay_out(root, self._place, request.seed_edits))
        training = self._import(features) if features else None
        for role in (TEST, DISTRACTORS, *linked.truth):
            self._embed(self._place / oripid_bench.PHOTOS / role, role, encoder)
        queries = {role: self._pair(role, linked) for role in linked.truth}
        evaluation_sets.write_facts(self._place, linked.models[0], linked.models[1:], request.name, encoder)
        return ExperimentData(
            data=str(self._place), photos=dict(linked.photos), queries=queries, training=training
        )

    def _check_free(self, seen: str) -> None:
        """Raise where the folder has other data, which the name of the model trained on shows."""
        facts = self._place / evaluation_sets.FACTS
        if facts.exists() and EvaluationSet.load(self._place).seen != seen:
            raise ExperimentError(f"{self._place} holds other data ({facts}): choose another --data")

    def _embed(self, pictures: Path, role: str, encoder: str) -> None:
        chosen = settings.load(encoder=encoder, transform=NONE, views=NONE)
        job = EmbedJob.from_settings(str(pictures), str(self._latents / role), chosen)
        stage(f"embed {role}", lambda: embed_job.run(job, self._execution))

    def _translate(self, run: TranslationRun) -> None:
        """Translate one role's photos by one model."""
        out = str(self._place / "translations" / run.name)
        model = models.find(
            run.paradigm or run.model, source=run.source, steps=run.steps, strength=run.strength
        )
        prompts = str(self._place / "prompts" / f"{run.name}.csv")
        config = TranslationConfig(per_image=run.per_image, seed=run.seed)
        job = TranslateJob(str(self._place / "photos" / run.role), out, model, prompts, config)
        made = translate_job.run(job, self._execution)
        write_truth(made.translations, out)

    def _import(self, features: str) -> ImportSummary:
        """Import the training latents: one data set of origins and translations, under both names."""
        name = f"{TRAIN}-{oripid_bench.SEEN}"
        latents = self._place / "latents"
        training = stage(
            "import features",
            lambda: imports.import_training(
                features, str(latents / name), progress=into_tally(), execution=self._execution
            ),
        )
        for link in (latents / TRAIN, self._place / "translations" / name):
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(latents / name, link.parent))
        return training

    def _pair(self, role: str, linked: LinkedSet) -> DroppedQueries:
        """Say which queries are of which references; how many there are."""
        places = (str(self._latents / name / EMBEDDINGS) for name in (role, TEST, DISTRACTORS))
        own, *others = map(Dataset.open, places)
        target = str(self._place / "translations" / role / TRANSLATIONS)
        counts = imports.pair_queries(target, own, others, linked.truth[role], self._execution)
        return DroppedQueries(dropped=dict(linked.dropped[role]), **counts.model_dump())
