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
from id2core.experiments import costs, plots
from id2core.experiments import evaluation_sets as benches
from id2core.experiments.costs import Clock
from id2core.experiments.evaluation_sets import TUNED, Bench, Found
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Skipped
from id2core.training.recipe import Recipe
from id2core.transforms import heads
from id2core.transforms.linear import Transform

RANKS = (16, 32, 64, 128, 256, 512)
LOSS_NAMES = {"softmax": "SoftMax", "circle": "Circle loss", "cosface": "CosFace"}


def found_by(bench: Bench, transform: Transform) -> dict[str, Found]:
    """Model → what a transform finds for its queries."""
    return {model: bench.find(transform, model) for model in bench.models}


def row(bench: Bench, name: str, found: dict[str, Found]) -> dict[str, Any]:
    """A method's row: `seen_map`, `seen_acc`, and the means over unseen models."""
    seen = benches.closed_set(found[bench.seen])
    values: dict[str, Any] = {"method": name, "seen_map": seen["map"], "seen_acc": seen["acc"]}
    for key, what in (("map", "precision"), ("acc", "correct")):
        values[f"unseen_{key}"] = _mean_of([(getattr(found[m], what), found[m]) for m in bench.unseen])
    return values


def _mean_of(parts: Sequence[tuple[Any, Found]]) -> Measure:
    """The mean over models; where one photo has queries by several, they are resampled together."""
    values = np.concatenate([x / len(x) for x, _ in parts])
    photos = np.concatenate([found.queries.photos for _, found in parts])
    return benches.mean(values * len(values) / len(parts), photos)


COLUMNS = (
    Column("method"),
    Column("seen_map", "seen mAP %", percent=True),
    Column("seen_acc", "seen Acc %", percent=True),
    Column("unseen_map", "unseen mAP %", percent=True),
    Column("unseen_acc", "unseen Acc %", percent=True),
)


def bars(rows: Sequence[dict[str, Any]]) -> plots.Bars:
    """mAP of methods, seen and unseen side by side."""
    values, low, high = _both_sides(rows)
    return plots.Bars([r["method"] for r in rows], values, "mAP, %", low, high)


def _both_sides(rows: Sequence[dict[str, Any]]) -> Iterator[plots.Series]:
    """mAP of rows on seen and unseen models, as `in_percent`."""
    sides = {"seen model": "seen_map", "unseen models": "unseen_map"}
    return in_percent({side: [r[key] for r in rows] for side, key in sides.items()})


def in_percent(series: Mapping[str, Sequence[Measure]]) -> Iterator[plots.Series]:
    """Measures by name as a plot takes them, in %: their values, then lower and upper ends."""
    for end in ("value", "low", "high"):
        yield {name: [percent(getattr(m, end)) for m in found] for name, found in series.items()}


def percent(value: float | None) -> float | None:
    """Of a share; None stays."""
    return None if value is None else 100 * value


def described(bench: Bench) -> str:
    """The data of the closed set in one sentence."""
    queries = len(bench.queries(bench.seen).latents)
    return (
        f"Trained on translations by {bench.seen}; {queries:,} test translations by each of "
        f"{', '.join(bench.models)} looked up among {len(bench.references):,} pictures; no photo and no "
        f"prompt of the test was trained on."
    )


def compare(methods: Methods, transforms: Iterable[tuple[str, Transform]]) -> Result:
    """A table of transforms on one bench."""
    started = time.monotonic()
    rows = [row(methods.bench, label, found_by(methods.bench, w)) for label, w in transforms]
    return _closed(methods.bench, started, rows)


def _closed(
    bench: Bench, started: float, rows: list[dict[str, Any]], plot: plots.Plot | None = None
) -> Result:
    return Result(rows, described(bench), time.monotonic() - started, COLUMNS, plot or bars(rows))


def table_3(methods: Methods) -> Result:
    """Tables 3 and 10: the methods by model, with what they cost."""
    started = time.monotonic()
    bench = methods.bench
    trained = {
        "Embeddings of VAE": methods.raw(),
        "W, the paper's recipe": methods.recipe(bench.seen),
        "W, closed form": methods.closed(bench.seen),
        "W, both": methods.both(bench.seen),
    }
    clock = Clock(bench)
    found = {name: found_by(bench, w) for name, w in trained.items()}
    tuned = {name: found_by(bench.by(name), methods.raw()) for name in bench.tuned()}
    rows = [_of_tuned(bench.by(name), f) for name, f in tuned.items()]
    rows += [
        row(bench, name, found[name]) | clock.costs(w, methods.seconds(w)) for name, w in trained.items()
    ]
    rows += _upper(methods, clock)
    by_model = [
        {"method": name} | {f"{m}_map": benches.closed_set(f[m])["map"] for m in bench.models}
        for name, f in (tuned | found).items()
    ]
    gains = _gains(bench, found)
    return Result(
        rows,
        described(bench),
        time.monotonic() - started,
        (*COLUMNS, *costs.COLUMNS),
        bars(rows),
        [
            *gains,
            "`Upper` is trained on the unseen model itself, and has no column for the seen one.",
            costs.NOTE,
            _on_tuned(bench),
        ],
        {"by_model": [_plain(r) for r in by_model]},
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.value if isinstance(v, Measure) else v for k, v in values.items()}


