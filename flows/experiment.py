"""The experiment flow: make a small OriPID from photos, run experiments on it, join them to one page."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task

from beam_jobs import embed as embed_job
from beam_jobs import translate as translate_job
from beam_jobs.embed import EmbedJob
from beam_jobs.translate import TranslateJob
from flows.imports import import_features
from flows.tasks import RETRY
from flows.translate import write_truth
from id2core.encoders.embedding import EMBEDDINGS
from id2core.encoders.hub import MINI
from id2core.errors import ExperimentError
from id2core.experiments import evaluation_sets as benches
from id2core.experiments import oripid_bench, photo_bench, results
from id2core.experiments.evaluation_sets import DISTRACTORS, TEST, TRAIN, Bench
from id2core.experiments.methods import PAPER_PASSES, Methods
from id2core.experiments.oripid_bench import LaidOut
from id2core.experiments.photo_bench import SEEN, UNSEEN, Translated
from id2core.experiments.registry import EXPERIMENTS, ORDER
from id2core.oripid import imports
from id2core.runs.progress import Progress, silent
from id2core.store import storage
from id2core.translation import models
from id2core.translation.rows import TRANSLATIONS, Recipe


@task(**RETRY)
def translate_role(run: Translated, data: Path) -> None:
    """Translate one role's photos by one model."""
    out = str(data / "translations" / run.name)
    model = models.find(run.paradigm or run.model, source=run.source, steps=run.steps, strength=run.strength)
    prompts = str(data / "prompts" / f"{run.name}.csv")
    job = TranslateJob(str(data / "photos" / run.role), out, model, prompts, Recipe(run.per_image, run.seed))
    translate_job.run(job)
    write_truth.fn(out)


@task(**RETRY)
def embed(pictures: str, out: str, encoder: str) -> None:
    """Latents of a folder of pictures."""
    embed_job.run(EmbedJob(pictures, out, encoder, transform="none"))


@flow(name="experiment-data", flow_run_name="experiment data in {data}")
def make_data(photos: str, data: str, encoder: str = MINI, name: str = "") -> None:
    """Lay out photos by role, translate them by the bundled models, embed all; started again, it goes on.

    Args:
        photos: folder of at least 3,500 photos with a captions.csv.
        data: local folder, which becomes a bench (see `experiments.bench`); about 4 GB.
        encoder: of the latents.
        name: where it is not the first encoder, of its latents. One that begins with `tuned-` was
            trained on the training pictures: only what is looked up, and among what, is embedded.

    Raises:
        ExperimentError: `data` is a bench of other data.
        ValueError: there are too few photos, or no captions.
    """
    source, root = storage.normalize(photos), Path(storage.normalize(data))
    storage.require(source)
    _check_free(root, SEEN)
    photo_bench.lay_out(Path(source), root)
    folder = root / (f"latents-{name}" if name else "latents")
    needed = benches.tested((SEEN, UNSEEN)) if name.startswith(benches.TUNED) else None
    for role in sorted({run.role for run in photo_bench.RUNS} | {DISTRACTORS}):
        if role not in photo_bench.PARTS and (needed is None or role in needed):
            embed(str(root / "photos" / role), str(folder / role), encoder)
    for run in photo_bench.RUNS:
        if needed is None or run.name in needed:
            translate_role(run, root)
            embed(str(root / "translations" / run.name / "pictures"), str(folder / run.name), encoder)
    benches.write_facts(root, SEEN, [UNSEEN], name, encoder)


@task(**RETRY)
def lay_out_oripid(root: str, data: Path, seed_edits: str | None) -> LaidOut:
    """Link the pictures of a downloaded OriPID by role."""
    return oripid_bench.lay_out(root, data, seed_edits)


