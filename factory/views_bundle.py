"""Make what ships for uploads as they come: a cohort, a background, and a calibration under all views.

Run `python -m factory.views_bundle --data DIR --folder id2core/data/mini` after `factory.bundle`, whose
background and calibration, of whole uploads alone, are moved aside. The background holds descriptors and rows
of crops of training photos, and no latents or detail, from which pictures could be drawn. The same photos are
the cohort in the file of W, whose weights stay. Thresholds come from edited calibration uploads, one of each
photo: a copy or a translation, with one of the edits, in turn. Test uploads of every kind and edit, whose
origins are taken out of the references, say what the rates are, and copies of fresh photos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from factory.bundle import FACTS, false_scores, rates, thresholds, write_background
from id2core.experiments import upload_views
from id2core.experiments.evaluation_sets import EvaluationSet
from id2core.experiments.photo_bench import FRESH, TRAIN
from id2core.experiments.upload_matchers import Background
from id2core.experiments.upload_sets import Sources, Uploads, UploadSet
from id2core.experiments.upload_views import Viewed
from id2core.search import looks, shards
from id2core.search.looks import Views
from id2core.store.datasets import Dataset
from id2core.transforms import cohorts, reference_rows
from id2core.transforms.files import WEIGHTS, load_transform, save_half
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, judging, tails
from id2core.verdicts.calibration import Calibration

# Edits in turn of which a fresh photo has one.
_TURNS = 3


def background(data: EvaluationSet, w: Transform, role: str, folder: Path) -> Transform:
    """Write descriptors and rows of crops of photos of a role; return W with these photos as its cohort."""
    latents, ids = data.read(role)
    chosen = cohorts.chosen(len(ids))
    made = reference_rows.with_cohort(w, latents[chosen])
    if made.cohort is None or made.cohort.crops is None:
        raise SystemExit(f"this W has no rows for views, or {role} has too few photos")
    descriptors = made.cohort.descriptors.astype(np.float32)
    names = data.ids | {"transform_id": w.transform_id}
    image_ids = [ids[i] for i in chosen]
    write_background(folder, image_ids, descriptors, latents.shape[1], names, made.cohort.crops)
    return made


def fresh_copies(uploads: UploadSet) -> list[Uploads]:
    """Return copies of photos that nothing else was made of, each with every third edit."""
    _, ids = uploads.data.read(FRESH)
    uris = uploads.data.uris(FRESH)
    every = Sources(FRESH, uris, ids, np.full(len(ids), -1), np.arange(len(ids)))
    return [
        Uploads(edit, every.take(range(number % _TURNS, len(ids), _TURNS)), uploads)
        for number, edit in enumerate(uploads.edits)
    ]


def calibrate(data: EvaluationSet, w: Transform, whole: Calibration, folder: Path) -> tuple[Calibration, Any]:
    """Return the calibration under all views, and the rates of its verdicts."""
    how = whole.normalization
    if how is None:
        raise SystemExit(f"{folder / judging.WHOLE_FILE} has no background")
    held = Dataset.open(str(folder / judging.BACKGROUND))
    shard = shards.load(held, held.files, with_rows=True)
    uploads = UploadSet(data)
    views = Views.of(w, data.ids["encoder_id"])
    beside = (shard, Background(shard.descriptors, how.factor, how.k))
    references = upload_views.shard_of(uploads.references, w)
    matcher = Viewed("calibrated", views, references, beside, depth=tails.DEPTH)
    ids = data.ids | {"transform_id": w.transform_id, looks.VIEWS: views.id}
    normalized = how.model_copy(update={"background_id": shards.index_id(held)})
    made = thresholds(matcher, uploads.calibration(edited=True), len(references), ids, normalized)
    made = made.model_copy(update={"content": whole.content})
    copies = np.concatenate([matcher.scores(part).max(axis=1) for part in fresh_copies(uploads)])
    tested, fresh = rates(made, false_scores(matcher, uploads, uploads.edits)), rates(made, copies)
    return made, {verdict: rate | {"fresh_copies": fresh[verdict]} for verdict, rate in tested.items()}


def main() -> None:
    """Write all of it, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, see docs/experiments.md")
    parser.add_argument("--folder", type=Path, required=True, help="the encoder's folder")
    parser.add_argument("--role", default=TRAIN, help="photos of the background")
    options = parser.parse_args()
    data, folder = EvaluationSet.load(options.data), options.folder
    if not (folder / judging.WHOLE_FILE).exists():
        (folder / judging.FILE).rename(folder / judging.WHOLE_FILE)
        (folder / judging.BACKGROUND).rename(folder / judging.WHOLE_BACKGROUND)
    w = background(data, load_transform(str(folder / WEIGHTS)), options.role, folder)
    save_half(w, folder / WEIGHTS)
    made, measured = calibrate(data, w, calibration.load(str(folder / judging.WHOLE_FILE)), folder)
    made.save(str(folder / judging.FILE))
    facts = json.loads((folder / FACTS).read_text()) | {"views": {"id": made.views, "rates": measured}}
    (folder / FACTS).write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts["views"], indent=1))


if __name__ == "__main__":
    main()
