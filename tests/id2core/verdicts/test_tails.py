"""The tail model of false-positive rates: its shape, what it predicts of held-out scores, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genpareto, norm

from id2core.errors import CalibrationError
from id2core.verdicts import calibration, tails
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.tails import Pairs, Tail
from tests.descriptor_sets import IDS

CORPUS, UPLOADS, TARGETS = 500, 1000, (0.02, 0.1)
# The calibration that shipped before there were tail models.
VERSION_1 = {
    "calibration_id": "470d3fd7212ff84d",
    "version": "1",
    "match": {
        "target": 0.02,
        "score": 0.20719359256327152,
        "exceedances": 10,
        "low": 0.009631429586433347,
        "high": 0.03647240829220973,
        "upper": 0.03368827233114448,
    },
    "review": {
        "target": 0.1,
        "score": 0.1303709503263235,
        "exceedances": 50,
        "low": 0.07513581506642548,
        "high": 0.12970908566220307,
        "upper": 0.12486580741380891,
    },
    "references": 4820,
    "queries": 500,
    "confidence": 0.95,
    "encoder_id": "mini-2087fb54ed81",
    "transform_id": "2569da0b2108",
    "preprocess_id": "stretch-bilinear-aa-white-srgb-v2-256-pm1",
    "normalization": {"factor": 1.25, "k": 10, "background_id": "flat-03189eef7ac82279"},
    "content": 0.0967741935483871,
}


def population(rng: np.random.Generator, spread: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the scores of uploads, which are not alike."""
    return rng.normal(0, spread, count), np.exp(rng.normal(0, spread / 5, count))


def drawn(seed: int, spread: float) -> Pairs:
    """The best pairs of uploads whose scores are normal, each with its own mean and deviation."""
    rng = np.random.default_rng(seed)
    mean, deviation = population(rng, spread, UPLOADS)
    scores = 0.3 + 0.05 * (mean[:, None] + deviation[:, None] * rng.standard_normal((UPLOADS, CORPUS)))
    best = np.argpartition(scores, CORPUS - tails.DEPTH, axis=1)[:, -tails.DEPTH :]
    return Pairs(
        np.take_along_axis(scores, best, 1).ravel(),
        np.repeat(np.arange(UPLOADS), tails.DEPTH),
        best.ravel(),
        np.arange(UPLOADS),
        CORPUS,
    )


def true_rate(threshold: float, references: int, spread: float) -> float:
    mean, deviation = population(np.random.default_rng(999), spread, 20_000)
    return float(np.mean(-np.expm1(references * norm.logcdf(((threshold - 0.3) / 0.05 - mean) / deviation))))


def fitted(seed: int, spread: float, draws: int = 40) -> list[Tail]:
    models = [tail for tail in tails.fit(drawn(seed, spread), TARGETS, draws) if tail]
    assert len(models) == len(TARGETS)
    return models


def calibrated(seed: int = 0, spread: float = 0.5, for_references: int | None = None) -> Calibration:
    pairs = drawn(seed, spread)
    return calibration.calibrate(
        pairs.best(),
        match=TARGETS[0],
        review=TARGETS[1],
        references=CORPUS,
        ids=IDS,
        pairs=pairs,
        for_references=for_references,
    )


@pytest.mark.parametrize("shape", [-0.3, -0.1, 0.0, 0.2])
def test_the_pareto_tail_is_that_of_scipy(shape: float) -> None:
    excesses = genpareto.rvs(shape, scale=0.05, size=1000, random_state=1)
    expected, _, scale = genpareto.fit(excesses, floc=0)
    assert tails.pareto(excesses) == pytest.approx((expected, scale), abs=2e-3)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0]))
