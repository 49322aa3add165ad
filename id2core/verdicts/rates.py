"""How often a calibration's thresholds are reached by uploads whose origin is known."""

from __future__ import annotations

import pyarrow as pa

from id2core.evaluation.comparison import VerdictRate
from id2core.evaluation.metrics import Answers
from id2core.evaluation.truth_files import Truth
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration, Verdict


def verdict_rates(
    matches: pa.Table, answers: Answers, truth: Truth, calibrated: Calibration, references: int
) -> dict[str, VerdictRate]:
    """Return how often the thresholds of a calibration are reached by queries whose origin is known.

    Args:
        matches: of one run, with the column `calibrated.score` known.
        answers: these matches read against the truth, by that column.
        truth: which queries have an origin.
        calibrated: the calibration.
        references: size of the corpus that was searched.

    Returns:
        `match` and `review` → their rates.
    """
    best = calibration.best_scores(matches, truth, calibrated.score)
    p = answers.predictions
    rates: dict[str, VerdictRate] = {}
    for verdict in (Verdict.MATCH, Verdict.REVIEW):
        threshold = calibrated.threshold(verdict, references)
        reached = int((best >= threshold).sum())
        ends = calibration.clopper_pearson(reached, len(best)) if len(best) else (None, None)
        stated = calibrated.interval(verdict, references) or (None, None)
        rates[verdict.value] = VerdictRate(
            threshold=threshold,
            stated=calibrated.false_positive_rate(verdict, references),
            stated_low=stated[0],
            stated_high=stated[1],
            measured=reached / len(best) if len(best) else None,
            low=ends[0],
            high=ends[1],
            queries=len(best),
            origins_found=float((p.score[p.relevant] >= threshold).sum() / p.origins) if p.origins else None,
        )
    return rates
