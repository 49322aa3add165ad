"""Hard negatives: other pictures of the same scene among the references (the paper's Appendix E).

The paper's method fails where a wrong reference looks like the origin. Here every origin gets such a
reference: the next frame of a burst, turned by a few degrees or zoomed in by a tenth; a neighboring view,
which shows a part of the scene; or the mirrored picture. They are drawn as the edits of uploads are, and
their latents are kept with those.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from id2core.evaluation.metrics import Measure
from id2core.experiments import evaluation_sets, upload_matchers, upload_tables, upload_views
from id2core.experiments.declaration import experiment
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.experiments.upload_edits import EDITS, UNTOUCHED
from id2core.experiments.upload_matchers import Matcher
from id2core.experiments.upload_sets import COPY, TESTED, Uploads, UploadSet

# What the hard negative of every origin is → the edit that draws it.
NEGATIVES = {
    "burst, turned": "rotated",
    "burst, zoomed": "crop-0.9-off-center",
    "neighbor, three quarters": "crop-0.75-off-center",
    "neighbor, half": "crop-0.5-off-center",
    "mirrored": "mirrored",
}


@dataclass(eq=False)
class CrowdedSet(UploadSet):
    """Uploads whose origins stand beside hard negatives.

    Attributes:
        negative: edit that draws the hard negative of every origin of the split.
        split: of test photos.
    """

    negative: str = field(kw_only=True)
    split: str = field(kw_only=True, default=TESTED)

    @functools.cached_property
    def references(self) -> NDArray[np.float16]:
        """Return the latents of the references, then of a hard negative of each photo of the split."""
        plain = UploadSet(self.data, self.progress)
        negatives, _ = plain.of(EDITS[self.negative], COPY, self.split).latents()
        return np.concatenate([plain.references, negatives])


@experiment("hard-negatives", "Hard negatives: other pictures of the scene", place=109)
def hard_negatives(methods: Methods) -> Result | Skipped:
    """Measure how often the origin comes before other pictures of its scene."""
    started = time.monotonic()
    uploads = UploadSet(methods.data, methods.progress)
    if reason := uploads.missing():
        return Skipped(reason)
    rows = negative_rows(methods, uploads)
    return Result(
        rows,
        _described(uploads),
        time.monotonic() - started,
        (
            Column("negative", merge=True),
            Column("method"),
            *upload_tables.columns(uploads, {"before": "before it", "acc": "Acc"}),
        ),
        upload_tables.plot(rows, uploads, "before", "origin before its hard negative, %", "negative"),
        [
            "“before it” is the share of uploads whose origin scores above its hard negative. Acc counts all "
            "references.",
            f"With frames and views, the {upload_views.DEPTH} best references have scores. Where neither of "
            "the two is among them, the origin does not count as before its hard negative, so these rows are "
            "too low.",
        ],
    )


def negative_rows(methods: Methods, uploads: UploadSet, split: str = TESTED) -> list[Row]:
    """Return a row of each hard negative and matcher: KIND_before and KIND_acc of untouched uploads."""
    rows = []
    for name, edit in NEGATIVES.items():
        crowded = CrowdedSet(uploads.data, uploads.progress, negative=edit, split=split)
        for matcher in upload_matchers.build_all(methods, crowded):
            if matcher.shifted:
                continue
            row: Row = {"negative": name, "method": matcher.name}
            for kind in crowded.kinds:
                asked = crowded.of(EDITS[UNTOUCHED], kind, split)
                row |= {f"{kind}_{key}": value for key, value in _measure(matcher, asked).items()}
            rows.append(row)
    return rows


def _measure(matcher: Matcher, asked: Uploads) -> dict[str, Measure]:
    scores, photos = matcher.scores(asked), asked.sources.photos
    own = scores[np.arange(len(scores)), asked.sources.origins]
    # The hard negatives are the last references, in the order of the photos.
    negatives = scores[:, -len(scores) :].diagonal()
    return {
        "before": evaluation_sets.mean((own > negatives).astype(np.float64), photos),
        "acc": evaluation_sets.closed_set(upload_matchers.ranked(scores, asked.queries))["acc"],
    }


def _described(uploads: UploadSet) -> str:
    count = len(uploads.sources(COPY, TESTED).uris)
    return (
        f"Each of {count} photos is uploaded untouched, as a copy and as a translation by each model. "
        f"Beside the {len(uploads.references):,} references, each photo has one hard negative, all of one "
        "kind."
    )
