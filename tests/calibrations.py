"""Calibrations for scores of an encoder without a transform, by default `pdq`, as tests want them."""

from __future__ import annotations

import numpy as np

from id2core.encoders.registry import load_encoder
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration, Threshold
from id2core.verdicts.normalization import Normalization
from id2core.verdicts.tails import Fit, Tail


def calibrated(
    score: float,
    normalization: Normalization | None = None,
    content: float | None = None,
    transform_id: str = "identity",
    encoder: str = "pdq",
) -> Calibration:
    """A calibration that matches from about `score` on; the review threshold is 0.1 below."""
    loaded = load_encoder(encoder)
    ids = {"encoder_id": loaded.encoder_id, "preprocess_id": loaded.preprocess.preprocess_id}
    scores = np.repeat([score - 0.1, score, score + 0.01], [480, 510, 10])
    given = {
        "references": 8,
        "ids": ids | {"transform_id": transform_id},
        "normalization": normalization,
        "content": content,
    }
    return calibration.calibrate(scores, match=0.01, review=1 - 1e-9, **given)


def tailed(score: float, rise: float, encoder: str = "pdq") -> Calibration:
    """A calibration of 8 references whose thresholds rise by `rise` for every e-fold of the corpus."""
    plain = calibrated(score, encoder=encoder)
    return plain.model_copy(
        update={"version": "2", "match": _tailed(plain.match, rise), "review": _tailed(plain.review, rise)}
    )


def _tailed(threshold: Threshold, rise: float) -> Threshold:
    fit = Fit(references=8, score=(threshold.score,), shape=(0.0,), scale=(rise,), growth=(1.0,))
    return threshold.model_copy(update={"tail": Tail(target=threshold.target, point=fit, draws=fit)})