@flow(name="oripid-data", flow_run_name="OriPID in {data}")
def make_oripid_data(
    root: str,
    data: str,
    encoder: str = oripid_bench.SEEN,
    name: str = "",
    features: str | None = None,
    seed_edits: str | None = None,
) -> dict[str, Any]:
    """Make a bench of a downloaded OriPID; started again, it goes on.

    Args:
        root: local folder of the unpacked data set, see `readers.OripidLayout`.
        data: local folder, which becomes a bench (see `experiments.bench`).
        encoder: of references and queries; the published training latents are of `sd2`.
        name: where it is not the first encoder, of its latents; there are no training latents of it.
        features: of the training latents, where they do not lie below the root.
        seed_edits: local folder of SEED-Data-Edit, for the queries `test-manual`.

    Returns:
        `photos` by role, `queries` by role with those `dropped`, and `training`, as `imports.Imported`.

    Raises:
        ReaderError: a part of OriPID is missing, or its names do not fit.
        ExperimentError: `data` is a bench of other data.
    """
    place = Path(storage.normalize(data))
    _check_free(place, oripid_bench.SEEN)
    source = None if name else oripid_bench.features_of(root, features)
    found = lay_out_oripid(root, place, seed_edits)
    training = _train_set(source, place) if source else None
    folder = place / (f"latents-{name}" if name else "latents")
    for role in (TEST, DISTRACTORS, *found.truth):
        embed(str(place / oripid_bench.PHOTOS / role), str(folder / role), encoder)
    queries = {role: _pair(folder, place, role, found) for role in found.truth}
    benches.write_facts(place, found.models[0], found.models[1:], name, encoder)
    return {"photos": found.photos, "queries": queries, "training": training, "data": str(place)}


def _check_free(place: Path, seen: str) -> None:
    """Fail where there is a bench of another origin, told by the model that it is trained on."""
    made = place / benches.FACTS
    if made.exists() and Bench.load(place).seen != seen:
        raise ExperimentError(f"{place} is a bench of other data ({made}): choose another --data")


def _train_set(features: str, place: Path) -> dict[str, Any]:
    """Import the training latents to where a bench has them: one data set of origins and translations."""
    name = f"{TRAIN}-{oripid_bench.SEEN}"
    latents = place / "latents"
    training = import_features(features, str(latents / name), imports.ENCODER_ID, None)
    for link in (latents / TRAIN, place / "translations" / name):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(latents / name, link.parent))
    return asdict(training)


def _pair(folder: Path, place: Path, role: str, found: LaidOut) -> dict[str, Any]:
    """Say which queries are of which references; how many there are."""
    own, *others = (str(folder / name / EMBEDDINGS) for name in (role, TEST, DISTRACTORS))
    target = str(place / "translations" / role / TRANSLATIONS)
    return imports.pair_queries(target, own, others, found.truth[role]) | {"dropped": found.dropped[role]}


@task(**RETRY)
def run_experiment(name: str, methods: Methods, out: str) -> str:
    """Run one and write its table, data and plot; the Markdown."""
    chosen = EXPERIMENTS[name]
    return results.write(chosen.run(methods), name, chosen.title, out)


@flow(name="experiment", flow_run_name="experiment {names}", validate_parameters=False)
def experiment(
    names: list[str],
    data: str,
    out: str,
    page: str | None = None,
    passes: float = PAPER_PASSES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run experiments on a bench.

    Args:
        names: of `EXPERIMENTS`, or `all`.
        data: bench folder; trained Ws are kept in `runs/` there.
        out: where NAME.md, NAME.parquet and NAME.png go.
        page: a Markdown file to join all experiments of `out` in.
        passes: over the training data, of every training by gradient descent.
        progress: of training.

    Returns:
        Name → Markdown, in `tables`.

    Raises:
        ValueError: there is no such experiment, or the folder is no bench.
    """
    chosen = list(EXPERIMENTS) if names == ["all"] else names
    unknown = [name for name in chosen if name not in EXPERIMENTS]
    if unknown:
        raise ExperimentError(f"no experiment {', '.join(unknown)}: choose {', '.join(EXPERIMENTS)} or all")
    methods = Methods(Bench.load(Path(data)), Path(data), passes, progress or silent)
    tables = {name: run_experiment(name, methods, out) for name in chosen}
    if page:
        storage.write_bytes(storage.normalize(page), results.collect(out, ORDER, page).encode())
    return {"tables": tables, "out": out, "page": page}
