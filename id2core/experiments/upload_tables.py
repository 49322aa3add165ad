"""Uploads as they come: how each edit of a copy or a translation is found, and at what false-positive rate.

Photos are disjoint from those that a W, a VAE or a diffusion model was trained on. The tables show the split
`TESTED`; views, factors and the like are chosen on `VALIDATION`:

    rows = upload_tables.closed_rows(methods, UploadSet(methods.data), VALIDATION)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from id2core.errors import CalibrationError
from id2core.evaluation.metrics import Measure
from id2core.experiments import evaluation_sets, plots, upload_matchers
from id2core.experiments import upload_views as upload_views  # adds its matchers
from id2core.experiments.closed_sets import in_percent
from id2core.experiments.declaration import experiment
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.experiments.upload_matchers import Matcher
from id2core.experiments.upload_sets import COPY, TESTED, Uploads, UploadSet
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Threshold

MATCH, REVIEW = 0.02, 0.1
UNLIKE = "Edits draw their parameters anew for each picture; see docs/experiments.md for the ranges."


@experiment("uploads", "Uploads as they come: closed set", place=103)
def closed(methods: Methods) -> Result | Skipped:
    """Measure mAP and Acc of copies and translations by edit."""
    started = time.monotonic()
    uploads = UploadSet(methods.data, methods.progress)
    if reason := uploads.missing():
        return Skipped(reason)
    rows = closed_rows(methods, uploads)
    return Result(
        rows,
        described(uploads),
        time.monotonic() - started,
        (
            Column("edit", merge=True),
            Column("method"),
            *columns(uploads, {"acc": "Acc", "map": "mAP"}),
        ),
        plot(rows, uploads, "acc", "Acc, %"),
        [UNLIKE],
    )


@experiment("uploads-open", "Uploads as they come: half of the uploads without origin", place=106)
def opened(methods: Methods) -> Result | Skipped:
    """Measure µAP by edit, and what is found at a stated false-positive rate, with the rate measured."""
    started = time.monotonic()
    uploads = UploadSet(methods.data, methods.progress)
    if reason := uploads.missing():
        return Skipped(reason)
    rows, thresholds = open_rows(methods, uploads)
    return Result(
        rows,
        described(uploads) + " An upload without origin is the same upload, searched among the references "
        "without its origin.",
        time.monotonic() - started,
        (
            Column("edit", merge=True),
            Column("method"),
            *columns(uploads, {"micro_ap": "µAP", "found": "found", "rate": "false"}),
        ),
        plot(rows, uploads, "found", f"origins found at a stated rate of {MATCH:.0%}, %"),
        [
            f"“found” is the share of uploads whose origin is first and above the threshold for a "
            f"false-positive rate of {MATCH:.0%}; “false” is the rate measured on the same uploads without "
            "their origin.",
            *_on_thresholds(thresholds),
            *_pooled_rates(rows, uploads),
            UNLIKE,
        ],
        {"thresholds": {name: held.facts() for name, held in thresholds.items()}},
    )


def closed_rows(methods: Methods, uploads: UploadSet, split: str = TESTED) -> list[Row]:
    """Return a row of each edit and matcher: KIND_map and KIND_acc of each kind of uploads."""
    chosen = [m for m in upload_matchers.build_all(methods, uploads) if not m.shifted]
    return _rows(chosen, uploads, split, measure_closed)


def open_rows(
    methods: Methods, uploads: UploadSet, split: str = TESTED
) -> tuple[list[Row], dict[str, Thresholds]]:
    """Return a row of each edit and matcher, and the thresholds by matcher.

    A row has, of each kind, KIND_micro_ap, KIND_found and KIND_rate at the threshold that was set on edited
    uploads, and KIND_found_untouched and KIND_rate_untouched at the one set on untouched uploads.
    """
    chosen = list(upload_matchers.build_all(methods, uploads))
    thresholds = {matcher.name: Thresholds.of(matcher, uploads) for matcher in chosen}

    def measures(matcher: Matcher, asked: Uploads) -> dict[str, Measure]:
        return measure_open(matcher, asked, thresholds[matcher.name])

    return _rows(chosen, uploads, split, measures), thresholds


def _rows(
    chosen: list[Matcher],
    uploads: UploadSet,
    split: str,
    measures: Callable[[Matcher, Uploads], dict[str, Measure]],
) -> list[Row]:
    rows = []
    for edit in uploads.edits:
        asked = {kind: uploads.of(edit, kind, split) for kind in uploads.kinds}
        count = len(asked[COPY].sources.uris)
        for matcher in chosen:
            row: Row = {"edit": edit.name, "method": matcher.name, "uploads": count}
            for kind, those in asked.items():
                row |= {f"{kind}_{key}": value for key, value in measures(matcher, those).items()}
            rows.append(row)
    return rows


def measure_closed(matcher: Matcher, asked: Uploads) -> dict[str, Measure]:
    """Return `map` and `acc` of uploads that all have an origin."""
    return evaluation_sets.closed_set(upload_matchers.ranked(matcher.scores(asked), asked.queries))


def measure_open(matcher: Matcher, asked: Uploads, thresholds: Thresholds) -> dict[str, Measure]:
    """Return `micro_ap`, and `found` and `rate` at each threshold, of uploads with and without origin."""
    count, photos = len(asked.sources.uris), asked.sources.photos
    both = upload_matchers.with_and_without(matcher.scores(asked), asked.queries)
    top = both.scores[:, 0]
    pooled = evaluation_sets.open_set([(both, np.zeros(2 * count))])
    measures = {"micro_ap": pooled["micro_ap"]}
    for end, held in (("", thresholds.edited), ("_untouched", thresholds.untouched)):
        reached = top >= (held.score if held else np.inf)
        found, false = reached[:count] & (both.ranks[:count] == 1), reached[count:]
        measures[f"found{end}"] = _share(found, photos) if held else Measure(None)
        measures[f"rate{end}"] = _share(false, photos) if held else Measure(None)
    return measures


def _share(hits: NDArray[np.bool_], photos: NDArray[np.int64]) -> Measure:
    return evaluation_sets.mean(hits.astype(np.float64), photos)


@dataclass(frozen=True)
class Thresholds:
    """From which score an upload is a match, by the uploads that this was set on.

    Attributes:
        edited: on uploads of every edit; None where there are too few uploads without origin.
        untouched: on uploads as they are.
    """

    edited: Threshold | None
    untouched: Threshold | None

    @classmethod
    def of(cls, matcher: Matcher, uploads: UploadSet) -> Thresholds:
        """Set thresholds for the stated rate on calibration uploads, one of each photo."""
        return cls(*(_threshold(matcher, uploads, edited) for edited in (True, False)))

    def facts(self) -> dict[str, object]:
        """Return them for the facts of a result."""
        return {
            name: held.model_dump(exclude={"tail"}) if held else None
            for name, held in (("edited", self.edited), ("untouched", self.untouched))
        }


def _threshold(matcher: Matcher, uploads: UploadSet, edited: bool) -> Threshold | None:
    parts = uploads.calibration(edited=edited)
    if not parts:
        return None
    best = np.concatenate([matcher.scores(part).max(axis=1) for part in parts])
    try:
        return calibration.calibrate(
            best,
            match=MATCH,
            review=REVIEW,
            references=len(uploads.references),
            ids=uploads.data.ids | {"transform_id": matcher.name},
        ).match
    except CalibrationError:  # too few uploads: the columns stay empty, and a note says so
        return None


def described(uploads: UploadSet) -> str:
    """Describe the uploads."""
    sources = uploads.sources(COPY, TESTED)
    return (
        f"Each of {len(sources.uris)} photos is uploaded with each edit as a copy and as a translation by "
        f"each model ({', '.join(uploads.data.models)}), one of each, as JPEG of its full size. Uploads are "
        f"looked up among {len(uploads.references):,} pictures. No W, VAE or diffusion model was trained on "
        "these photos, and nothing was chosen on them."
    )


def columns(uploads: UploadSet, titles: dict[str, str]) -> list[Column]:
    """Return a column for each kind of uploads and each measure, key → title."""
    return [
        Column(f"{kind}_{key}", f"{kind}: {title} %", percent=True)
        for kind in uploads.kinds
        for key, title in titles.items()
    ]


def plot(rows: list[Row], uploads: UploadSet, key: str, label: str, by: str = "edit") -> plots.Bars:
    """Plot a measure of the last method by edit, or another column, one bar for each kind of uploads."""
    last = [row for row in rows if row["method"] == rows[-1]["method"]]
    measures = {kind: [row[f"{kind}_{key}"] for row in last] for kind in uploads.kinds}
    values, low, high = in_percent(measures)
    return plots.Bars([row[by] for row in last], values, f"{label} ({last[0]['method']})", low, high)


def _on_thresholds(thresholds: dict[str, Thresholds]) -> list[str]:
    """Say what the thresholds were set on, and which rates they state."""
    held = [one.edited for one in thresholds.values() if one.edited]
    if not held:
        return [
            "There are no calibration uploads, or too few: nothing is said about a threshold. It takes "
            f"{calibration.required_queries(MATCH)} calibration photos."
        ]
    return [
        "Thresholds are set on uploads of other photos, which have no origin among the references: one of "
        "each photo, a copy or a translation by one of the models, each with one edit. The edits take turns. "
        "The encoder and the translation models may have been trained on these photos. The thresholds state "
        f"{100 * held[0].target:.0f}% with a 95% interval of {100 * held[0].low:.2f} to "
        f"{100 * held[0].high:.2f}%. The Parquet file also has what thresholds give that were set on "
        "untouched uploads (`…_untouched`)."
    ]


def _pooled_rates(rows: list[Row], uploads: UploadSet) -> list[str]:
    """Say how often each method is wrong over all edits and kinds, by both thresholds."""
    sentences = []
    for name in dict.fromkeys(row["method"] for row in rows):
        rates = {
            end: [
                row[f"{kind}_rate{end}"].value
                for row in rows
                if row["method"] == name
                for kind in uploads.kinds
            ]
            for end in ("", "_untouched")
        }
        if None in rates[""] or None in rates["_untouched"]:
            continue
        sentences.append(
            f"“{name}” gives {np.mean(rates['']):.2%} of all these uploads without origin a false positive, "
            f"and {np.mean(rates['_untouched']):.2%} at the threshold that was set on untouched uploads. "
            f"{_worst_cell(rows, name, uploads)}"
        )
    return sentences


def _worst_cell(rows: list[Row], name: str, uploads: UploadSet) -> str:
    """Say where a method is wrong most often: a stated rate holds for the mix of edits and kinds."""
    cells = [
        (row[f"{kind}_rate"].value, row, kind)
        for row in rows
        if row["method"] == name
        for kind in uploads.kinds
    ]
    value, row, kind = max(cells, key=lambda cell: cell[0])
    return f"Of single edits, {row['edit']} by {kind} has the most, {value:.1%}."
