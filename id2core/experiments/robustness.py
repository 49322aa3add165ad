"""Figure 7, Table 8, Table 11 and manual edits: queries that were attacked, or made in other ways."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from id2core.encoders.base import Encoder
from id2core.evaluation.metrics import Measure
from id2core.experiments import attacks, plots
from id2core.experiments import evaluation_sets as benches
from id2core.experiments.closed_sets import described, in_percent, percent
from id2core.experiments.evaluation_sets import TEST, Bench, Queries
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Skipped
from id2core.transforms.linear import Transform

STRENGTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))
PARADIGMS = ("edict", "plug-and-play", "instruct-pix2pix", "ip-adapter")
MANUAL = "manual"
_ATTACKED = 250
_AT_ONCE = 64


def figure_7(methods: Methods) -> Result | Skipped:
    """mAP of attacked queries, by kind and intensity of the attack, with W and without."""
    started = time.monotonic()
    bench, network = methods.bench, methods.bench.network()
    if network is None:
        return Skipped(f"the encoder of the latents, {bench.ids['encoder_id']}, is not here to encode with")
    files = [uri for model in bench.models for uri in _pictures(bench, model)[0]]
    if gone := next((uri for uri in files if not Path(uri).is_file()), None):
        return Skipped(f"pictures of the test are not there, for example {gone}")
    transforms = {"closed form": methods.closed(bench.seen), "VAE": methods.raw()}
    rows = [row for model in bench.models for row in _attacked(bench, model, network, transforms)]
    return Result(
        rows,
        f"{described(bench)} Of the test, {_ATTACKED} translations by each model, attacked.",
        time.monotonic() - started,
        (
            Column("kind", merge=True),
            Column("attack"),
            Column("model"),
            *(Column(name, f"mAP %, {name}", percent=True) for name in transforms),
        ),
        _panels(rows, list(transforms)),
    )


def _panels(rows: list[dict[str, Any]], names: list[str]) -> plots.Panels:
    """A panel for each kind of attack of the paper's figure, by intensity."""
    panels: dict[str, plots.Bars | plots.Lines | plots.Histograms] = {}
    for kind in attacks.FIGURE_7:
        some = [r for r in rows if r["kind"] == kind]
        intensities = list(dict.fromkeys(r["attack"].removeprefix(f"{kind}-") for r in some))
        lines = {
            f"{name}, {model}": [percent(r[name].value) for r in some if r["model"] == model]
            for name in names
            for model in dict.fromkeys(r["model"] for r in some)
        }
        panels[kind] = plots.Lines(intensities, lines, "intensity", "mAP, %")
    return plots.Panels(panels)


def _attacked(
    bench: Bench, model: str, network: Encoder, transforms: dict[str, Transform]
) -> Iterator[dict[str, Any]]:
    pictures, origins, photos = _pictures(bench, model)
    table = {kind: ("none", *(a.name for a in row)) for kind, row in attacks.FIGURE_7.items()}
    table |= {kind: tuple(a.name for a in row) for kind, row in attacks.BEYOND_FIGURE_7.items()}
    untouched: dict[str, Measure] = {}
    for kind, names in table.items():
        for name in names:
            if name != "none" or not untouched:
                latents = _encode(pictures, network, name)
                queries = Queries(latents, origins, photos)
                found = {k: benches.find(w, queries, bench.references) for k, w in transforms.items()}
                measured = {k: benches.closed_set(f)["map"] for k, f in found.items()}
                untouched = untouched or measured
            yield {"kind": kind, "attack": name, "model": model} | (untouched if name == "none" else measured)


