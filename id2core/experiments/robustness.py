"""Figure 7, Table 8, Table 11 and manual edits: queries that were attacked, or made in other ways."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from id2core.encoders.base import Encoder
from id2core.evaluation.metrics import Measure
from id2core.experiments import attacks, evaluation_sets, plots
from id2core.experiments.closed_sets import described, in_percent, percent
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import TEST, EvaluationSet, Queries
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.transforms.linear import Transform

STRENGTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))
PARADIGMS = ("edict", "plug-and-play", "instruct-pix2pix", "ip-adapter")
MANUAL = "manual"
_ATTACKED = 250
BATCH_ROWS = 64


@experiment("f7", "Figure 7: attacked queries", place=100)
def figure_7(methods: Methods) -> Result | Skipped:
    """Measure Figure 7: mAP of attacked queries by kind and intensity, with and without W."""
    started = time.monotonic()
    data, network = methods.data, methods.data.network()
    if network is None:
        return Skipped(f"the encoder of the latents, {data.ids['encoder_id']}, is missing")
    files = [uri for model in data.models for uri in _pictures(data, model)[0]]
    if lost := next((uri for uri in files if not Path(uri).is_file()), None):
        return Skipped(f"pictures of the test are missing, for example {lost}")
    transforms = {"closed form": methods.closed(data.seen), "VAE": methods.raw()}
    rows = [row for model in data.models for row in _attacked(data, model, network, transforms)]
    return Result(
        rows,
        f"{described(data)} Attacks are on {_ATTACKED} of the test translations by each model.",
        time.monotonic() - started,
        (
            Column("kind", merge=True),
            Column("attack"),
            Column("model"),
            *(Column(name, f"mAP %, {name}", percent=True) for name in transforms),
        ),
        _panels(rows, list(transforms)),
    )


def _panels(rows: list[Row], names: list[str]) -> plots.Panels:
    """Plot a panel for each kind of attack of the paper's figure, by intensity."""
    panels: dict[str, plots.Bars | plots.Lines | plots.Histograms] = {}
    for kind in attacks.FIGURE_7:
        of_kind = [r for r in rows if r["kind"] == kind]
        intensities = list(dict.fromkeys(r["attack"].removeprefix(f"{kind}-") for r in of_kind))
        lines = {
            f"{name}, {model}": [percent(r[name].value) for r in of_kind if r["model"] == model]
            for name in names
            for model in dict.fromkeys(r["model"] for r in of_kind)
        }
        panels[kind] = plots.Lines(intensities, lines, "intensity", "mAP, %")
    return plots.Panels(panels)


def _attacked(
    data: EvaluationSet, model: str, network: Encoder, transforms: dict[str, Transform]
) -> Iterator[Row]:
    pictures, origins, photos = _pictures(data, model)
    table = {kind: ("none", *(a.name for a in row)) for kind, row in attacks.FIGURE_7.items()}
    table |= {kind: tuple(a.name for a in row) for kind, row in attacks.BEYOND_FIGURE_7.items()}
    untouched: dict[str, Measure] = {}
    for kind, names in table.items():
        for name in names:
            if name != "none" or not untouched:
                latents = _encode(pictures, network, name)
                queries = Queries(latents, origins, photos)
                results = {
                    k: evaluation_sets.search(w, queries, data.references) for k, w in transforms.items()
                }
                measured = {k: evaluation_sets.closed_set(f)["map"] for k, f in results.items()}
                untouched = untouched or measured
            yield {"kind": kind, "attack": name, "model": model} | (untouched if name == "none" else measured)