def test_rates_fall_with_the_score_and_rise_with_the_references_within_the_union_bound(
    seed: int, spread: float
) -> None:
    sizes = [CORPUS * factor for factor in (1, 2, 7, 100, 10**4, 10**7)]
    for tail in fitted(seed, spread, draws=10):
        thresholds = [tail.threshold(n) for n in sizes]
        assert thresholds == sorted(thresholds)
        for n, threshold in zip(sizes, thresholds, strict=True):
            assert tail.rate(threshold, n) == pytest.approx(tail.target, rel=1e-6)
            low, high = tail.interval(threshold, n, 0.95)
            assert 0 <= low <= high <= 1
        for score in (thresholds[0], thresholds[2]):
            rates = [tail.rate(score, n) for n in sizes]
            assert rates == sorted(rates) and rates[-1] <= 1
            for n, rate in zip(sizes, rates, strict=True):
                assert rate <= rates[0] * n / CORPUS * (1 + 1e-9)
        falling = [tail.rate(s, CORPUS) for s in np.linspace(thresholds[0], thresholds[-1], 20)]
        assert falling == sorted(falling, reverse=True)


def test_the_rate_of_larger_corpora_is_inside_an_interval_that_widens() -> None:
    inside = []
    for seed, spread in enumerate([0.1, 0.5, 0.5, 1.0]):
        for tail in fitted(seed, spread, draws=100):
            widths = []
            for times in (1, 10, 40, 1000):
                n = times * CORPUS
                low, high = tail.interval(tail.threshold(n), n, 0.95)
                inside.append(low <= true_rate(tail.threshold(n), n, spread) <= high)
                widths.append(high - low)
            assert widths == sorted(widths)
    assert np.mean(inside) >= 0.9


def test_uploads_that_belong_together_widen_the_interval() -> None:
    alone = drawn(3, 0.5)
    four = np.arange(UPLOADS)
    together = Pairs(
        np.concatenate([alone.scores] * 4),
        np.concatenate([alone.queries + i * UPLOADS for i in range(4)]),
        np.concatenate([alone.references] * 4),
        np.concatenate([four] * 4),
        CORPUS,
    )
    apart = Pairs(together.scores, together.queries, together.references, np.arange(4 * UPLOADS), CORPUS)
    widths = []
    for pairs in (together, apart):
        [tail] = tails.fit(pairs, [0.02], 60)
        assert tail
        low, high = tail.interval(tail.threshold(CORPUS), CORPUS, 0.95)
        widths.append(high - low)
    assert widths[0] > 1.3 * widths[1]


@pytest.mark.parametrize("corpus", [4, CORPUS])
def test_scores_without_a_tail_have_no_model(corpus: int) -> None:
    few = np.repeat([0.2, 0.4, 0.6], [900, 90, 10])
    pairs = Pairs(few, np.arange(1000), np.zeros(1000, np.int64), np.arange(1000), corpus)
    assert tails.fit(pairs, TARGETS) == [None, None]
    made = calibration.calibrate(few, match=0.02, review=0.1, references=corpus, ids=IDS, pairs=pairs)
    assert (made.version, made.rates_from) == ("1", "union bound")
    with pytest.raises(CalibrationError, match="need a tail model"):
        calibration.calibrate(
            few, match=0.02, review=0.1, references=corpus, ids=IDS, pairs=pairs, for_references=10**6
        )


def test_thresholds_follow_the_corpus_and_keep_their_rates() -> None:
    chosen = calibrated()
    assert (chosen.version, chosen.rates_from) == ("2", "tail model")
    for verdict, held in ((Verdict.MATCH, chosen.match), (Verdict.REVIEW, chosen.review)):
        assert chosen.threshold(verdict, 1) == chosen.threshold(verdict, CORPUS) == held.score
        assert chosen.interval(verdict, CORPUS) == (held.low, held.high)
        assert chosen.interval(verdict, 1) == (0, held.high)
        assert chosen.threshold(verdict, 10 * CORPUS) > held.score
        for n in (1, CORPUS, 2 * CORPUS, 10**6, 10**9):
            assert chosen.false_positive_rate(verdict, n) == pytest.approx(held.target)
            low, high = chosen.interval(verdict, n) or (1, 0)
            assert low <= held.target <= high <= min(1, held.high * max(1, n / CORPUS))
            if n >= CORPUS:
                assert low <= held.low and (high >= held.high or n == CORPUS)
    assert chosen.threshold(Verdict.MATCH, 10**12) >= chosen.threshold(Verdict.REVIEW, 10**12)