def _pictures(bench: Bench, model: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Files of some test translations, with rows of their origins and numbers of their photos."""
    uris, queries = bench.uris(f"{TEST}-{model}"), bench.queries(model)
    step = max(1, len(uris) // _ATTACKED)
    some = slice(0, step * _ATTACKED, step)
    return uris[some], queries.origins[some], queries.photos[some]


def _encode(files: list[str], network: Encoder, attack: str) -> NDArray[np.float16]:
    """Latents of attacked pictures, float16[Q,n]; they go through no file again."""
    size = network.preprocess.size

    def load(file: str) -> NDArray[np.uint8]:
        with Image.open(file) as image:
            picture = image.convert("RGB")
        changed = picture if attack == "none" else attacks.apply(attack, picture)
        return np.asarray(changed.resize((size, size), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(2) as pool:
        parts = [
            network.encode(np.stack(list(pool.map(load, files[i : i + _AT_ONCE]))))
            for i in range(0, len(files), _AT_ONCE)
        ]
    return np.concatenate(parts)


def table_8(methods: Methods) -> Result | Skipped:
    """mAP and Acc by editing strength."""
    bench = methods.bench
    there = [(s, model) for s in STRENGTHS for model in bench.models if bench.has(f"strength-{s}-{model}")]
    if not there:
        return Skipped("no translations of several strengths are there")
    started = time.monotonic()
    transforms = {"closed form": methods.closed(bench.seen), "recipe": methods.recipe(bench.seen)}
    transforms["VAE"] = methods.raw()
    measured = {
        (s, model, name): benches.closed_set(bench.find(w, model, f"strength-{s}"))
        for s, model in there
        for name, w in transforms.items()
    }
    rows: list[dict[str, Any]] = [
        {"strength": s, "model": model, "method": name} | found
        for (s, model, name), found in measured.items()
    ]
    strengths = sorted({s for s, _ in there})
    series = {
        f"{name}, {model}": [_percent(measured.get((s, model, name))) for s in strengths]
        for name in ("closed form", "VAE")
        for model in bench.models
    }
    queries = len(bench.queries(bench.seen, f"strength-{strengths[0]}").latents)
    return Result(
        rows,
        f"{queries} test photos by each model and strength among {len(bench.references):,} pictures.",
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


def _percent(found: dict[str, Measure] | None) -> float | None:
    return percent(found["map"].value) if found else None


def table_11(methods: Methods) -> Result | Skipped:
    """Other paradigms of translation."""
    return _other_queries(methods, PARADIGMS, "no translations by another paradigm are there")


def manual_edits(methods: Methods) -> Result | Skipped:
    """Edits by people (Table 3, right)."""
    return _other_queries(methods, (MANUAL,), "SEED-Data-Edit is not there")


def _other_queries(methods: Methods, kinds: tuple[str, ...], reason: str) -> Result | Skipped:
    bench = methods.bench
    there = [kind for kind in kinds if bench.has(f"{TEST}-{kind}")]
    if not there:
        return Skipped(reason)
    started = time.monotonic()
    rows = [
        {
            "queries": kind,
            "method": label,
            "of": len(bench.queries(kind).latents),
        }
        | benches.closed_set(bench.find(w, kind))
        for kind in there
        for label, w in (
            ("Embeddings of VAE", methods.raw()),
            ("W, the paper's recipe", methods.recipe(bench.seen)),
            ("W, closed form", methods.closed(bench.seen)),
        )
    ]
    missing = [kind for kind in kinds if kind not in there]
    return Result(
        rows,
        f"Looked up among {len(bench.references):,} pictures.",
        time.monotonic() - started,
        (
            Column("queries", merge=True),
            Column("method"),
            Column("of", "queries"),
            Column("map", "mAP %", percent=True),
            Column("acc", "Acc %", percent=True),
        ),
        _by_kind(rows),
        notes=[f"Not there: {', '.join(missing)}."] if missing else [],
    )


def _by_kind(rows: list[dict[str, Any]]) -> plots.Bars:
    """mAP of each kind of queries, one bar a method."""
    kinds, names = (list(dict.fromkeys(r[key] for r in rows)) for key in ("queries", "method"))
    measures = {name: [r["map"] for r in rows if r["method"] == name] for name in names}
    values, low, high = in_percent(measures)
    return plots.Bars(kinds, values, "mAP, %", low, high)
