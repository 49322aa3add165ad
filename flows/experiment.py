"""The experiment flow: make a small OriPID from photos, run experiments on it, join them to one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task

from beam_jobs import embed as embed_job
from beam_jobs import translate as translate_job
from beam_jobs.embed import EmbedJob
from beam_jobs.translate import TranslateJob
from flows.tasks import RETRY
from flows.translate import write_truth
from id2core import encoders, storage
from id2core.experiments import bench as benches
from id2core.experiments import results
from id2core.experiments.bench import Bench
from id2core.experiments.methods import PAPER_PASSES, Methods
from id2core.experiments.registry import EXPERIMENTS, ORDER
from id2core.oripid import models, small_set
from id2core.oripid.small_set import SEEN, UNSEEN, Translated
from id2core.oripid.translation import Recipe
from id2core.training.pairs import Progress


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
def make_data(photos: str, data: str, encoder: str = encoders.MINI, name: str = "") -> None:
    """Lay out photos by role, translate them by the bundled models, embed all; started again, it goes on.

    Args:
        photos: folder of at least 3,500 photos with a captions.csv.
        data: local folder, which becomes a bench (see `experiments.bench`); about 4 GB.
        encoder: of the latents.
        name: where it is not the first encoder, of its latents.
    """
    storage.require(storage.normalize(photos))
    root = Path(data)
    small_set.lay_out(Path(photos), root)
    folder = root / (f"latents-{name}" if name else "latents")
    for role in sorted({run.role for run in small_set.RUNS} | {small_set.DISTRACTORS}):
        if role in small_set.PARTS:
            continue
        embed(str(root / "photos" / role), str(folder / role), encoder)
    for run in small_set.RUNS:
        translate_role(run, root)
        embed(str(root / "translations" / run.name / "pictures"), str(folder / run.name), encoder)
    facts = {"seen": SEEN, "unseen": [UNSEEN]}
    storage.write_bytes(str(root / benches.FACTS), json.dumps(facts).encode())


def _silent(stage: str, done: int, total: int) -> None:
    """For callers that show no progress."""


@task(**RETRY)
def run_experiment(name: str, methods: Methods, out: str) -> str:
    """Run one and write its table, data and plot; the Markdown."""
    return results.write(EXPERIMENTS[name].run(methods), out)


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
        raise ValueError(f"no experiment {', '.join(unknown)}: choose {', '.join(EXPERIMENTS)} or all")
    methods = Methods(Bench.load(Path(data)), Path(data), passes, progress or _silent)
    tables = {name: run_experiment(name, methods, out) for name in chosen}
    if page:
        storage.write_bytes(storage.normalize(page), results.collect(out, ORDER, page).encode())
    return {"tables": tables, "out": out, "page": page}