def test_a_match_is_a_review_once_the_corpus_has_grown() -> None:
    chosen = calibrated()
    score = np.array([chosen.match.score])
    assert calibration.verdicts(score, chosen, CORPUS).tolist() == ["match"]
    assert calibration.verdicts(score, chosen, 3 * CORPUS).tolist() == ["review"]
    assert calibration.verdicts(score, chosen, 10**7).tolist() == ["none"]


def test_thresholds_for_a_larger_corpus_hold_up_to_its_size() -> None:
    chosen, plain = calibrated(for_references=10**5), calibrated()
    at = plain.threshold(Verdict.MATCH, 10**5)
    assert [chosen.threshold(Verdict.MATCH, n) for n in (1, CORPUS, 10**5)] == [at] * 3
    assert chosen.threshold(Verdict.MATCH, 10**6) == plain.threshold(Verdict.MATCH, 10**6)
    rates = [chosen.false_positive_rate(Verdict.MATCH, n) or 0 for n in (1, CORPUS, 10**4, 10**5, 10**6)]
    assert rates[0] == rates[1] < rates[2] < rates[3] == pytest.approx(0.02) == pytest.approx(rates[4])
    for n, rate in zip((CORPUS, 10**4, 10**5), rates[1:4], strict=True):
        low, high = chosen.interval(Verdict.MATCH, n) or (1, 0)
        assert low <= rate <= high


def test_a_threshold_that_no_score_reaches_is_refused_and_told() -> None:
    drawn_pairs = drawn(0, 0.5)
    pairs = replace(drawn_pairs, scores=1.5 * drawn_pairs.scores)
    calibrate = partial(
        calibration.calibrate, pairs.best(), match=0.02, review=0.1, references=CORPUS, ids=IDS, pairs=pairs
    )
    chosen = calibrate()
    assert chosen.is_out_of_reach(Verdict.MATCH, 10**9) and not chosen.is_out_of_reach(Verdict.MATCH, CORPUS)
    with pytest.raises(CalibrationError, match=r"which no score reaches: calibrate on more references"):
        calibrate(for_references=10**9)


def test_a_calibration_with_tails_survives_its_file(tmp_path: Path) -> None:
    chosen, uri = calibrated(for_references=10**5), str(tmp_path / "calibration.json")
    chosen.save(uri)
    again = calibration.load(uri)
    assert again == chosen and again.calibration_id == chosen.calibration_id != calibrated().calibration_id
    assert (tmp_path / "calibration.json").stat().st_size < 50_000
    raw = json.loads(Path(uri).read_text())
    del raw["review"]["tail"]
    Path(uri).write_text(json.dumps(raw))
    with pytest.raises(CalibrationError, match="tail model for both"):
        calibration.load(uri)


def test_a_calibration_of_version_1_has_its_id_and_states_the_union_bound(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(VERSION_1))
    old = calibration.load(str(tmp_path / "old.json"))
    assert (old.calibration_id, old.rates_from) == ("470d3fd7212ff84d", "union bound")
    assert old.threshold(Verdict.MATCH, 10**6) == old.match.score
    assert old.false_positive_rate(Verdict.MATCH, 9640) == pytest.approx(0.04)
    assert old.false_positive_rate(Verdict.MATCH, 50 * 4820) == 1
    old.save(str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == VERSION_1


def test_pairs_are_those_of_uploads_without_origin() -> None:
    matches = pa.table(
        {
            "query_uri": ["a", "a", "b", "c", "c"],
            "reference_id": ["x", "y", "x", "y", "z"],
            "score": pa.array([0.9, 0.8, 0.7, 0.6, 0.5], pa.float32()),
        }
    )
    pairs = calibration.best_pairs(matches, {"a": None, "b": "x", "c": None}, "score", 7)
    assert pairs.queries.tolist() == [0, 0, 1, 1] and len(pairs.groups) == 2
    assert pairs.references.tolist() == [0, 1, 1, 2] and pairs.corpus == 7
    assert pairs.best() == pytest.approx([0.9, 0.6])
