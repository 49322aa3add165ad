"""Finetune: a whole vision backbone, trained on the pictures of originals and their translations."""

from __future__ import annotations

from pathlib import Path

from id2.corpora import open_inside
from id2.requests import FinetuneRequest
from id2.results import FinetuneReport, MissingPictures
from id2.stages import stage
from id2core.runs.progress import into_tally
from id2core.runs.records import recorded
from id2core.store import storage
from id2core.training import finetune as trainer
from id2core.training.config import FinetuneConfig
from id2core.training.pictures import find_pictures
from id2core.translation.rows import TRANSLATIONS


def run(request: FinetuneRequest) -> FinetuneReport:
    """Train a backbone, or resume from the last checkpoint.

    Raises:
        FinetuneError: options or pictures from which nothing can be trained.
        EncoderError: the backbone cannot be loaded.
        TrainError: `out` holds a training with other options or pictures.
    """
    out = storage.normalize(request.out)
    config = FinetuneConfig(**{name: getattr(request, name) for name in FinetuneConfig.model_fields})
    with recorded(out, "finetune", request.model_dump()) as recorder:
        translations = [open_inside(uri, TRANSLATIONS) for uri in request.translations]
        pictures = find_pictures(request.originals, translations, into_tally())
        with recorder.stage("training"):
            folder = stage(
                "train backbone",
                lambda: trainer.finetune(
                    pictures.labeled,
                    config,
                    Path(out),
                    device=request.settings().device,
                    checkpoint_every=request.checkpoint_every,
                    progress=into_tally(),
                ),
            )
        recorder.count(listed=len(pictures.labeled))
    return FinetuneReport(
        run_id=recorder.execution.run_id,
        encoder=str(folder),
        pictures=len(pictures.labeled),
        origins=len(pictures.origins),
        left_out=MissingPictures(
            origins=len(pictures.missing_origins), translations=len(pictures.missing_translations)
        ),
        report=str(folder / trainer.REPORT),
    )
