"""What the paper does not measure: uploads that mostly have no origin.

As many uploads without origin as with one. Thresholds come from uploads of other photos, the background and
its factor from training data; test and fresh uploads are only measured on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.experiments import evaluation_sets as benches
from id2core.experiments import plots
from id2core.experiments.closed_sets import in_percent
from id2core.experiments.evaluation_sets import CALIBRATION, DISTRACTORS, FRESH, Bench, Queries
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Skipped
from id2core.training.pairs import Pairs
from id2core.training.recipe import Recipe
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
        """float64[Q]: what is subtracted from each query's scores."""
        if not self.factor:
            return np.zeros(len(queries.latents))
        found = benches.find(transform, queries, self.latents, self.k)
        return self.factor * normalization.background_means(found.scores, self.k)


def tuned(bench: Bench, pairs: Pairs, transform: Transform) -> Background:
    """Factor and k of the best µAP on held-out training classes and the seen model's calibration uploads."""
    held_out = pairs.held_out(Recipe().validation_share)
    heads = pairs.offsets[:-1]
    others = pairs.latents[heads[~held_out]]
    background = others[np.linspace(0, len(others) - 1, min(_BACKGROUND, len(others))).astype(int)]
    asked = np.flatnonzero(held_out[pairs.labels] & ~pairs.is_origin)
    place = np.cumsum(held_out) - 1
    labels = pairs.labels[asked]
    known = Queries(pairs.latents[asked], place[labels].astype(np.int64), labels.astype(np.int64))
    references = np.concatenate([pairs.latents[heads[held_out]], bench.read(DISTRACTORS)[0]])
    strangers = bench.queries(bench.seen, CALIBRATION)
    parts = (known, strangers)
    found = [benches.find(transform, queries, references) for queries in parts]
    predictions, _ = benches.pooled([(f, np.zeros(len(f.ranks))) for f in found])
    scores = [benches.find(transform, queries, background, max(normalization.KS)).scores for queries in parts]
    grid = normalization.micro_aps(predictions, np.concatenate(scores))
    factor, k = max(grid, key=grid.__getitem__)
    return Background(background, factor, k)


def one_each(queries: Queries, kind: int, kinds: int) -> NDArray[np.int64]:
    """Rows of one query of every photo whose number is `kind` modulo `kinds`.

    The interval of a rate is for uploads that do not depend on each other: of a photo only one may count.
    """
    numbers, first = np.unique(queries.photos, return_index=True)
    return np.asarray(first[numbers % kinds == kind])


def calibrated(bench: Bench, transform: Transform, background: Background) -> Calibration:
    """Thresholds from the calibration uploads, one of each photo, by all models in turn."""
    scores = []
    for kind, model in enumerate(bench.models):
        found = bench.find(transform, model, CALIBRATION)
        best = found.scores[:, 0] - background.of(transform, found.queries)
        scores.append(best[one_each(found.queries, kind, len(bench.models))])
    return calibration.calibrate(
        np.concatenate(scores),
        match=MATCH,
        review=REVIEW,
        references=len(bench.references),
        ids=bench.ids | {"transform_id": transform.transform_id},
    )


def open_set(methods: Methods) -> Result | Skipped:
    """µAP and R@P90 with half of the uploads without origin; false positives on fresh uploads."""
    started = time.monotonic()
    bench = methods.bench
    if not bench.has(*(f"{role}-{model}" for role in (CALIBRATION, FRESH) for model in bench.models)):
        return Skipped("uploads without origin are not there (`calibration-…`, `fresh-…`)")
    pairs = methods.pairs(bench.seen)
    none = Background(bench.references[:1], 0.0, 1)
    recipe, closed = methods.recipe(bench.seen), methods.closed(bench.seen)
    background = tuned(bench, pairs, closed)
    systems = {
        "Embeddings of VAE": (methods.raw(), none),
        "W, the paper's recipe": (recipe, none),
        "W, closed form": (closed, none),
        "W, closed form, normalized": (closed, background),
    }
    rows = [
        {"method": name, "model": model} | _row(bench, w, b, model)
        for name, (w, b) in systems.items()
        for model in bench.models
    ]
    queries = len(bench.queries(bench.seen).latents), len(bench.queries(bench.seen, FRESH).latents)
    return Result(
        rows,
        f"By each model {queries[0]:,} uploads with an origin and {queries[1]:,} fresh ones without, among "
        f"{len(bench.references):,} pictures; 10 pairs of each upload are pooled. Thresholds are from other "
        f"uploads without origin.",
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
        _plot(bench, rows),
        [
            f"Chosen on training data: factor {background.factor}, mean of the {background.k} best of "
            f"{len(background.latents):,} background pictures.",
            *(
                f"“{name}”: {_pooled(rows, name):.2%} false positives of all fresh uploads."
                for name in systems
            ),
            "Thresholds are from one upload of each photo: uploads of one photo depend on each other.",
        ],
    )


def _pooled(rows: list[dict[str, Any]], name: str) -> float:
    """Every model has as many uploads."""
    return float(np.mean([r["rate"].value for r in rows if r["method"] == name]))


def _row(bench: Bench, w: Transform, background: Background, model: str) -> dict[str, Any]:
    known, fresh = bench.find(w, model), bench.find(w, model, FRESH)
    subtracted = [background.of(w, f.queries) for f in (known, fresh)]
    measured = benches.open_set(list(zip((known, fresh), subtracted, strict=True)))
    threshold = calibrated(bench, w, background).match
    false = (fresh.scores[:, 0] - subtracted[1]) >= threshold.score
    right = (known.scores[:, 0] - subtracted[0] >= threshold.score) & (known.ranks == 1)
    return measured | {
        "rate": benches.mean(false.astype(np.float64), fresh.queries.photos),
        "stated": f"{100 * threshold.low:.2f} to {100 * threshold.high:.2f}",
        "found": benches.mean(right.astype(np.float64), known.queries.photos),
    }


def _plot(bench: Bench, rows: list[dict[str, Any]]) -> plots.Bars:
    names = list(dict.fromkeys(r["method"] for r in rows))
    measures = {model: [r["micro_ap"] for r in rows if r["model"] == model] for model in bench.models}
    values, low, high = in_percent(measures)
    return plots.Bars(names, values, "µAP, %", low, high)
