"""Make what ships beside an encoder: W in float16, a background and a calibration for them.

Run `python -m factory.bundle --data DIR --transform W.safetensors --out id2core/data/mini`.
The background holds descriptors of training photos and no latents, from which pictures could be decoded.
Thresholds come from calibration uploads, one of each photo: the photo as it is or a translation by one of the
models in turn. Test uploads, whose origins are taken out of the references, say what the rates are. Factor
and k of the background stay as they ship, or come from `id2 experiment open`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.experiments import upload_matchers
from id2core.experiments.evaluation_sets import TRAIN, EvaluationSet
from id2core.experiments.scale import BEST, FACTOR
from id2core.experiments.upload_edits import Edit
from id2core.experiments.upload_matchers import Background, Matcher, Whole
from id2core.experiments.upload_sets import Uploads, UploadSet
from id2core.search import shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, SourceRecord
from id2core.transforms import cohorts
from id2core.transforms.files import WEIGHTS, load_transform, save_half
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import BACKGROUND, FILE
from id2core.verdicts.normalization import Normalization

MATCH, REVIEW = 0.02, 0.1
FACTS = "W.json"


def background(data: EvaluationSet, w: Transform, role: str, out: Path) -> tuple[str, NDArray[np.float32]]:
    """Write descriptors of photos of a role as an embeddings data set; its index_id, and float32[B,m]."""
    latents, ids = data.read(role)
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


def thresholds(
    matcher: Matcher, parts: Sequence[Uploads], references: int, ids: dict[str, str], how: Normalization
) -> Calibration:
    """Return the calibration of a matcher's scores, from those of uploads without origin.

    Args:
        matcher: scores uploads among the references, normalized.
        parts: the uploads.
        references: how many there are.
        ids: of the scores.
        how: how the scores were normalized.
    """
    pairs = upload_matchers.best_pairs(np.concatenate([matcher.scores(part) for part in parts]))
    return calibration.calibrate(
        pairs.best(),
        match=MATCH,
        review=REVIEW,
        references=references,
        ids=ids,
        normalization=how,
        pairs=pairs,
    )


def false_scores(matcher: Matcher, uploads: UploadSet, edits: Sequence[Edit]) -> NDArray[np.float64]:
    """Return the best score of each test upload with some edits among references without its origin."""
    best = []
    for edit in edits:
        for kind in uploads.kinds:
            asked = uploads.of(edit, kind)
            count = len(asked.sources.uris)
            both = upload_matchers.with_and_without(matcher.scores(asked), asked.queries)
            best.append(both.scores[count:, 0].astype(np.float64))
    return np.concatenate(best)


def rates(made: Calibration, strangers: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """Return what is stated and measured of each threshold, by its verdict."""
    return {
        verdict: {
            "target": threshold.target,
            "interval": [threshold.low, threshold.high],
            "measured": float(np.mean(strangers >= threshold.score)),
            "uploads": len(strangers),
        }
        for verdict, threshold in (("match", made.match), ("review", made.review))
    }


def calibrate(
    data: EvaluationSet, w: Transform, chosen: Normalization, background_descriptors: NDArray[np.float32]
) -> tuple[Calibration, dict[str, Any]]:
    """Return the calibration of whole uploads, and the rates of its verdicts on test uploads."""
    uploads = UploadSet(data)
    subtracted = Background(background_descriptors, chosen.factor, chosen.k)
    matcher = Whole("calibrated", w, w.apply(uploads.references), subtracted)
    ids = data.ids | {"transform_id": w.transform_id}
    made = thresholds(matcher, uploads.calibration(edited=False), len(uploads.references), ids, chosen)
    return made, rates(made, false_scores(matcher, uploads, uploads.edits[:1]))


def main() -> None:
    """Write all of it, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, see docs/experiments.md")
    parser.add_argument("--transform", type=Path, required=True, help="W, as `id2 train` wrote it")
    parser.add_argument("--out", type=Path, required=True, help="the encoder's folder")
    parser.add_argument("--role", default=TRAIN, help="photos of the background")
    parser.add_argument(
        "--factor", type=float, default=FACTOR, help="of the background (default %(default)s)"
    )
    parser.add_argument("--k", type=int, default=BEST, help="best of the background (%(default)s)")
    options = parser.parse_args()
    data, out = EvaluationSet.load(options.data), options.out
    w = save_half(load_transform(str(options.transform)), out / WEIGHTS)
    background_id, descriptors = background(data, w, options.role, out)
    chosen = Normalization(factor=options.factor, k=options.k, background_id=background_id)
    made, measured = calibrate(data, w, chosen, descriptors)
    made.save(str(out / FILE))
    facts = {"transform_id": w.transform_id, "trained": w.metadata, "rates": measured}
    (out / FACTS).write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
