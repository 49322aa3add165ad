"""The translate flow: translate originals with a diffusion model, and say which picture came from which."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from prefect import flow, task

from beam_jobs import translate as translate_job
from beam_jobs.translate import TranslateJob, TranslateSummary
from flows.tasks import RETRY, record_run
from id2core import environment
from id2core.oripid.readers import PairSet
from id2core.settings import Settings
from id2core.store import datasets, storage
from id2core.translation import models
from id2core.translation.rows import TRANSLATIONS, Format, Recipe

TRUTH = "truth.csv"


@task(**RETRY)
def translate_images(job: TranslateJob, beam_arguments: list[str]) -> TranslateSummary:
    """Translate what has no translation yet."""
    return translate_job.run(job, beam_arguments)


@task(**RETRY)
def write_truth(out: str) -> str:
    """Write OUT/truth.csv: each picture and the original it was made from."""
    pairs: dict[str, str | None] = {}
    for table in datasets.iterate(storage.join(out, TRANSLATIONS), ["uri", "origin_uri"]):
        pairs.update(zip(table["uri"].to_pylist(), table["origin_uri"].to_pylist(), strict=True))
    where = storage.join(out, TRUTH)
    PairSet([], list(pairs), pairs).write_truth(where)
    return where


@flow(name="translate", flow_run_name="translate {images} with {model}", validate_parameters=True)
def translate(
    images: str,
    model: str,
    out: str,
    strength: float | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    source: str | None = None,
    revision: str | None = None,
    prompts: str | None = None,
    per_image: int = 1,
    seed: int = 0,
    format: Format = "jpeg",
    part_size: int | None = None,
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Make image-to-image translations of originals: data to train W on and to measure it with.

    Args:
        images: folder or bucket of originals.
        model: a short name of `models.TABLE`, a diffusers directory, or a hub id `owner/name[@revision]`.
        out: where `translations/`, `rejects/`, `pictures/`, `truth.csv` and `runs/` go.
        strength, guidance, steps, size, source, revision: override the model's row of the table.
        prompts: a file, `captions`, `endpoint`, `empty`; by default captions beside the images.
        per_image: translations of each original.
        seed: another one gives other pictures.
        format: `jpeg` or `png`.
        part_size: originals per part; a killed run loses at most one per worker.
        beam_arguments: Beam's own options, e.g. `["--runner=DataflowRunner", …]`.

    Returns:
        Counts, ids and the place of the truth file.
    """
    chosen = models.find(
        model,
        source=source,
        revision=revision,
        strength=strength,
        guidance=guidance,
        steps=steps,
        size=size,
    )
    storage.require(storage.normalize(images))
    recipe = Recipe(per_image, seed, format)
    job = TranslateJob.from_settings(images, out, chosen, Settings(), prompts, recipe, part_size)
    started = time.monotonic()
    found = translate_images(job, beam_arguments or [])
    summary = asdict(found) | {"truth": write_truth(job.out), "out": job.out}
    run = {
        "run_id": found.run_id,
        "config": {
            "images": job.images,
            "prompts": prompts,
            "recipe": asdict(recipe),
            "model": asdict(chosen),
        },
        "seconds": {"translate": round(time.monotonic() - started, 2)},
        "versions": environment.versions(),
    }
    counts = {name: summary[name] for name in ("listed", "translated", "rejected")}
    known = datasets.read_commit(storage.join(job.out, "runs"))
    if known is None or found.run_id not in known.runs:
        record_run(job.out, "translate", run, counts)
    return summary
