"""The open set, which the paper does not measure: half of the uploads have no origin.

Thresholds come from uploads of other photos, the background and its factor from training data. Uploads of the
roles `test` and `fresh` are only measured on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from id2core.experiments import evaluation_sets, plots
from id2core.experiments.closed_sets import in_percent
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import CALIBRATION, DISTRACTORS, FRESH, EvaluationSet, Queries
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.search.background_rows import background_means
from id2core.training.config import GradientConfig
from id2core.training.pairs import Pairs
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, normalization
from id2core.verdicts.calibration import Calibration

MATCH, REVIEW = 0.02, 0.1
_BACKGROUND = 2000


@dataclass(frozen=True, eq=False)
class Background:
    """Pictures that no upload comes from, and how much of their scores is subtracted.

    Attributes:
        latents: float16[B,n].
        factor, k: the mean of the k best scores times `factor` is subtracted.
    """

    latents: NDArray[np.float16]
    factor: float
    k: int

    def of(self, transform: Transform, queries: Queries) -> NDArray[np.float64]:
        """Return what is subtracted from each query's scores, float64[Q]."""
        if not self.factor:
            return np.zeros(len(queries.latents))
        results = evaluation_sets.search(transform, queries, self.latents, self.k)
        return self.factor * background_means(results.scores, self.k)


def tune_background(data: EvaluationSet, pairs: Pairs, transform: Transform) -> Background:
    """Choose factor and k on held-out training classes and the seen model's calibration uploads."""
    held_out = pairs.held_out(GradientConfig().validation_share)
    heads = pairs.offsets[:-1]
    others = pairs.latents[heads[~held_out]]
    latents = others[np.linspace(0, len(others) - 1, min(_BACKGROUND, len(others))).astype(int)]
    asked = np.flatnonzero(held_out[pairs.labels] & ~pairs.is_origin)
    place = np.cumsum(held_out) - 1
    labels = pairs.labels[asked]
    known = Queries(pairs.latents[asked], place[labels].astype(np.int64), labels.astype(np.int64))
    references = np.concatenate([pairs.latents[heads[held_out]], data.read(DISTRACTORS)[0]])
    parts = (known, data.queries(data.seen, CALIBRATION))
    results = [evaluation_sets.search(transform, queries, references) for queries in parts]
    predictions, _ = evaluation_sets.pooled([(result, np.zeros(len(result.ranks))) for result in results])
    depth = max(normalization.KS)
    scores = [evaluation_sets.search(transform, queries, latents, depth).scores for queries in parts]
    (factor, k), _ = normalization.choose_parameters(predictions, np.concatenate(scores))
    return Background(latents, factor, k)


def one_each(queries: Queries, kind: int, kinds: int) -> NDArray[np.int64]:
    """Return rows of one query of every photo whose number is `kind` modulo `kinds`.

    The interval of a rate is for uploads that do not depend on each other: of a photo only one may count.
    """
    numbers, first = np.unique(queries.photos, return_index=True)
    return np.asarray(first[numbers % kinds == kind])


def calibrated(data: EvaluationSet, transform: Transform, background: Background) -> Calibration:
    """Calibrate thresholds on one calibration upload of each photo, by all models in turn."""
    scores = []
    for kind, model in enumerate(data.models):
        results = data.search(transform, model, CALIBRATION)
        best = results.scores[:, 0] - background.of(transform, results.queries)
        scores.append(best[one_each(results.queries, kind, len(data.models))])
    return calibration.calibrate(
        np.concatenate(scores),
        match=MATCH,
        review=REVIEW,
        references=len(data.references),
        ids=data.ids | {"transform_id": transform.transform_id},
    )


@experiment("open", "Open set: half of the uploads without origin", place=20)
def open_set(methods: Methods) -> Result | Skipped:
    """Measure µAP and R@P90 with half of the uploads without origin, and false positives of unseen ones."""
    started = time.monotonic()
    data = methods.data
    if not data.has(*(f"{role}-{model}" for role in (CALIBRATION, FRESH) for model in data.models)):
        return Skipped("uploads without an origin are missing (`calibration-…`, `fresh-…`)")
    pairs = methods.pairs(data.seen)
    none = Background(data.references[:1], 0.0, 1)
    recipe, closed = methods.recipe(data.seen), methods.closed(data.seen)
    background = tune_background(data, pairs, closed)
    systems = {
        "Embeddings of VAE": (methods.raw(), none),
        "W, the paper's recipe": (recipe, none),
        "W, closed form": (closed, none),
        "W, closed form, normalized": (closed, background),
    }
    rows = [
        {"method": name, "model": model} | _row(data, w, b, model)
        for name, (w, b) in systems.items()
        for model in data.models
    ]
    queries = len(data.queries(data.seen).latents), len(data.queries(data.seen, FRESH).latents)
    return Result(
        rows,
        f"Each model made {queries[0]:,} uploads with an origin and {queries[1]:,} fresh uploads without "
        f"one. They are looked up among {len(data.references):,} pictures, and 10 pairs of each upload are "
        "pooled. Thresholds are from other uploads without an origin.",
        time.monotonic() - started,
        (
            Column("method", merge=True),
            Column("model"),
            Column("micro_ap", "µAP %", percent=True),
            Column("recall_at_p90", "R@P90 %", percent=True),
            Column("rate", f"false positives at {MATCH:.0%}, %", percent=True, digits=2),
            Column("stated", "stated interval, %"),
            Column("found", "origins at that threshold, %", percent=True),
        ),
        _plot(data, rows),
        [
            f"The factor {background.factor} and the mean of the {background.k} best of "
            f"{len(background.latents):,} background pictures were chosen on training data.",
            *(
                f"“{name}” gives {_pooled(rows, name):.2%} of all fresh uploads a false positive."
                for name in systems
            ),
            "Thresholds use one upload of each photo, because uploads of one photo are not independent.",
        ],
    )


def _pooled(rows: list[Row], name: str) -> float:
    """Return the mean rate; every model has as many uploads."""
    return float(np.mean([r["rate"].value for r in rows if r["method"] == name]))


def _row(data: EvaluationSet, w: Transform, background: Background, model: str) -> Row:
    known, unknown = data.search(w, model), data.search(w, model, FRESH)
    subtracted = [background.of(w, f.queries) for f in (known, unknown)]
    measured = evaluation_sets.open_set(list(zip((known, unknown), subtracted, strict=True)))
    threshold = calibrated(data, w, background).match
    false = (unknown.scores[:, 0] - subtracted[1]) >= threshold.score
    right = (known.scores[:, 0] - subtracted[0] >= threshold.score) & (known.ranks == 1)
    return measured | {
        "rate": evaluation_sets.mean(false.astype(np.float64), unknown.queries.photos),
        "stated": f"{100 * threshold.low:.2f} to {100 * threshold.high:.2f}",
        "found": evaluation_sets.mean(right.astype(np.float64), known.queries.photos),
    }


def _plot(data: EvaluationSet, rows: list[Row]) -> plots.Bars:
    names = list(dict.fromkeys(r["method"] for r in rows))
    measures = {model: [r["micro_ap"] for r in rows if r["model"] == model] for model in data.models}
    values, low, high = in_percent(measures)
    return plots.Bars(names, values, "µAP, %", low, high)
