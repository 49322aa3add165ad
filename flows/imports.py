"""The import flow: OriPID's published training features become the data sets that training takes."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from prefect import flow, task

from flows.progress import reporter
from flows.tasks import RETRY, record_run
from id2core import environment
from id2core.oripid import imports
from id2core.oripid.feature_files import LATENT_SIZE
from id2core.oripid.imports import ENCODER_ID, Imported
from id2core.store import storage
from id2core.transforms.files import load_transform


@task(**RETRY)
def import_features(
    features: str, out: str, encoder_id: str, spec: str | None, latent_size: int = LATENT_SIZE
) -> Imported:
    """Read what has not been read, and pair it by name; `spec` as of `transform.load`, None for nothing."""
    chosen = load_transform(spec, encoder_id) if spec else None
    return imports.import_training(
        features, out, encoder_id, chosen, latent_size=latent_size, progress=reporter()
    )


@flow(name="import-oripid", flow_run_name="import {features}", validate_parameters=True)
def import_oripid(
    features: str,
    out: str,
    encoder_id: str = ENCODER_ID,
    transform: str | None = None,
    latent_size: int = LATENT_SIZE,
) -> dict[str, Any]:
    """Import training latents, one `.npy` file a picture, for `train`.

    Args:
        features: folder or bucket prefix of the files, named T000000_1.npy and so on.
        out: where `embeddings/`, `rejects/`, `translations/` and `runs/` go.
        encoder_id: what made the latents: `NAME-sample` for samples of the posterior of the encoder NAME.
        transform: of descriptors, as `transform.load` takes it; by default none are written.
        latent_size: numbers in a latent.

    Returns:
        What `imports.Imported` says.
    """
    storage.require(storage.normalize(features))
    started = time.monotonic()
    found = import_features(features, out, encoder_id, transform, latent_size)
    run = {
        "run_id": found.run_id,
        "config": {"features": features, "encoder_id": encoder_id, "transform": transform},
        "seconds": {"import": round(time.monotonic() - started, 2)},
        "versions": environment.versions(),
    }
    if not found.resumed:
        counts = ("listed", "embedded", "rejected")
        record_run(found.out, "import-oripid", run, {name: getattr(found, name) for name in counts})
    return asdict(found)
