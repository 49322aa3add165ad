"""Add tail models to a shipped calibration whose thresholds stay.

Run `python -m factory.tail_models --data DIR --folder id2core/data/mini` with an evaluation set, which needs
no translations. `factory.bundle` makes thresholds and tail models from the same uploads. Here shape,
scale and growth are learned from the photos of `calibration` and `fresh` as they are, among the photos of the
test, the distractors and two latent views of each distractor, normalized as the calibration says. The score
at which each model begins is the threshold that ships.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from id2core.experiments import scale
from id2core.experiments.evaluation_sets import CALIBRATION, DISTRACTORS, FRESH, TEST, EvaluationSet
from id2core.search import exact
from id2core.search.background_rows import background_means
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.transforms.files import WEIGHTS, load_transform
from id2core.verdicts import calibration, tails
from id2core.verdicts.calibration import Calibration, Threshold
from id2core.verdicts.judging import BACKGROUND, FILE
from id2core.verdicts.normalization import Normalization, normalize
from id2core.verdicts.tails import Fit, Pairs, Tail

VIEWS = 2


def best_pairs(
    references: NDArray[np.float32],
    queries: NDArray[np.float32],
    background_descriptors: NDArray[np.float32],
    chosen: Normalization,
) -> Pairs:
    """Return the best pairs, with normalized scores, of uploads float32[Q,m] among float32[R,m]."""
    _, background = exact.nearest(queries, background_descriptors, chosen.k)
    rows, scores = exact.nearest(queries, references, tails.DEPTH)
    means = background_means(background, chosen.k)
    shifted = normalize(scores, np.broadcast_to(means[:, None], scores.shape), chosen.factor)
    numbers = np.arange(len(queries))
    return Pairs(shifted.ravel(), np.repeat(numbers, scores.shape[1]), rows.ravel(), numbers, len(references))


def photo_pairs(data: EvaluationSet, folder: Path, chosen: Calibration) -> Pairs:
    """Return the best pairs of photos without origin, under the W and the background of a folder."""
    if chosen.normalization is None:
        raise SystemExit(f"{folder / FILE} has no background")
    w = load_transform(str(folder / WEIGHTS))
    [table] = Dataset.open(str(folder / BACKGROUND)).tables(["descriptor"])
    background = schemas.column_to_vectors(table["descriptor"]).astype(np.float32)
    distractors = data.read(DISTRACTORS)[0]
    drawn = np.tile(np.arange(len(distractors)), VIEWS)
    views = scale.views(distractors, drawn, np.random.default_rng(0)).astype(np.float16)
    references = w.apply(np.concatenate([data.read(TEST)[0], distractors, views]))
    queries = w.apply(np.concatenate([data.read(role)[0] for role in (CALIBRATION, FRESH)]))
    return best_pairs(references, queries, background, chosen.normalization)


def with_tails(chosen: Calibration, pairs: Pairs) -> Calibration:
    """Return a calibration with tail models learned from other uploads; its thresholds stay."""
    thresholds = (chosen.match, chosen.review)
    fits = tails.fit(pairs, [threshold.target for threshold in thresholds])
    match, review = (_moved(t, tail, chosen) for t, tail in zip(thresholds, fits, strict=True))
    facts = chosen.model_dump() | {
        "version": calibration.VERSION_WITH_TAILS,
        "match": match,
        "review": review,
    }
    return Calibration.model_validate(facts)


def _moved(threshold: Threshold, tail: Tail | None, chosen: Calibration) -> Threshold:
    """Return a threshold with a model that begins at its score, among the references of the calibration."""
    if tail is None:
        raise SystemExit(f"the pairs have no tail at the rate {threshold.target}")
    by = threshold.score - tail.point.score[0]

    def moved(fit: Fit, references: int) -> Fit:
        score = tuple(round(score + by, 9) for score in fit.score)
        return fit.model_copy(update={"score": score, "references": references})

    point = moved(tail.point, chosen.references)
    draws = moved(tail.draws, max(1, chosen.references // 2))
    return threshold.model_copy(update={"tail": Tail(target=tail.target, point=point, draws=draws)})


def main() -> None:
    """Write the calibration of a folder again, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder, see docs/experiments.md")
    parser.add_argument("--folder", type=Path, required=True, help="the encoder's folder")
    options = parser.parse_args()
    path = str(options.folder / FILE)
    chosen = calibration.load(path)
    pairs = photo_pairs(EvaluationSet.load(options.data), options.folder, chosen)
    made = with_tails(chosen, pairs)
    made.save(path)
    for references in (10**4, 10**5, 10**6):
        for verdict in (calibration.Verdict.MATCH, calibration.Verdict.REVIEW):
            ends = made.interval(verdict, references)
            print(references, verdict.value, made.threshold(verdict, references), ends)


if __name__ == "__main__":
    main()
