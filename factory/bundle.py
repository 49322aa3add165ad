"""Make what ships beside an encoder: W in float16, a background and a calibration for them.

Run `python -m factory.bundle --data DIR --transform W.safetensors --out id2core/data/mini`.
The background holds descriptors of training photos and no latents, from which pictures could be decoded.
Thresholds come from calibration uploads, one of each photo: the photo as it is or a translation by one of the
models in turn. Fresh uploads, which nothing was chosen on, say what the rates are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.experiments import open_sets
from id2core.experiments.evaluation_sets import CALIBRATION, FRESH, TRAIN, EvaluationSet, Queries
from id2core.search import exact, shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, SourceRecord
from id2core.transforms import cohorts
from id2core.transforms.files import WEIGHTS, load_transform, save_half
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, normalization, tails
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import BACKGROUND, FILE
from id2core.verdicts.normalization import Normalization, normalize
from id2core.verdicts.tails import Pairs

MATCH, REVIEW = 0.02, 0.1
FACTS = "W.json"


def background(data: EvaluationSet, w: Transform, out: Path) -> tuple[str, NDArray[np.float32]]:
    """Write descriptors of training photos as an embeddings data set; its index_id, and float32[B,m]."""
    latents, ids = data.read(TRAIN)
    rows = cohorts.chosen(len(ids))
    descriptors = w.apply(latents[rows]).astype(np.float16).astype(np.float32)
    names = data.ids | {"transform_id": w.transform_id}
    return write_background(out, [ids[i] for i in rows], descriptors, latents.shape[1], names), descriptors


def write_background(
    out: Path,
    image_ids: list[str],
    descriptors: NDArray[np.float32],
    latent_size: int,
    names: dict[str, str],
    crops: NDArray[np.int8] | None = None,
    folder: str = BACKGROUND,
) -> str:
    """Write a background of float32[B,m], and int8[B,c] for views, in place of the one in a folder.

    Returns:
        Its index_id.
    """
    schema = schemas.embeddings_schema(latent_size, descriptors.shape[1])
    columns = {
        "image_id": image_ids,
        "uri": [f"background/{image_id}" for image_id in image_ids],
        "descriptor": schemas.vectors_to_array(descriptors, descriptors.shape[1]),
    }
    count = len(image_ids)
    if crops is not None:
        columns["crops"] = pa.array([row.tobytes() for row in crops], pa.binary())
    columns |= {name: [value] * count for name, value in names.items()}
    rows = {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in schema}
    shutil.rmtree(out / folder, ignore_errors=True)
    place = str(out / folder)
    record = datasets.write_file(place, BACKGROUND, [pa.Table.from_pydict(rows, schema)], schema)
    commit = Commit("embeddings", BACKGROUND, names, (record,), sources={BACKGROUND: SourceRecord()})
    datasets.write_commit(place, commit)
    return shards.index_id(Dataset.open(place))


def uploads(data: EvaluationSet, role: str) -> list[Queries]:
    """The photos of a role as they are, and their translations by every model."""
    latents, ids = data.read(role)
    numbers = np.argsort(np.argsort(np.array(ids)))
    return [
        Queries(latents, np.full(len(ids), -1), numbers),
        *(data.queries(model, role) for model in data.models),
    ]


def best_pairs(
    references: NDArray[np.float32],
    queries: NDArray[np.float32],
    background_descriptors: NDArray[np.float32],
    chosen: Normalization,
) -> Pairs:
    """The best pairs, with their normalized scores, of some uploads float32[Q,m] among float32[R,m]."""
    _, background = exact.nearest(queries, background_descriptors, chosen.k)
    rows, scores = exact.nearest(queries, references, tails.DEPTH)
    means = normalization.background_means(background, chosen.k)
    shifted = normalize(scores, np.broadcast_to(means[:, None], scores.shape), chosen.factor)
    numbers = np.arange(len(queries))
    return Pairs(shifted.ravel(), np.repeat(numbers, scores.shape[1]), rows.ravel(), numbers, len(references))


def calibrate(
    data: EvaluationSet, w: Transform, name: str, background_descriptors: NDArray[np.float32]
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration, and the rates of its verdicts on fresh uploads."""
    tuned = open_sets.tune_background(data, data.pairs(data.seen), w)
    chosen = Normalization(factor=tuned.factor, k=tuned.k, background_id=name)
    kinds = uploads(data, CALIBRATION)
    latents = [q.latents[open_sets.one_each(q, kind, len(kinds))] for kind, q in enumerate(kinds)]
    references = w.apply(data.references)
    pairs = best_pairs(references, w.apply(np.concatenate(latents)), background_descriptors, chosen)
    thresholds = calibration.calibrate(
        pairs.best(),
        match=MATCH,
        review=REVIEW,
        references=len(data.references),
        ids=data.ids | {"transform_id": w.transform_id},
        normalization=chosen,
        pairs=pairs,
    )
    unseen = np.concatenate([q.latents for q in uploads(data, FRESH)])
    unseen_scores = best_pairs(references, w.apply(unseen), background_descriptors, chosen).best()
    rates = {
        kind: {
            "target": threshold.target,
            "interval": [threshold.low, threshold.high],
            "fresh_rate": float(np.mean(unseen_scores >= threshold.score)),
            "fresh_uploads": len(unseen_scores),
        }
        for kind, threshold in (("match", thresholds.match), ("review", thresholds.review))
    }
    return thresholds, rates


def main() -> None:
    """Write all of it, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, see docs/experiments.md")
    parser.add_argument("--transform", type=Path, required=True, help="W, as `id2 train` wrote it")
    parser.add_argument("--out", type=Path, required=True, help="the encoder's folder")
    options = parser.parse_args()
    data = EvaluationSet.load(options.data)
    w = save_half(load_transform(str(options.transform)), options.out / WEIGHTS)
    thresholds, rates = calibrate(data, w, *background(data, w, options.out))
    thresholds.save(str(options.out / FILE))
    facts = {"transform_id": w.transform_id, "trained": w.metadata, "rates": rates}
    (options.out / FACTS).write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
