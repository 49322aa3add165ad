"""Tables 3, 5, 6, 7 and 10, Figures 8 and 9: mAP and Acc on the seen model and on unseen ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from id2core.encoders.backbones import SCRATCH
from id2core.errors import TransformError
from id2core.evaluation.metrics import Measure
from id2core.experiments import costs, evaluation_sets, plots
from id2core.experiments.costs import Clock
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import TUNED, EvaluationSet, RankedReferences
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.training.config import GradientConfig, Loss
from id2core.transforms import heads
from id2core.transforms.kinds import HeadKind
from id2core.transforms.linear import Transform

RANKS = (16, 32, 64, 128, 256, 512)
LOSS_NAMES: dict[Loss, str] = {"softmax": "SoftMax", "circle": "Circle loss", "cosface": "CosFace"}


def search_by_model(data: EvaluationSet, transform: Transform) -> dict[str, RankedReferences]:
    """Search every model's queries: model → the best references."""
    return {model: data.search(transform, model) for model in data.models}


def row(data: EvaluationSet, name: str, results: dict[str, RankedReferences]) -> Row:
    """Return a method's row: `seen_map`, `seen_acc`, and the means over unseen models."""
    seen = evaluation_sets.closed_set(results[data.seen])
    values: Row = {"method": name, "seen_map": seen["map"], "seen_acc": seen["acc"]}
    for key, what in (("map", "precision"), ("acc", "correct")):
        values[f"unseen_{key}"] = _mean_of([(getattr(results[m], what), results[m]) for m in data.unseen])
    return values


def _mean_of(parts: Sequence[tuple[Any, RankedReferences]]) -> Measure:
    """Return the mean over models; queries of one photo by several models are resampled together."""
    values = np.concatenate([x / len(x) for x, _ in parts])
    photos = np.concatenate([results.queries.photos for _, results in parts])
    return evaluation_sets.mean(values * len(values) / len(parts), photos)


COLUMNS = (
    Column("method"),
    Column("seen_map", "seen mAP %", percent=True),
    Column("seen_acc", "seen Acc %", percent=True),
    Column("unseen_map", "unseen mAP %", percent=True),
    Column("unseen_acc", "unseen Acc %", percent=True),
)


def bars(rows: Sequence[Row]) -> plots.Bars:
    """Plot the mAP of methods, seen and unseen side by side."""
    values, low, high = _both_sides(rows)
    return plots.Bars([r["method"] for r in rows], values, "mAP, %", low, high)


def _both_sides(rows: Sequence[Row]) -> Iterator[plots.Series]:
    """Return the mAP of rows on seen and unseen models, as `in_percent`."""
    sides = {"seen model": "seen_map", "unseen models": "unseen_map"}
    return in_percent({side: [r[key] for r in rows] for side, key in sides.items()})


def in_percent(series: Mapping[str, Sequence[Measure]]) -> Iterator[plots.Series]:
    """Yield measures by name as a plot takes them, in %: values, then lower and upper ends."""
    for end in ("value", "low", "high"):
        yield {name: [percent(getattr(m, end)) for m in measures] for name, measures in series.items()}


def percent(value: float | None) -> float | None:
    """Return a share in %; None stays None."""
    return None if value is None else 100 * value


def described(data: EvaluationSet) -> str:
    """Describe the data of the closed set."""
    queries = len(data.queries(data.seen).latents)
    return (
        f"W is trained on translations by {data.seen}. Each model ({', '.join(data.models)}) made "
        f"{queries:,} test translations, which are looked up among {len(data.references):,} pictures. No "
        "photo and no prompt of the test was trained on."
    )


def compare(methods: Methods, transforms: Iterable[tuple[str, Transform]]) -> Result:
    """Return a table of transforms on one evaluation set."""
    started = time.monotonic()
    rows = [row(methods.data, label, search_by_model(methods.data, w)) for label, w in transforms]
    return _closed(methods.data, started, rows)


def _closed(data: EvaluationSet, started: float, rows: list[Row], plot: plots.Plot | None = None) -> Result:
    return Result(rows, described(data), time.monotonic() - started, COLUMNS, plot or bars(rows))


@experiment("t3", "Tables 3 and 10: seen and unseen models, and costs", place=10)
def table_3(methods: Methods) -> Result:
    """Measure Tables 3 and 10: the methods by model, and their costs."""
    started = time.monotonic()
    data = methods.data
    trained = {
        "Embeddings of VAE": methods.raw(),
        "W, the paper's recipe": methods.recipe(data.seen),
        "W, closed form": methods.closed(data.seen),
        "W, both": methods.both(data.seen),
    }
    clock = Clock(data)
    results = {name: search_by_model(data, w) for name, w in trained.items()}
    tuned = {name: search_by_model(data.by(name), methods.raw()) for name in data.tuned()}
    rows = [_of_tuned(data.by(name), f) for name, f in tuned.items()]
    rows += [
        row(data, name, results[name]) | clock.costs(w, methods.seconds(w)) for name, w in trained.items()
    ]
    rows += _upper(methods, clock)
    by_model = [
        {"method": name} | {f"{m}_map": evaluation_sets.closed_set(f[m])["map"] for m in data.models}
        for name, f in (tuned | results).items()
    ]
    gains = _gains(data, results)
    return Result(
        rows,
        described(data),
        time.monotonic() - started,
        (*COLUMNS, *costs.COLUMNS),
        bars(rows),
        [
            *gains,
            "`Upper` is trained on the unseen model itself and has no result for the seen one.",
            costs.NOTE,
            _on_tuned(data),
        ],
        {"by_model": [_plain(r) for r in by_model]},
    )


def _plain(values: Row) -> Row:
    return {k: v.value if isinstance(v, Measure) else v for k, v in values.items()}


