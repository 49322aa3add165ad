"""What grows with the references: the rate of a threshold, and the errors of a search.

There are fewer photos than references are asked for, so references are views of photos: random crops of
their latents, half of them mirrored (the encoder is nearly equivariant), the same for every method. They come
in random order, so the first M are a sample of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from id2core.evaluation import ranking
from id2core.experiments import evaluation_sets, plots
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import (
    CALIBRATION,
    DISTRACTORS,
    FRESH,
    TEST,
    TRAIN,
    EvaluationSet,
    Queries,
    RankedReferences,
)
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.search.background_rows import background_means
from id2core.search.topk import TopK
from id2core.transforms.files import WEIGHTS, bundled_folder, load_transform
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, tails
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.tails import Pairs

REFERENCES = 200_000
BLOCK_ROWS = 1000
# References that are fitted on → how many fits, each to references of its own.
FITTED = {1000: 3, 5000: 2}
TIMES = (1, 10, 40, 200)
# Two calibrations of two rates each.
TARGETS = ((0.001, 0.02), (0.005, 0.02))
SHOWN_TARGETS = (0.02, 0.005, 0.001)
# Views of each photo as uploads: 0.1% needs 10,000 of them.
FIT_VIEWS, TEST_VIEWS = 14, 10
# The normalization that ships.
FACTOR, BEST = 1.25, 10
BACKGROUND = 500
SIZES = (1000, 3000, 10_000, 30_000, 100_000, 200_000)
_CHANNELS, _SIDES = 4, (0.4, 1.0)


def views(
    latents: NDArray[np.float16], rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a view of each of some latents, float32[B,n]: a square crop at random, every other mirrored.

    Args:
        latents: float16[N,n] of 4 square channels.
        rows: int64[B], of which.
        rng: of the crops.
    """
    side = math.isqrt(latents.shape[1] // _CHANNELS)
    maps = latents[rows].reshape(-1, _CHANNELS, side, side).astype(np.float32)
    size = side * rng.uniform(*_SIDES, len(rows))
    down, across = (_interpolation(rng.random(len(rows)) * (side - size), size, side) for _ in range(2))
    mirrored = rng.random(len(rows)) < 0.5
    across[mirrored] = across[mirrored, ::-1]
    cropped = down[:, None] @ maps @ across.transpose(0, 2, 1)[:, None]
    return np.ascontiguousarray(cropped.reshape(len(rows), -1))


def _interpolation(start: NDArray[np.float64], size: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return matrices float32[B,side,side] that stretch a stretch of a row to the whole, bilinearly."""
    place = np.clip(start[:, None] + (np.arange(side) + 0.5) * (size[:, None] / side) - 0.5, 0, side - 1)
    left = np.minimum(place.astype(np.int64), side - 2)
    share = (place - left).astype(np.float32)
    matrices = np.zeros((len(start), side, side), np.float32)
    view, row = np.arange(len(start))[:, None], np.arange(side)
    matrices[view, row, left] = 1 - share
    matrices[view, row, left + 1] = share
    return matrices


def describe(latents: NDArray[np.floating], w: Transform) -> NDArray[np.float32]:
    """Return descriptors in float32 throughout: a fifth of the time of `Transform.apply`, 1e-6 apart."""
    out = latents.astype(np.float32) if w.weights is None else latents.astype(np.float32) @ w.weights
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True))


def reference_views(
    latents: NDArray[np.float16], count: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """Draw views of latents float16[N,n] at random, `BLOCK_ROWS` at a time, until there are `count`."""
    for _ in range(0, count, BLOCK_ROWS):
        yield views(latents, rng.integers(0, len(latents), BLOCK_ROWS), rng)


def _w(methods: Methods) -> Transform:
    """Return the W that ships for the encoder of the data, else the closed form."""
    path = bundled_folder() / WEIGHTS
    if path.exists():
        shipped = load_transform(str(path))
        if shipped.trained_for == methods.data.ids["encoder_id"]:
            return shipped
    return methods.closed(methods.data.seen)


def _whole(data: EvaluationSet, role: str) -> NDArray[np.float16]:
    """Return latents of the photos of a role, without the views that were made of them."""
    whole = [not Path(uri).name.startswith("view") for uri in data.uris(role)]
    return np.asarray(data.read(role)[0][np.array(whole)], np.float16)


def _is_square(data: EvaluationSet) -> bool:
    n = int(data.read(TEST)[0].shape[1])
    return n == _CHANNELS * math.isqrt(n // _CHANNELS) ** 2


@dataclass(frozen=True, eq=False)
class _Uploads:
    """Uploads without origin: views of photos of which nothing is among the references.

    Attributes:
        descriptors: float32[Q,m].
        photos: int64[Q].
        background: float64[Q], mean of the best background scores.
    """

    descriptors: NDArray[np.float32]
    photos: NDArray[np.int64]
    background: NDArray[np.float64]

    @staticmethod
    def of(
        latents: NDArray[np.float16],
        count: int,
        w: Transform,
        background: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> _Uploads:
        photos = np.repeat(np.arange(len(latents)), count)
        blocks = np.array_split(photos, max(1, len(photos) // BLOCK_ROWS))
        descriptors = np.concatenate([describe(views(latents, block, rng), w) for block in blocks])
        return _Uploads(descriptors, photos, _background_means(descriptors, background))


@dataclass(frozen=True, eq=False)
class _Scored:
    """What the scan of the references left.

    Attributes:
        fits: (M, number) → scores float32[Q,k] and rows int64[Q,k] of the best of M references.
        best: N → float32[T], best scores of the fresh uploads.
    """

    fits: dict[tuple[int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
    best: dict[int, NDArray[np.float32]]


def _scan(
    references: NDArray[np.float16],
    w: Transform,
    fitted: _Uploads,
    fresh: _Uploads,
    rng: np.random.Generator,
) -> _Scored:
    open_fits = {
        (size, number): TopK(len(fitted.photos), tails.DEPTH)
        for size, count in FITTED.items()
        for number in range(count)
    }
    best = np.full(len(fresh.photos), -np.inf, np.float32)
    sizes = {size * times for size in FITTED for times in TIMES}
    kept = {}
    for i, block in enumerate(reference_views(references, REFERENCES, rng)):
        descriptors = describe(block, w).T
        own = [key for key in open_fits if key[1] == i * BLOCK_ROWS // key[0]]
        if own:
            scores = fitted.descriptors @ descriptors
            for key in own:
                open_fits[key].add(scores)
        best = np.maximum(best, (fresh.descriptors @ descriptors).max(axis=1))
        seen = (i + 1) * BLOCK_ROWS
        if seen in sizes:
            kept[seen] = best
    fits = {key: top.result()[::-1] for key, top in open_fits.items()}
    return _Scored(fits, kept)


def _calibrations(
    uploads: _Uploads, scores: NDArray[np.float32], rows: NDArray[np.int64], size: int, factor: float
) -> dict[float, tuple[Calibration, Verdict]]:
    """Calibrate for every target: target → calibration, and which of its verdicts has the target."""
    shifted = scores - factor * uploads.background[:, None]
    queries = np.repeat(np.arange(len(scores)), scores.shape[1])
    _, numbers = np.unique(rows, return_inverse=True)
    pairs = Pairs(shifted.ravel(), queries, numbers.ravel().astype(np.int64), uploads.photos, size)
    ids = dict.fromkeys(("encoder_id", "transform_id", "preprocess_id"), "experiment")
    out = {}
    for match, review in TARGETS:
        made = calibration.calibrate(
            shifted[:, 0], match=match, review=review, references=size, ids=ids, pairs=pairs
        )
        out[match], out[review] = (made, Verdict.MATCH), (made, Verdict.REVIEW)
    return out


@experiment("rates", "False positives as the references grow", place=21)
def rates_by_size(methods: Methods) -> Result | Skipped:
    """Compare the rates that a calibration states for larger corpora with those of fresh uploads there."""
    started = time.monotonic()
    data = methods.data
    if not data.has(CALIBRATION, FRESH, TRAIN) or not _is_square(data):
        return Skipped("photos of `calibration`, `fresh` and `train` are missing, or latents are not square")
    w, rng = _w(methods), np.random.default_rng(0)
    trained = _whole(data, TRAIN)
    chosen = rng.permutation(len(trained))
    background = describe(trained[chosen[:BACKGROUND]], w)
    more = trained[chosen[BACKGROUND : 2 * BACKGROUND]]
    half = len(more) // 2
    needed = calibration.required_queries(min(SHOWN_TARGETS)) / FIT_VIEWS
    photos = [
        np.concatenate([_whole(data, role), part])
        for role, part in ((CALIBRATION, more[:half]), (FRESH, more[half:]))
    ]
    if len(photos[0]) < needed:
        return Skipped(f"{needed:.0f} photos without origin are needed, there are {len(photos[0])}")
    fitted, fresh = (
        _Uploads.of(latents, count, w, background, rng)
        for latents, count in zip(photos, (FIT_VIEWS, TEST_VIEWS), strict=True)
    )
    references = np.concatenate([_whole(data, TEST), _whole(data, DISTRACTORS)])
    scored = _scan(references, w, fitted, fresh, rng)
    rows = [
        row
        for name, factor in (("normalized", FACTOR), ("raw", 0.0))
        for (size, number), (scores, places) in scored.fits.items()
        for row in _rate_rows(
            name, size, number, _calibrations(fitted, scores, places, size, factor), fresh, factor, scored
        )
    ]
    first = [row for row in rows if row["fit"] == 1 and row["references"] > row["fitted on"]]
    return Result(
        rows,
        f"Uploads without an origin are views of photos: {FIT_VIEWS} of each of {len(photos[0]):,} photos to "
        f"fit, {TEST_VIEWS} of each of {len(photos[1]):,} others to measure. References are up to "
        f"{REFERENCES:,} views of {len(references):,} photos, of which nothing is among the uploads.",
        time.monotonic() - started,
        (
            Column("scores", merge=True),
            Column("fitted on", merge=True),
            Column("fit", merge=True),
            Column("rate", "rate, %", percent=True, digits=1, merge=True),
            Column("references"),
            Column("measured", "measured, %", percent=True, digits=2),
            Column("stated", "stated interval, %"),
            Column("inside"),
            Column("unmoved", "threshold unmoved, %", percent=True, digits=2),
            Column("bound", "union bound of it, %", percent=True, digits=1),
        ),
        _rate_plot(first),
        [
            *(_inside_note(rows, name) for name in ("normalized", "raw")),
            "Thresholds are those that the calibration gives for so many references. `Unmoved` is the rate "
            "of the threshold of the calibrated corpus, which the union bound speaks of.",
            "The interval of a calibration covers its own sample. A measured rate varies, too: ± is from "
            "resampled photos.",
            "References are views of few photos, so they resemble each other more than other photos would.",
        ],
    )


def _rate_rows(
    name: str,
    size: int,
    number: int,
    made: dict[float, tuple[Calibration, Verdict]],
    fresh: _Uploads,
    factor: float,
    scored: _Scored,
) -> Iterator[Row]:
    for target in SHOWN_TARGETS:
        chosen, verdict = made[target]
        for references in (size * times for times in TIMES if size * times in scored.best):
            best = scored.best[references] - factor * fresh.background
            reached = best >= chosen.threshold(verdict, references)
            interval = chosen.interval(verdict, references)
            assert interval is not None
            rate = float(reached.mean())
            unmoved = best >= chosen.lowest(verdict)
            yield {
                "scores": name,
                "fitted on": size,
                "fit": number + 1,
                "rate": target,
                "references": references,
                "measured": evaluation_sets.mean(reached.astype(np.float64), fresh.photos),
                "stated": f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}",
                "stated_from": interval[0],
                "stated_to": interval[1],
                "inside": "yes" if interval[0] <= rate <= interval[1] else "no",
                "unmoved": float(unmoved.mean()),
                "bound": min(1.0, target * references / size),
                "threshold": chosen.threshold(verdict, references),
                "growth": _tail(chosen, verdict),
            }


def _tail(chosen: Calibration, verdict: Verdict) -> float | None:
    tail = (chosen.match if verdict is Verdict.MATCH else chosen.review).tail
    return tail.growth if tail else None


def _inside_note(rows: list[Row], name: str) -> str:
    larger = [r for r in rows if r["scores"] == name and r["references"] > r["fitted on"]]
    inside = [r for r in larger if r["inside"] == "yes"]
    ratios = [max(r["measured"].value / r["rate"], 1e-3) for r in larger]
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return (
        f"Scores {name}: in larger corpora, {len(inside)} of {len(larger)} measured rates are inside the "
        f"stated interval. Measured divided by stated is {middle:.2g} in the middle, and {low:.2g} to "
        f"{high:.2g} for eight of ten."
    )


def _rate_plot(rows: list[Row]) -> plots.Panels:
    panels = {}
    for size in FITTED:
        for target in SHOWN_TARGETS:
            own = [
                r
                for r in rows
                if r["scores"] == "normalized" and r["fitted on"] == size and r["rate"] == target
            ]
            stated = {"stated, with its interval": [100 * target for _ in own]}
            panels[f"{target:.1%}, from {size:,} references"] = plots.Lines(
                [float(r["references"]) for r in own],
                {
                    **stated,
                    "measured": [100 * r["measured"].value for r in own],
                    "measured, threshold unmoved": [100 * r["unmoved"] for r in own],
                },
                "references",
                "rate, %",
                {name: [100 * r["stated_from"] for r in own] for name in stated},
                {name: [100 * r["stated_to"] for r in own] for name in stated},
                logarithmic=True,
            )
    return plots.Panels(panels, columns=3, shared=False)


@dataclass(eq=False)
class _Growing:
    """Ranks of origins and best references while references are added.

    Attributes:
        queries: with an origin among the first references, or none.
        descriptors: float32[Q,m].
    """

    queries: Queries
    descriptors: NDArray[np.float32]

    def __post_init__(self) -> None:
        self._top = TopK(len(self.descriptors), evaluation_sets.KEPT)
        self._ranks = np.zeros(len(self.descriptors), np.int64)
        self._own: NDArray[np.float32] | None = None

    def add(self, references: NDArray[np.float32]) -> None:
        """Take in the next references; the first block holds every origin."""
        scores = self.descriptors @ references.T
        self._top.add(scores)
        has = self.queries.origins >= 0
        if self._own is None:
            self._ranks = ranking.ranks_of(scores, self.queries.origins)
            self._own = np.take_along_axis(scores, np.maximum(self.queries.origins, 0)[:, None], 1)
        else:
            self._ranks = self._ranks + has * np.count_nonzero(scores >= self._own, axis=1)

    def ranked(self) -> RankedReferences:
        """Return what was found so far."""
        rows, scores = self._top.result()
        return RankedReferences(self._ranks, scores, rows, self.queries)


@experiment("size", "Accuracy as the references grow", place=22)
def accuracy_by_size(methods: Methods) -> Result | Skipped:
    """Measure Acc and µAP while the references grow, by W and by raw latents."""
    started = time.monotonic()
    data = methods.data
    if not data.has(FRESH, TRAIN) or not _is_square(data):
        return Skipped("photos of `fresh` and `train` are missing, or latents are not square")
    w, rng = _w(methods), np.random.default_rng(0)
    transforms = {"Embeddings of VAE": methods.raw(), "W": w}
    origins, _ = data.read(TEST)
    if len(origins) > SIZES[0]:
        return Skipped(f"the test has {len(origins)} photos, more than the {SIZES[0]} that it begins with")
    others = _whole(data, DISTRACTORS)
    trained = _whole(data, TRAIN)
    background = describe(trained[rng.permutation(len(trained))[:BACKGROUND]], w)
    known = {model: data.queries(model) for model in data.models}
    count = sum(len(q.latents) for q in known.values())
    fresh = _whole(data, FRESH)[:count]
    unknown = Queries(
        views(fresh, np.arange(len(fresh)), rng).astype(np.float16),
        np.full(len(fresh), -1),
        np.arange(len(fresh)),
    )
    parts = {**known, "": unknown}
    growing = {
        (name, part): _Growing(queries, describe(queries.latents, transform))
        for name, transform in transforms.items()
        for part, queries in parts.items()
    }
    means = {part: _background_means(growing["W", part].descriptors, background) for part in parts}
    rows: list[Row] = []
    seen = 0
    for block in _blocks(origins, others, rng):
        for name, transform in transforms.items():
            descriptors = describe(block, transform)
            for part in parts:
                growing[name, part].add(descriptors)
        seen += len(block)
        if seen in SIZES:
            rows += _size_rows(seen, growing, parts, means)
    rows.sort(key=lambda row: row["method"])
    return Result(
        rows,
        f"{count:,} translations, by {' and '.join(data.models)}, have an origin. A view of each of "
        f"{len(fresh):,} other photos has none. References are the {len(origins):,} photos of the "
        f"test and views of {len(others):,} others.",
        time.monotonic() - started,
        (
            Column("method", merge=True),
            Column("references"),
            *(Column(f"acc {model}", f"Acc {model}, %", percent=True) for model in data.models),
            Column("micro_ap", "µAP of all, %", percent=True),
        ),
        _size_plot(rows, data.models),
        ["µAP pools 10 pairs of each upload, with and without an origin."],
    )


def _blocks(
    origins: NDArray[np.float16], others: NDArray[np.float16], rng: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    """Yield the origins and views up to the first size together, then views in blocks."""
    first = views(others, rng.integers(0, len(others), SIZES[0] - len(origins)), rng)
    yield np.concatenate([origins.astype(np.float32), first])
    yield from reference_views(others, SIZES[-1] - SIZES[0], rng)


def _background_means(
    descriptors: NDArray[np.float32], background: NDArray[np.float32]
) -> NDArray[np.float64]:
    best = TopK(len(descriptors), BEST)
    best.add(descriptors @ background.T)
    return background_means(best.result()[1], BEST)


def _size_rows(
    seen: int,
    growing: dict[tuple[str, str], _Growing],
    parts: dict[str, Queries],
    means: dict[str, NDArray[np.float64]],
) -> Iterator[Row]:
    for name, method, factor in (
        ("Embeddings of VAE", "Embeddings of VAE", 0.0),
        ("W", "W", 0.0),
        ("W", "W, normalized", FACTOR),
    ):
        ranked = {part: growing[name, part].ranked() for part in parts}
        row: Row = {"method": method, "references": seen}
        for model in filter(None, parts):
            row[f"acc {model}"] = evaluation_sets.closed_set(ranked[model])["acc"]
        pooled = [(ranked[part], factor * means[part]) for part in parts]
        yield row | {"micro_ap": evaluation_sets.open_set(pooled)["micro_ap"]}


def _size_plot(rows: list[Row], models: tuple[str, ...]) -> plots.Panels:
    names = list(dict.fromkeys(row["method"] for row in rows))
    panels = {}
    for key, title in (*((f"acc {model}", f"Acc, {model}") for model in models), ("micro_ap", "µAP of all")):
        # Subtracting a background changes no rank.
        shown = [name for name in names if key == "micro_ap" or "normalized" not in name]
        panels[title] = plots.Lines(
            [n / 1000 for n in SIZES],
            {name: [100 * r[key].value for r in rows if r["method"] == name] for name in shown},
            "references, thousands",
            "%",
            {name: [100 * r[key].low for r in rows if r["method"] == name] for name in shown},
            {name: [100 * r[key].high for r in rows if r["method"] == name] for name in shown},
            logarithmic=True,
        )
    return plots.Panels(panels, columns=2)
