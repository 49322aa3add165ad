"""How often a calibration's thresholds are reached by uploads whose origin is known."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from id2core.evaluation.metrics import Answers
from id2core.evaluation.truth_files import Truth
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration, Verdict


def verdict_rates(
    matches: pa.Table, answers: Answers, truth: Truth, found: Calibration, references: int
) -> dict[str, dict[str, Any]]:
    """How often the thresholds of a calibration are reached by queries whose origin is known.

    Args:
        matches: of one run, with the column `found.score` known.
        answers: these matches read against the truth, by that column.
        truth: which queries have an origin.
        found: the calibration.
        references: size of the corpus that was searched.

    Returns:
        For `match` and `review`: the `stated` rate with its interval `stated_low`, `stated_high`; the
        `measured` share of `queries` queries without origin that reach the threshold, with its
        Clopper–Pearson interval `low`, `high`; `origins_found`, the share of origins that reach it.
    """
    best = calibration.best_scores(matches, truth, found.score)
    p = answers.predictions
    rates: dict[str, dict[str, Any]] = {}
    for verdict, threshold in ((Verdict.MATCH, found.match), (Verdict.REVIEW, found.review)):
        reached = int((best >= threshold.score).sum())
        ends = calibration.clopper_pearson(reached, len(best)) if len(best) else (None, None)
        stated = found.interval(verdict, references) or (None, None)
        rates[verdict.value] = {
            "threshold": threshold.score,
            "stated": found.false_positive_rate(verdict, references),
            "stated_low": stated[0],
            "stated_high": stated[1],
            "measured": reached / len(best) if len(best) else None,
            "low": ends[0],
            "high": ends[1],
            "queries": len(best),
            "origins_found": float((p.score[p.relevant] >= threshold.score).sum() / p.origins)
            if p.origins
            else None,
        }
    return rates