def _gains(data: EvaluationSet, results: dict[str, dict[str, RankedReferences]]) -> list[str]:
    """Compare each method with the one above it, on unseen models."""
    names = list(results)
    sentences = []
    for first, second in zip(names[1:], names, strict=False):
        for model in data.unseen:
            d = evaluation_sets.difference(results[first][model], results[second][model])
            assert d.value is not None and d.low is not None and d.high is not None
            sentences.append(
                f"{model}: mAP of “{first}” minus mAP of “{second}” is {100 * d.value:+.1f} points (95% "
                f"interval {100 * d.low:+.1f} to {100 * d.high:+.1f})."
            )
    return sentences


def _of_tuned(data: EvaluationSet, results: dict[str, RankedReferences]) -> Row:
    """Return the row of a backbone that was trained on pictures, without a W."""
    name = f"Tuned backbone, {data.encoder.removeprefix(TUNED)}"
    return row(data, name, results) | Clock(data).costs(Transform(), costs.tuning_seconds(data))


def _on_tuned(data: EvaluationSet) -> str:
    """Say what the rows of tuned backbones are, and which of the paper's are missing."""
    if not data.tuned():
        return "The paper's fine-tuned and generalizable models need weights from a hub and did not run."
    scratch = [name for name in data.tuned() if SCRATCH in name]
    random = (
        f" {', '.join(scratch)} started from random weights, and the paper's from pretrained ones."
        * bool(scratch)
    )
    return (
        "Tuned backbones are whole networks trained on the same pictures (`id2 finetune`), the paper's "
        f"similarity-based models.{random} The paper's generalizable models did not run."
    )


def _upper(methods: Methods, clock: Clock) -> list[Row]:
    """Return rows of Ws trained on the unseen model itself, where it has training translations."""
    data, rows = methods.data, []
    for model in data.unseen:
        if not data.has(f"train-{model}"):
            continue
        for name, w in (
            ("recipe", methods.recipe(model)),
            ("closed form", methods.closed(model)),
            ("both", methods.both(model)),
        ):
            measured = evaluation_sets.closed_set(data.search(w, model))
            rows.append(
                {
                    "method": f"Upper, {name} on {model}",
                    "seen_map": Measure(None),
                    "seen_acc": Measure(None),
                    "unseen_map": measured["map"],
                    "unseen_acc": measured["acc"],
                }
                | clock.costs(w, methods.seconds(w))
            )
    return rows


@experiment("t5", "Table 5: encoders", place=70)
def table_5(methods: Methods) -> Result | Skipped:
    """Measure Table 5: other VAEs as encoders, each with a W of its own."""
    data = methods.data
    others = [name for name in data.encoders() if data.by(name).has("train", f"train-{data.seen}")]
    if not others:
        return Skipped("no other VAE has embedded the data (`id2 experiment data --encoder …`)")
    started = time.monotonic()
    rows = []
    for name in ("", *others):
        own = Methods(data.by(name), methods.out / name if name else methods.out, methods.passes)
        label = name or data.ids["encoder_id"].rsplit("-", 1)[0]
        for kind, w in (("closed form", own.closed(data.seen)), ("recipe", own.recipe(data.seen))):
            rows.append(row(own.data, f"{label}, {kind}", search_by_model(own.data, w)))
    return _closed(data, started, rows)


@experiment("t6", "Table 6: losses", place=80)
def table_6(methods: Methods) -> Result:
    """Measure Table 6: losses."""
    seen = methods.data.seen
    runs = (
        (label, methods.recipe(seen, GradientConfig(loss=loss), "recipe" if loss == "cosface" else loss))
        for loss, label in LOSS_NAMES.items()
    )
    return compare(methods, runs)


@experiment("t7", "Table 7 and Figure 9: linear and non-linear transformations", place=90)
def table_7(methods: Methods) -> Result | Skipped:
    """Measure Table 7 and Figure 9: heads; the figure is the row of MLPs."""
    started = time.monotonic()
    data = methods.data
    try:
        _check_heads(data.references.shape[1])
    except TransformError as error:
        return Skipped(f"not all heads take these latents: {error}")
    rows = {kind: row(data, kind, search_by_model(data, _head(methods, kind))) for kind in heads.ALL}
    layers = [rows[kind] for kind in heads.MLP]
    values, low, high = _both_sides(layers)
    figure_9 = plots.Lines(list(range(1, len(layers) + 1)), values, "layers", "mAP, %", low, high)
    others = bars([values_of_kind for kind, values_of_kind in rows.items() if kind not in heads.MLP])
    plot = plots.Panels({"linear, convolution, attention": others, "MLPs (Figure 9)": figure_9})
    return _closed(data, started, list(rows.values()), plot)


def _check_heads(n: int) -> None:
    """Raise TransformError before hours of training; heads on the meta device take no memory."""
    with torch.device("meta"):
        for kind in heads.ALL:
            heads.build(kind, n, GradientConfig().dimensions)


def _head(methods: Methods, kind: HeadKind) -> Transform:
    name = "recipe" if kind == heads.LINEAR else kind
    return methods.recipe(methods.data.seen, GradientConfig(head=kind), name)


@experiment("f8", "Figure 8: the rank of W", place=110)
def figure_8(methods: Methods) -> Result:
    """Measure Figure 8: the rank of W, in closed form."""
    data = methods.data
    started = time.monotonic()
    rows = [
        {"m": m} | row(data, "closed form", search_by_model(data, methods.closed(data.seen, m)))
        for m in RANKS
    ]
    values, low, high = _both_sides(rows)
    return Result(
        rows,
        described(data),
        time.monotonic() - started,
        (Column("m"), *COLUMNS[1:]),
        plots.Lines(list(RANKS), values, "columns of W", "mAP, %", low, high, logarithmic=True),
    )
