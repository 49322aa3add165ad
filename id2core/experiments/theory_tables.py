"""Tables 1 and 4, and Theorems 1 and 2 in figures."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from id2core.encoders.autoencoders import load_autoencoder
from id2core.experiments import plots, theory
from id2core.experiments.closed_sets import described
from id2core.experiments.evaluation_sets import TEST
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Skipped
from id2core.experiments.theory import Existence, Spread
from id2core.training.recipe import Recipe
from id2core.translation import models

REPEATED = 3
SHARE = Recipe().validation_share


def table_1(methods: Methods) -> Result | Skipped:
    """Cosine of the singular values of Ws trained on different models, over repeated runs."""
    bench = methods.bench
    trained = [model for model in bench.models if bench.has(f"train-{model}")]
    if len(trained) < 2:
        return Skipped("translations of training photos by a second model are not there")
    started = time.monotonic()
    weights = {model: [_repeated(methods, model, run) for run in range(REPEATED)] for model in trained}
    rows: list[dict[str, Any]] = []
    for i, first in enumerate(trained):
        for second in trained[i + 1 :]:
            rows.append(_agreement(f"{first}, {second}", weights[first], weights[second]))
    rows.append(_agreement(f"{trained[0]}, other seeds", weights[trained[0]][:-1], weights[trained[0]][1:]))
    return Result(
        rows,
        f"Ws by the paper's recipe, {REPEATED} runs of different seed for each model.",
        time.monotonic() - started,
        (
            Column("pair", "trained on"),
            Column("singular_values", "cosine of singular values (paper)"),
            Column("random", "the same of random matrices"),
            Column("overlap", "overlap of directions"),
            Column("by_chance", "overlap by chance"),
        ),
        _spread_bars(
            rows, "pair", {"measured": "overlap", "by chance": "by_chance"}, "overlap of directions"
        ),
        notes=["The paper's cosine is near 1 for random matrices too; the overlap of directions is not."],
    )


def _repeated(methods: Methods, model: str, run: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    name = "recipe" if run == 0 else f"recipe-seed-{run + 1}"
    found = methods.recipe(model, Recipe(seed=run + 1), name).weights
    assert found is not None
    return found


def _agreement(pair: str, first: Any, second: Any) -> dict[str, Any]:
    found = theory.agreement(first, second)
    return {"pair": pair} | {k: getattr(found, k) for k in vars(found)}


def table_4(methods: Methods) -> Result | Skipped:
    """How unlike the VAEs of the models are."""
    bench = methods.bench
    names = [name for name in bench.encoders() if name in bench.models]
    if not names:
        return Skipped("no model's own VAE has embedded the data")
    started = time.monotonic()
    base = load_autoencoder(_folder(bench.seen), "vae")
    convolution = theory.last_convolution(base)
    latents = bench.read(TEST)[0]
    rows = []
    for name in names:
        other = load_autoencoder(_folder(name), "vae")
        similarity = theory.embedding_similarity(latents, bench.by(name).read(TEST)[0])
        rows.append(
            {
                "model": name,
                "convolution": theory.convolution_similarity(convolution, theory.last_convolution(other)),
                "same": similarity.same if similarity else None,
                "unrelated": similarity.unrelated if similarity else None,
            }
        )
    return Result(
        rows,
        f"{len(latents):,} photos embedded by the VAE of {bench.seen} and by that of each other model.",
        time.monotonic() - started,
        plot=_spread_bars(
            rows, "model", {"same picture": "same", "another": "unrelated"}, "cosine of latents"
        ),
    )


def _spread_bars(rows: list[dict[str, Any]], groups: str, series: dict[str, str], label: str) -> plots.Bars:
    """Means, with a standard deviation to either side."""
    spreads = {name: [_spread(r[key]) for r in rows] for name, key in series.items()}
    means, low, high = (
        {name: [x and x[0] + side * x[1] for x in found] for name, found in spreads.items()}
        for side in (0, -1, 1)
    )
    return plots.Bars([r[groups] for r in rows], means, label, low, high, digits=2)


def _spread(found: Spread | float | None) -> tuple[float, float] | None:
    """Mean and standard deviation; a plain number has none."""
    if isinstance(found, Spread):
        return found.mean, found.std
    return None if found is None else (found, 0.0)


def existence(methods: Methods) -> Result:
    """‖T·W‖ against ‖T‖ on held-out pairs: Theorem 1 on the seen model, Theorem 2 on unseen ones."""
    bench = methods.bench
    started = time.monotonic()
    rows = []
    for name, w in (
        ("W, the paper's recipe", methods.recipe(bench.seen)),
        ("W, closed form", methods.closed(bench.seen)),
    ):
        assert w.weights is not None
        for model in bench.models:
            if not bench.has(f"train-{model}"):
                continue
            pairs = methods.pairs(model)
            found = Existence.of(theory.ratios(pairs, pairs.held_out(SHARE), w.weights))
            rows.append({"w": name, "model": model, "pairs": found.own.count} | _shown(found))
    return Result(
        rows,
        f"Pairs of training photos' held-out classes. {described(bench)}",
        time.monotonic() - started,
        (
            Column("w", "W", merge=True),
            Column("model"),
            Column("pairs"),
            Column("own", "‖T·W‖/‖T‖ (paper)"),
            Column("relative", "relative to unrelated pictures"),
            Column("nearer", "relative below 1, %", percent=True),
        ),
        _existence_plot(rows),
        ["Below 1, W takes more off the way from a translation to its origin than off the way to another."],
    )


def _shown(found: Existence) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("own", "relative", "nearer")}


def _folder(model: str) -> str:
    return str(models.locate(models.find(model))[0])


def _existence_plot(rows: list[dict[str, Any]]) -> plots.Bars:
    names = list(dict.fromkeys(r["w"] for r in rows))
    by_model = list(dict.fromkeys(r["model"] for r in rows))
    series = {
        model: [next(r["relative"].mean for r in rows if r["w"] == n and r["model"] == model) for n in names]
        for model in by_model
    }
    return plots.Bars(names, series, "relative to unrelated pictures", digits=3)
