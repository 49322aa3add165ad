"""Normalization by a background, thresholds from uploads without origin, verdicts and their rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm

from id2core.errors import CalibrationError, NormalizationError
from id2core.evaluation import metrics
from id2core.store import schemas
from id2core.verdicts import calibration, normalization
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.normalization import Normalization, normalize_matches

IDS = {"encoder_id": "mini-1", "transform_id": "w-1", "preprocess_id": "p-1"}
NORMALIZATION = Normalization(factor=0.5, k=2, background_id="flat-b")


def matches(scores: NDArray[Any], references: list[list[str]] | None = None, **more: list[Any]) -> pa.Table:
    """Rows as a scan writes them: scores[q,k], best first, of queries q0, q1, …"""
    n, k = scores.shape
    uris = references or [[f"r{j}" for j in range(k)]] * n
    columns: dict[str, Any] = {
        "query_uri": [f"q{i}" for i in range(n) for _ in range(k)],
        "rank": list(range(1, k + 1)) * n,
        "reference_id": [uri for row in uris for uri in row],
        "reference_uri": [uri for row in uris for uri in row],
        "score": scores.ravel().astype(np.float32),
        "encoder_id": [IDS["encoder_id"]] * n * k,
        "transform_id": [IDS["transform_id"]] * n * k,
        **more,
    }
    empty = [None] * (n * k)
    return pa.Table.from_pydict({m: columns.get(m, empty) for m in schemas.MATCHES.names}, schemas.MATCHES)


def calibrated(scores: NDArray[Any], match: float = 0.01, review: float = 0.1, **more: Any) -> Calibration:
    given = {"references": 1000, "ids": IDS, **more}
    return calibration.calibrate(scores, match=match, review=review, **given)


def with_offsets(n: int = 400, k: int = 3, seed: int = 0) -> tuple[pa.Table, pa.Table, dict[str, str | None]]:
    """Matches, background matches and truth of queries of which some lie near everything."""
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 0.3, (n, 1))
    scores = offset + rng.normal(0, 0.05, (n, k))
    scores[::2, 0] += 0.4
    ordered = -np.sort(-scores, axis=1)
    names = [["origin" if s == scores[i, 0] else f"r{j}" for j, s in enumerate(ordered[i])] for i in range(n)]
    background = -np.sort(-(offset + rng.normal(0, 0.05, (n, 10))), axis=1)
    truth = {f"q{i}": "origin" if i % 2 == 0 else None for i in range(n)}
    return matches(ordered, names), matches(background), truth


def test_the_background_is_the_mean_of_the_k_best_in_any_order() -> None:
    scores = np.array([[0.1, 0.5, 0.3], [0.9, 0.2, 0.4]], np.float32)
    assert normalization.background_means(scores, 2) == pytest.approx([0.4, 0.65])
    with pytest.raises(NormalizationError, match="search the background deeper"):
        normalization.background_means(scores, 4)


def test_raw_background_and_normalized_scores_stand_side_by_side() -> None:
    table = matches(np.array([[0.9, 0.5], [0.8, 0.1]]))
    background = matches(np.array([[0.6, 0.4, 0.3], [0.2, 0.0, -0.5]])).take([5, 0, 3, 1, 4, 2])
    normalized = normalize_matches(table, background, NORMALIZATION)
    assert normalized.schema == schemas.MATCHES
    assert normalized["score"].equals(table["score"])
    assert normalized["background"].to_pylist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert normalized["normalized_score"].to_pylist() == pytest.approx([0.65, 0.25, 0.75, 0.05])


def test_background_scores_come_best_first_and_unsearched_queries_are_unknown() -> None:
    shuffled = matches(np.array([[0.6, 0.4, 0.3], [0.2, 0.0, -0.5]])).take([5, 0, 3, 1, 4, 2])
    scores_of = normalization.background_scores(shuffled, ["q1", "q7", "q0"], 2)
    assert scores_of[[0, 2]].ravel().tolist() == pytest.approx([0.2, 0.0, 0.6, 0.4])
    assert np.isnan(scores_of[1]).all()


def test_a_background_that_was_not_searched_is_refused() -> None:
    table = matches(np.array([[0.9], [0.8]]))
    with pytest.raises(NormalizationError, match="1 queries have no background score"):
        normalize_matches(table, matches(np.array([[0.6, 0.4]])), NORMALIZATION)
    with pytest.raises(NormalizationError, match="fewer than 2"):
        normalize_matches(table, matches(np.array([[0.6], [0.4]])), NORMALIZATION)


def test_normalization_finds_origins_behind_offsets_of_queries() -> None:
    table, background, truth = with_offsets()
    tuning = normalization.tune(metrics.read(table, truth, score="score"), background, "flat-b")
    assert tuning.normalization is not None and tuning.normalization.background_id == "flat-b"
    assert 0.75 <= tuning.normalization.factor <= 1.25
    assert tuning.micro_ap == max(tuning.grid.values()) > tuning.raw_micro_ap + 0.2
    fresh, fresh_background, truth = with_offsets(seed=1)
    raw = metrics.evaluate(fresh, truth, resamples=0).micro_ap.value
    normalized = normalize_matches(fresh, fresh_background, tuning.normalization)
    lifted = metrics.evaluate(normalized, truth, resamples=0)
    assert lifted.score == "normalized_score"
    assert raw is not None and lifted.micro_ap.value is not None
    assert lifted.micro_ap.value > raw + 0.2


def test_raw_scores_win_where_a_background_adds_nothing() -> None:
    table, background, truth = with_offsets()
    alike = normalization.with_columns(background, {"score": pa.repeat(np.float32(0.2), background.num_rows)})
    tuning = normalization.tune(metrics.read(table, truth, score="score"), alike, "flat-b")
    assert tuning.normalization is None and tuning.micro_ap == tuning.raw_micro_ap


def test_tuning_wants_raw_scores_and_origins() -> None:
    table, background, truth = with_offsets()
    normalized = normalize_matches(table, background, NORMALIZATION)
    with pytest.raises(NormalizationError, match="raw scores"):
        normalization.tune(metrics.read(normalized, truth), background, "flat-b")
    with pytest.raises(NormalizationError, match="have an origin"):
        normalization.tune(metrics.read(table, dict.fromkeys(truth)), background, "flat-b")


def test_the_threshold_is_the_smallest_score_reached_seldom_enough() -> None:
    scores = np.arange(1000) / 1000
    thresholds = calibrated(np.random.default_rng(0).permutation(scores))
    assert (thresholds.match.score, thresholds.match.exceedances) == (0.990, 10)
    assert (thresholds.review.score, thresholds.review.exceedances) == (0.900, 100)
    assert thresholds.match.low < 0.01 < thresholds.match.upper < thresholds.match.high


def test_equal_scores_all_count_as_exceedances() -> None:
    scores = np.arange(1000) / 1000
    scores[985:995] = 0.985
    thresholds = calibrated(scores)
    assert (thresholds.match.score, thresholds.match.exceedances) == (0.995, 5)
    scores[985:] = 1.0
    thresholds = calibrated(scores)
    assert thresholds.match.score > 1 and (thresholds.match.exceedances, thresholds.match.low) == (0, 0)
    assert calibration.verdicts(np.array([1.0]), thresholds, 1).tolist() == ["review"]


@given(st.lists(st.integers(0, 30), min_size=100, max_size=300), st.sampled_from([0.1, 0.13, 0.29, 0.5]))
def test_no_threshold_is_reached_more_often_than_allowed(values: list[int], target: float) -> None:
    scores = np.array(values, float)
    threshold = calibrated(scores, target, target).match
    assert (scores >= threshold.score).sum() == threshold.exceedances
    assert threshold.exceedances / len(scores) <= target
    below = scores[scores < threshold.score]
    assert not len(below) or (scores >= below.max()).mean() > target


@pytest.mark.parametrize(("x", "n"), [(0, 50), (1, 50), (10, 1000), (49, 50), (50, 50)])
def test_intervals_are_those_of_scipy(x: int, n: int) -> None:
    interval = binomtest(x, n).proportion_ci(0.95, "exact")
    assert calibration.clopper_pearson(x, n) == pytest.approx((interval.low, interval.high))
    upper = beta.ppf(0.95, x + 1, n - x) if x < n else 1.0
    assert calibration.clopper_pearson(x, n, sides=1) == pytest.approx((0, upper))


@pytest.mark.parametrize("target", [0.5, 0.3, 0.29, 0.1, 0.07, 0.03, 0.01, 0.0007])
def test_a_target_that_the_sample_cannot_support_is_refused_with_the_number_missing(target: float) -> None:
    n = calibration.required_queries(target)
    scores = np.random.default_rng(0).normal(size=n)
    supported = calibrated(scores, target, target).match
    assert supported.exceedances == 10 and supported.high < 1.84 * target
    with pytest.raises(CalibrationError, match="add 1,") as refused:
        calibrated(scores[1:], target, target)
    assert refused.value.missing == 1
    with pytest.raises(CalibrationError) as refused:
        calibrated(scores[: n // 3], target, target)
    assert refused.value.missing == n - n // 3


def test_the_interval_holds_the_true_rate_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    holds, above = [], []
    for _ in range(600):
        threshold = calibrated(rng.normal(size=1000), 0.02, 0.02).match
        rate = norm.sf(threshold.score)
        holds.append(threshold.low <= rate <= threshold.high)
        above.append(rate > threshold.upper)
    assert 0.94 <= np.mean(holds) <= 0.99
    assert np.mean(above) <= 0.07


def test_verdicts_on_fresh_uploads_are_wrong_as_often_as_stated() -> None:
    rng = np.random.default_rng(2)
    best = rng.uniform(size=(5000, 50)).max(axis=1)
    thresholds = calibrated(best, 0.01, 0.05, references=50)
    fresh = rng.uniform(size=(20000, 50)).max(axis=1)[:, None]
    judged = calibration.judge(matches(fresh), thresholds, references=50)
    strict = np.mean([v == "match" for v in judged["verdict"].to_pylist()])
    loose = np.mean([v != "none" for v in judged["verdict"].to_pylist()])
    assert thresholds.match.low <= strict <= thresholds.match.high
    assert thresholds.review.low <= loose <= thresholds.review.high


def test_a_larger_corpus_raises_the_stated_rate_enough_and_a_smaller_one_never_lowers_it() -> None:
    rng = np.random.default_rng(3)
    best = rng.uniform(size=(5000, 50)).max(axis=1)
    thresholds = calibrated(best, 0.01, 0.05, references=50)
    stated = thresholds.false_positive_rate(Verdict.REVIEW, 170)
    assert stated == pytest.approx(0.05 * 170 / 50)
    small, large = (
        np.mean(rng.uniform(size=(20000, k)).max(axis=1) >= thresholds.review.score) for k in (50, 170)
    )
    assert 2 * small < large < small * 170 / 50, "the rate grows, by no more than the number of references"
    interval = thresholds.interval(Verdict.REVIEW, 170)
    assert interval is not None and interval[0] < large < interval[1] == thresholds.review.high * 170 / 50
    assert thresholds.interval(Verdict.REVIEW, 10) == (0, thresholds.review.high)
    assert thresholds.false_positive_rate(Verdict.MATCH, 10) == 0.01
    assert thresholds.false_positive_rate(Verdict.REVIEW, 10**6) == 1.0
    assert thresholds.false_positive_rate(Verdict.NONE, 50) is thresholds.interval(Verdict.NONE, 50) is None


def test_judged_matches_carry_verdict_rate_and_calibration() -> None:
    thresholds = calibrated(np.arange(1000) / 1000)
    judged = calibration.judge(matches(np.array([[0.995, 0.95], [0.9, 0.5]])), thresholds, references=2000)
    assert judged.schema == schemas.MATCHES
    assert judged["verdict"].to_pylist() == ["match", "review", "none", "none"]
    rates = judged["false_positive_rate"].to_pylist()
    assert rates[:2] == pytest.approx([0.02, 0.2]) and rates[2:] == [None, None]
    assert set(judged["calibration_id"].to_pylist()) == {thresholds.calibration_id}
    assert calibration.judge(schemas.MATCHES.empty_table(), thresholds, 1).num_rows == 0
    with pytest.raises(CalibrationError, match="not finite"):
        calibration.judge(matches(np.array([[np.nan]])), thresholds, 1)


def test_a_score_at_a_threshold_reaches_it() -> None:
    thresholds = calibrated(np.arange(1000) / 1000)
    at = np.array([thresholds.match.score, thresholds.review.score])
    assert calibration.verdicts(at, thresholds, 1).tolist() == ["match", "review"]
    assert calibration.verdicts(np.nextafter(at, 0), thresholds, 1).tolist() == ["review", "none"]


def test_a_calibration_of_other_scores_is_refused() -> None:
    table = matches(np.array([[0.9]]))
    scores = np.arange(1000) / 1000
    raw, normalized = calibrated(scores), calibrated(scores, normalization=NORMALIZATION)
    for name in ("encoder_id", "transform_id"):
        with pytest.raises(CalibrationError, match=f"{name} .* of other"):
            calibration.judge(matches(np.array([[0.9]]), **{name: ["other"]}), raw, 1)
    with pytest.raises(CalibrationError, match="preprocess_id"):
        raw.check_ids(IDS | {"preprocess_id": "other"})
    with pytest.raises(CalibrationError, match="normalize these"):
        calibration.judge(table, normalized, 1)
    normalized_matches = normalize_matches(table, matches(np.array([[0.6, 0.4]])), NORMALIZATION)
    assert calibration.judge(normalized_matches, normalized, 1)["verdict"].to_pylist() == ["none"]
    with pytest.raises(CalibrationError, match="calibrated on raw"):
        calibration.judge(normalized_matches, raw, 1)
    other = NORMALIZATION.model_copy(update={"factor": 0.6})
    with pytest.raises(CalibrationError, match="another factor"):
        calibration.judge(normalized_matches, calibrated(scores, normalization=other), 1)


def test_only_the_best_scores_of_queries_without_origin_calibrate() -> None:
    table = matches(np.array([[0.9, 0.5], [0.8, 0.7], [0.3, 0.2]]))
    truth = {"q0": "r0", "q1": None, "q2": None, "unreadable": None}
    assert sorted(calibration.best_scores(table, truth, "score")) == pytest.approx([0.3, 0.8])
    with pytest.raises(CalibrationError, match="not known"):
        calibration.best_scores(table, truth, "normalized_score")


def test_a_calibration_survives_its_file_and_knows_when_it_was_changed(tmp_path: Path) -> None:
    thresholds = calibrated(np.random.default_rng(0).normal(size=1000), normalization=NORMALIZATION)
    uri = str(tmp_path / "calibration.json")
    thresholds.save(uri)
    again = calibration.load(uri)
    assert again == thresholds and again.calibration_id == thresholds.calibration_id
    raw = json.loads(Path(uri).read_text())
    for change, hint in [
        ({"references": 10**9}, "was changed"),
        ({"version": "0"}, "version 0"),
        ({"queries": "many"}, "not a calibration"),
        ({"match": raw["review"], "review": raw["match"]}, "strict"),
    ]:
        Path(uri).write_text(json.dumps(raw | change))
        with pytest.raises(CalibrationError, match=hint):
            calibration.load(uri)
    Path(uri).write_text("[]")
    with pytest.raises(CalibrationError, match="not a calibration"):
        calibration.load(uri)
    with pytest.raises(CalibrationError, match="no such"):
        calibration.load(str(tmp_path / "nothing.json"))


def test_what_a_calibration_holds_for_is_in_its_id() -> None:
    scores = np.arange(1000) / 1000
    ids = [
        calibrated(scores, **more).calibration_id
        for more in ({}, {"references": 999}, {"review": 0.2}, {"normalization": NORMALIZATION})
    ]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(("match", "review"), [(0.1, 0.01), (0.0, 0.1), (0.1, 1.0)])
def test_rates_out_of_order_are_refused(match: float, review: float) -> None:
    with pytest.raises(CalibrationError, match="0 < match ≤ review < 1"):
        calibrated(np.arange(1000) / 1000, match, review)
