"""Tables 1 and 4, and Theorems 1 and 2 in figures."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from id2core.encoders.autoencoders import load_autoencoder
from id2core.experiments import plots, theory
from id2core.experiments.closed_sets import described
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import TEST
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.experiments.theory import Existence, Spread
from id2core.training.config import GradientConfig
from id2core.translation import loading, models

REPEATED = 3
SHARE = GradientConfig().validation_share


@experiment("t1", "Table 1: singular values of W on different models", place=40)
def table_1(methods: Methods) -> Result | Skipped:
    """Measure Table 1: singular values of Ws trained on different models, over repeated runs."""
    data = methods.data
    trained = [model for model in data.models if data.has(f"train-{model}")]
    if len(trained) < 2:
        return Skipped("translations of training photos by a second model are not there")
    started = time.monotonic()
    weights = {model: [_repeated(methods, model, run) for run in range(REPEATED)] for model in trained}
    rows: list[Row] = []
    for i, first in enumerate(trained):
        for second in trained[i + 1 :]:
            rows.append(_agreement(f"{first}, {second}", weights[first], weights[second]))
    rows.append(_agreement(f"{trained[0]}, other seeds", weights[trained[0]][:-1], weights[trained[0]][1:]))
    return Result(
        rows,
        f"Ws are trained by the paper's recipe, in {REPEATED} runs with different seeds for each model.",
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
        notes=["The paper's cosine is near 1 for random matrices too. The overlap of directions is not."],
    )


def _repeated(methods: Methods, model: str, run: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    name = "recipe" if run == 0 else f"recipe-seed-{run + 1}"
    weights = methods.recipe(model, GradientConfig(seed=run + 1), name).weights
    assert weights is not None
    return weights


def _agreement(pair: str, first: Any, second: Any) -> Row:
    agreement = theory.agreement(first, second)
    return {"pair": pair} | {k: getattr(agreement, k) for k in vars(agreement)}


@experiment("t4", "Table 4: the VAEs of seen and unseen models differ", place=50)
def table_4(methods: Methods) -> Result | Skipped:
    """Measure Table 4: how unlike the VAEs of the models are."""
    data = methods.data
    names = [name for name in data.encoders() if name in data.models]
    if not names:
        return Skipped("no model's own VAE has embedded the data")
    started = time.monotonic()
    base = load_autoencoder(_folder(data.seen), "vae")
    convolution = theory.last_convolution(base)
    latents = data.read(TEST)[0]
    rows = []
    for name in names:
        other = load_autoencoder(_folder(name), "vae")
        similarity = theory.embedding_similarity(latents, data.by(name).read(TEST)[0])
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
        f"{len(latents):,} photos are embedded by the VAE of {data.seen} and by the VAE of each other model.",
        time.monotonic() - started,
        plot=_spread_bars(
            rows, "model", {"same picture": "same", "another": "unrelated"}, "cosine of latents"
        ),
    )


def _spread_bars(rows: list[Row], groups: str, series: dict[str, str], label: str) -> plots.Bars:
    """Plot means, with a standard deviation to either side."""
    spreads = {name: [_spread(r[key]) for r in rows] for name, key in series.items()}
    means, low, high = (
        {name: [x and x[0] + side * x[1] for x in values] for name, values in spreads.items()}
        for side in (0, -1, 1)
    )
    return plots.Bars([r[groups] for r in rows], means, label, low, high, digits=2)


def _spread(value: Spread | float | None) -> tuple[float, float] | None:
    """Return mean and standard deviation, which is 0 for a plain number."""
    if isinstance(value, Spread):
        return value.mean, value.std
    return None if value is None else (value, 0.0)


@experiment(
    "existence",
    "Theorems 1 and 2: what W leaves of the difference between a translation and its origin",
    place=60,
)
def existence(methods: Methods) -> Result:
    """Measure ‖T·W‖ against ‖T‖ on held-out pairs: Theorem 1 on the seen model, 2 on unseen ones."""
    data = methods.data
    started = time.monotonic()
    rows = []
    for name, w in (
        ("W, the paper's recipe", methods.recipe(data.seen)),
        ("W, closed form", methods.closed(data.seen)),
    ):
        assert w.weights is not None
        for model in data.models:
            if not data.has(f"train-{model}"):
                continue
            pairs = methods.pairs(model)
            measured = Existence.of(theory.ratios(pairs, pairs.held_out(SHARE), w.weights))
            rows.append({"w": name, "model": model, "pairs": measured.own.count} | _shown(measured))
    return Result(
        rows,
        f"The pairs are held-out classes of the training photos. {described(data)}",
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
        ["Below 1, W shortens the way from a translation to its origin more than the way to another."],
    )


def _shown(measured: Existence) -> Row:
    return {name: getattr(measured, name) for name in ("own", "relative", "nearer")}


def _folder(model: str) -> str:
    return str(loading.locate(models.find(model))[0])


def _existence_plot(rows: list[Row]) -> plots.Bars:
    names = list(dict.fromkeys(r["w"] for r in rows))
    by_model = list(dict.fromkeys(r["model"] for r in rows))
    series = {
        model: [next(r["relative"].mean for r in rows if r["w"] == n and r["model"] == model) for n in names]
        for model in by_model
    }
    return plots.Bars(names, series, "relative to unrelated pictures", digits=3)