def _gains(bench: Bench, found: dict[str, dict[str, Found]]) -> list[str]:
    """Each method against the one above it, on unseen models."""
    names = list(found)
    told = []
    for first, second in zip(names[1:], names, strict=False):
        for model in bench.unseen:
            d = benches.difference(found[first][model], found[second][model])
            assert d.value is not None and d.low is not None and d.high is not None
            told.append(
                f"{model}: mAP of “{first}” less that of “{second}”: {100 * d.value:+.1f} points "
                f"(95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f})."
            )
    return told


def _of_tuned(bench: Bench, found: dict[str, Found]) -> dict[str, Any]:
    """The row of a backbone that was trained on pictures, compared as it is."""
    name = f"Tuned backbone, {bench.encoder.removeprefix(TUNED)}"
    seconds = costs.of_tuning(bench).get("seconds")
    return row(bench, name, found) | Clock(bench).costs(Transform(), seconds)


def _on_tuned(bench: Bench) -> str:
    """What the rows of tuned backbones are, and which of the paper's are missing."""
    if not bench.tuned():
        return "What needs weights from a hub, the paper's fine-tuned and generalizable models, did not run."
    scratch = [name for name in bench.tuned() if SCRATCH in name]
    random = f" {', '.join(scratch)} began with random weights, the paper's with pretrained ones." * bool(
        scratch
    )
    return (
        f"Tuned backbones are whole networks trained on the same pictures (`id2 finetune`), the paper's "
        f"similarity-based models.{random} Its generalizable models did not run."
    )


def _upper(methods: Methods, clock: Clock) -> list[dict[str, Any]]:
    """Trained and tested on the same unseen model, where its translations of training photos are there."""
    bench, rows = methods.bench, []
    for model in bench.unseen:
        if not bench.has(f"train-{model}"):
            continue
        for name, w in (
            ("recipe", methods.recipe(model)),
            ("closed form", methods.closed(model)),
            ("both", methods.both(model)),
        ):
            measured = benches.closed_set(bench.find(w, model))
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


def table_5(methods: Methods) -> Result | Skipped:
    """Other VAEs as encoders, each with a W of its own."""
    bench = methods.bench
    others = [name for name in bench.encoders() if bench.by(name).has("train", f"train-{bench.seen}")]
    if not others:
        return Skipped("no other VAE has embedded the data (`id2 experiment data --encoder …`)")
    started = time.monotonic()
    rows = []
    for name in ("", *others):
        own = Methods(bench.by(name), methods.out / name if name else methods.out, methods.passes)
        label = name or bench.ids["encoder_id"].rsplit("-", 1)[0]
        for kind, w in (("closed form", own.closed(bench.seen)), ("recipe", own.recipe(bench.seen))):
            rows.append(row(own.bench, f"{label}, {kind}", found_by(own.bench, w)))
    return _closed(bench, started, rows)


def table_6(methods: Methods) -> Result:
    """Losses."""
    seen = methods.bench.seen
    runs = (
        (label, methods.recipe(seen, Recipe(loss=loss), "recipe" if loss == "cosface" else loss))  # type: ignore[arg-type]
        for loss, label in LOSS_NAMES.items()
    )
    return compare(methods, runs)


def table_7(methods: Methods) -> Result | Skipped:
    """Non-linear heads; Figure 9 is the row of MLPs."""
    started = time.monotonic()
    bench = methods.bench
    try:
        _check_heads(bench.references.shape[1])
    except TransformError as error:
        return Skipped(f"not all heads take these latents: {error}")
    rows = {kind: row(bench, kind, found_by(bench, _head(methods, kind))) for kind in heads.ALL}
    layers = [rows[kind] for kind in heads.MLP]
    values, low, high = _both_sides(layers)
    figure_9 = plots.Lines(list(range(1, len(layers) + 1)), values, "layers", "mAP, %", low, high)
    others = bars([found for kind, found in rows.items() if kind not in heads.MLP])
    plot = plots.Panels({"linear, convolution, attention": others, "MLPs (Figure 9)": figure_9})
    return _closed(bench, started, list(rows.values()), plot)


def _check_heads(n: int) -> None:
    """Fail before hours of training and not after; what is built here has no memory."""
    with torch.device("meta"):
        for kind in heads.ALL:
            heads.build(kind, n, Recipe().dimensions)


def _head(methods: Methods, kind: str) -> Transform:
    return methods.recipe(methods.bench.seen, Recipe(head=kind), "recipe" if kind == heads.LINEAR else kind)


def figure_8(methods: Methods) -> Result:
    """The rank of W, in closed form."""
    bench = methods.bench
    started = time.monotonic()
    rows = [
        {"m": m} | row(bench, "closed form", found_by(bench, methods.closed(bench.seen, m))) for m in RANKS
    ]
    values, low, high = _both_sides(rows)
    return Result(
        rows,
        described(bench),
        time.monotonic() - started,
        (Column("m"), *COLUMNS[1:]),
        plots.Lines(list(RANKS), values, "columns of W", "mAP, %", low, high, logarithmic=True),
    )