def _pictures(data: EvaluationSet, model: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Return files of test translations, rows of their origins, and numbers of their photos."""
    uris, queries = data.uris(f"{TEST}-{model}"), data.queries(model)
    step = max(1, len(uris) // _ATTACKED)
    subset = slice(0, step * _ATTACKED, step)
    return uris[subset], queries.origins[subset], queries.photos[subset]


def _encode(files: list[str], network: Encoder, attack: str) -> NDArray[np.float16]:
    """Attack and encode pictures: latents float16[Q,n]."""
    size = network.preprocess.size

    def load(file: str) -> NDArray[np.uint8]:
        with Image.open(file) as image:
            picture = image.convert("RGB")
        changed = picture if attack == "none" else attacks.apply(attack, picture)
        return np.asarray(changed.resize((size, size), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(2) as pool:
        parts = [
            network.encode(np.stack(list(pool.map(load, files[i : i + BATCH_ROWS]))))
            for i in range(0, len(files), BATCH_ROWS)
        ]
    return np.concatenate(parts)


@experiment("t8", "Table 8: editing strengths", place=120)
def table_8(methods: Methods) -> Result | Skipped:
    """Measure Table 8: mAP and Acc by editing strength."""
    data = methods.data
    pairs = [(s, model) for s in STRENGTHS for model in data.models if data.has(f"strength-{s}-{model}")]
    if not pairs:
        return Skipped("translations of several strengths are missing")
    started = time.monotonic()
    transforms = {"closed form": methods.closed(data.seen), "recipe": methods.recipe(data.seen)}
    transforms["VAE"] = methods.raw()
    measured = {
        (s, model, name): evaluation_sets.closed_set(data.search(w, model, f"strength-{s}"))
        for s, model in pairs
        for name, w in transforms.items()
    }
    rows: list[Row] = [
        {"strength": s, "model": model, "method": name} | measures
        for (s, model, name), measures in measured.items()
    ]
    strengths = sorted({s for s, _ in pairs})
    series = {
        f"{name}, {model}": [_percent(measured.get((s, model, name))) for s in strengths]
        for name in ("closed form", "VAE")
        for model in data.models
    }
    queries = len(data.queries(data.seen, f"strength-{strengths[0]}").latents)
    return Result(
        rows,
        f"{queries} test photos, translated by each model at each strength, are looked up among "
        f"{len(data.references):,} pictures.",
        time.monotonic() - started,
        (
            Column("strength", digits=1, merge=True),
            Column("model", merge=True),
            Column("method"),
            Column("map", "mAP %", percent=True),
            Column("acc", "Acc %", percent=True),
        ),
        plots.Lines(strengths, series, "strength", "mAP, %"),
    )


def _percent(measures: dict[str, Measure] | None) -> float | None:
    return percent(measures["map"].value) if measures else None


@experiment("t11", "Table 11: other paradigms", place=130)
def table_11(methods: Methods) -> Result | Skipped:
    """Measure Table 11: other paradigms of translation."""
    return _other_queries(methods, PARADIGMS, "translations by other paradigms are missing")


@experiment("manual", "Manual edits (Table 3, right)", place=140)
def manual_edits(methods: Methods) -> Result | Skipped:
    """Measure edits by people (Table 3, right)."""
    return _other_queries(methods, (MANUAL,), "SEED-Data-Edit is missing")


def _other_queries(methods: Methods, kinds: tuple[str, ...], reason: str) -> Result | Skipped:
    data = methods.data
    measured = [kind for kind in kinds if data.has(f"{TEST}-{kind}")]
    if not measured:
        return Skipped(reason)
    started = time.monotonic()
    rows = [
        {
            "queries": kind,
            "method": label,
            "of": len(data.queries(kind).latents),
        }
        | evaluation_sets.closed_set(data.search(w, kind))
        for kind in measured
        for label, w in (
            ("Embeddings of VAE", methods.raw()),
            ("W, the paper's recipe", methods.recipe(data.seen)),
            ("W, closed form", methods.closed(data.seen)),
        )
    ]
    missing = [kind for kind in kinds if kind not in measured]
    return Result(
        rows,
        f"Queries are looked up among {len(data.references):,} pictures.",
        time.monotonic() - started,
        (
            Column("queries", merge=True),
            Column("method"),
            Column("of", "queries"),
            Column("map", "mAP %", percent=True),
            Column("acc", "Acc %", percent=True),
        ),
        _by_kind(rows),
        notes=[f"Missing: {', '.join(missing)}."] if missing else [],
    )


def _by_kind(rows: list[Row]) -> plots.Bars:
    """Plot the mAP of each kind of queries, one bar a method."""
    kinds, names = (list(dict.fromkeys(r[key] for r in rows)) for key in ("queries", "method"))
    measures = {name: [r["map"] for r in rows if r["method"] == name] for name in names}
    values, low, high = in_percent(measures)
    return plots.Bars(kinds, values, "mAP, %", low, high)
