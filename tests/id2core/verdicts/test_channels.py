"""One verdict from several channels: its rate, however they depend on each other, and its file."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from id2core.errors import CalibrationError
from id2core.search.match_rows import MatchConstants, to_matches
from id2core.store import schemas
from id2core.verdicts import calibration, channels
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.channel_judging import ChannelJudge
from id2core.verdicts.channels import Channels, JointCalibration
from id2core.verdicts.judging import Judge
from id2core.verdicts.tails import Pairs
from tests.descriptor_sets import IDS

CORPUS, UPLOADS, TARGETS = 400, 1000, (0.02, 0.1)


def tailed(seed: int, ids: dict[str, str]) -> Calibration:
    """A calibration with tail models, of scores that are normally distributed."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.2, 0.1, (UPLOADS, CORPUS))
    order = np.argsort(-scores, axis=1)[:, :64]
    best = np.take_along_axis(scores, order, axis=1)
    queries = np.repeat(np.arange(UPLOADS), 64)
    pairs = Pairs(best.ravel(), queries, order.ravel().astype(np.int64), np.arange(UPLOADS), CORPUS)
    match, review = TARGETS
    return calibration.calibrate(
        best[:, 0], match=match, review=review, references=CORPUS, ids=ids, pairs=pairs
    )


def stepped(seed: int, ids: dict[str, str]) -> Calibration:
    """A calibration without tail models."""
    scores = np.random.default_rng(seed).normal(0.5, 0.1, UPLOADS)
    return calibration.calibrate(scores, match=0.01, review=0.05, references=CORPUS, ids=ids)


SECOND_IDS = IDS | {"encoder_id": "sscd-0123456789ab", "transform_id": "identity"}
# Filled when a test of this file runs: a collection would pay for the fits, too.
BOTH: dict[str, Calibration] = {}
STEPS: dict[str, Calibration] = {}


@pytest.fixture(scope="module", autouse=True)
def _calibrations() -> None:
    BOTH.update(vae=tailed(1, IDS), sscd=tailed(2, SECOND_IDS))
    STEPS.update(vae=stepped(1, IDS), sscd=stepped(2, SECOND_IDS))


def best_scores(rng: np.random.Generator, count: int, alike: float) -> np.ndarray:
    """Best scores among `CORPUS` references in two channels, whose ranks have a correlation."""
    normal = rng.normal(size=(count, 2))
    normal[:, 1] = alike * normal[:, 0] + math.sqrt(1 - alike**2) * normal[:, 1]
    # The best of many is at the quantile u^(1/CORPUS) of one.
    return 0.2 + 0.1 * norm.isf(-np.expm1(norm.logcdf(normal) / CORPUS))


def judged(
    joint: JointCalibration, scores: np.ndarray, own: dict[str, Calibration], n: int = CORPUS
) -> float:
    given = Channels(joint, tuple(own.values())).verdicts(scores, n)
    return float((given == "match").mean())


@pytest.mark.parametrize("references", [CORPUS // 4, CORPUS, 20 * CORPUS])
@pytest.mark.parametrize("calibrations", [BOTH, STEPS], ids=["tails", "steps"])
def test_rates_fall_with_the_score_and_state_the_rates_of_the_thresholds(
    calibrations: dict[str, Calibration], references: int
) -> None:
    own = calibrations["vae"]
    scores = np.linspace(-1, 1.5, 2001)
    rates = channels.rates_of(own, scores, references)
    assert (np.diff(rates) <= 0).all()
    assert rates[0] <= 1
    assert rates[-1] > 0
    for verdict in (Verdict.MATCH, Verdict.REVIEW):
        there = np.array([own.threshold(verdict, references), np.nan])
        rate, missing = channels.rates_of(own, there, references)
        assert rate == pytest.approx(own.false_positive_rate(verdict, references), rel=1e-5)
        assert math.isnan(missing)


@settings(max_examples=60)
@given(st.floats(1e-9, 0.99), st.integers(1, 10**7))
def test_a_rate_is_reached_from_its_score_on(rate: float, references: int) -> None:
    for own in (BOTH["sscd"], STEPS["sscd"]):
        score = channels.score_of(own, rate, references)
        if math.isinf(score):
            continue
        around = np.array([score + 1e-6, score - 1e-3])
        reached, before = channels.rates_of(own, around, references)
        assert reached <= rate * (1 + 1e-5)
        assert before > rate * (1 - 1e-5)


def test_the_rate_of_the_union_bound_holds_however_channels_depend() -> None:
    joint = channels.union(BOTH, match=0.02, review=0.1)
    rng = np.random.default_rng(5)
    for alike in (-1.0, -0.5, 0.0, 0.7, 1.0):
        rate = judged(joint, best_scores(rng, 100_000, alike), BOTH)
        # The calibrations are from 1,000 uploads each: their own interval.
        low, high = Channels(joint, tuple(BOTH.values())).interval(Verdict.MATCH, CORPUS) or (1.0, 0.0)
        assert low <= rate <= high
        assert rate < 0.03


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.001, 0.3))
def test_the_union_rule_keeps_its_rate_on_any_p_values(seed: int, count: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    n = 20_000
    weights = rng.dirichlet(np.ones(count)) + 1e-6
    weights /= weights.sum()
    shared = rng.random(n)
    # Each channel is uniform: a copy, a mirror image, a rotation, or a value of its own; some alarm in turn.
    kinds = [shared, 1 - shared, (shared + rng.random()) % 1, rng.random(n)]
    starts = np.concatenate([[0], np.cumsum(weights)[:-1]]) * rate
    p = np.column_stack(
        [(shared - starts[i]) % 1 if rng.random() < 0.5 else kinds[rng.integers(4)] for i in range(count)]
    )
    reached = (np.fmin.reduce(p / weights, axis=1) <= rate).mean()
    assert reached <= rate + 5 * math.sqrt(rate / n)


@pytest.mark.parametrize("alike", [0.0, 0.8, 1.0])
def test_a_measured_rate_is_in_its_interval_and_finds_no_less_than_the_union_bound(alike: float) -> None:
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(20):
        joint = channels.measured(BOTH, best_scores(rng, 1000, alike), CORPUS, match=0.02, review=0.1)
        assert joint.match.low is not None and joint.match.high is not None
        assert joint.match.exceedances == 20
        rate = judged(joint, best_scores(rng, 50_000, alike), BOTH)
        inside += joint.match.low <= rate <= joint.match.high
    assert inside >= 17
    bound = channels.union(BOTH, match=0.02, review=0.1)
    # Channels that are the same picture twice: the union bound spends half of the rate.
    assert alike < 1 or joint.match.statistic > 1.3 * bound.match.statistic


def test_ties_reach_a_level_together_or_not_at_all() -> None:
    high = STEPS["vae"].threshold(Verdict.MATCH, CORPUS)
    scores = np.full((1000, 2), -1.0)
    scores[:10, 0] = high
    joint = channels.measured(STEPS, scores, CORPUS, match=0.01, review=0.05)
    assert joint.match.exceedances == 10
    assert judged(joint, scores, STEPS) == 0.01
    scores[:11, 0] = high
    # Eleven are too many, and steps know nothing stricter.
    with pytest.raises(CalibrationError, match="no score of the channel vae is enough for a match"):
        channels.measured(STEPS, scores, CORPUS, match=0.01, review=0.05)
    joint = channels.measured(STEPS, scores, CORPUS, match=0.011, review=0.05)
    assert joint.match.exceedances == 11
    tied = best_scores(np.random.default_rng(4), 1000, 0.5)
    tied[:30] = 2.0
    with pytest.raises(CalibrationError, match="is enough for a match"):
        channels.measured(BOTH, tied, CORPUS, match=0.02, review=0.1)


def test_a_calibration_without_a_threshold_at_its_share_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"calibration knows no threshold there.* with --match 0\.005"):
        channels.union(STEPS, match=0.01, review=0.05)
    joint = channels.union(STEPS, match=0.02, review=0.1)
    both = Channels(joint, tuple(STEPS.values()))
    assert both.threshold("vae", Verdict.MATCH, CORPUS) == STEPS["vae"].match.score


def test_every_stranger_that_counts_as_reached_gets_the_verdict() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores = best_scores(rng, 1000, 0.5).astype(np.float32)
        joint = channels.measured(BOTH, scores, CORPUS, match=0.02, review=0.1)
        assert judged(joint, scores, BOTH) == joint.match.exceedances / 1000


def test_an_upload_that_a_channel_rejects_is_judged_by_the_other_at_its_share() -> None:
    joint = channels.union(BOTH, match=0.02, review=0.1, weights=(0.75, 0.25))
    both = Channels(joint, tuple(BOTH.values()))
    share = channels.score_of(BOTH["vae"], 0.75 * 0.02, CORPUS)
    assert both.threshold("vae", Verdict.MATCH, CORPUS) == share > BOTH["vae"].match.score
    scores = np.array([[share, np.nan], [share - 1e-6, np.nan], [np.nan, np.nan], [-1.0, 9.0]])
    assert both.verdicts(scores, CORPUS).tolist() == ["match", "review", "none", "match"]
    t = both.statistic(scores, CORPUS)
    assert t[0] == pytest.approx(0.02)
    assert math.isnan(t[2])


def test_a_rejected_upload_has_no_higher_rate_by_a_measured_level() -> None:
    rng = np.random.default_rng(8)
    joint = channels.measured(BOTH, best_scores(rng, 5000, 1.0), CORPUS, match=0.02, review=0.1)
    assert joint.match.high is not None
    scores = best_scores(rng, 100_000, 1.0)
    scores[:, 1] = np.nan
    assert judged(joint, scores, BOTH) <= joint.match.high


def test_pairs_are_judged_row_by_row_as_their_uploads_are() -> None:
    joint = channels.measured(
        BOTH, best_scores(np.random.default_rng(2), 1000, 0.5), CORPUS, match=0.02, review=0.1
    )
    both = Channels(joint, tuple(BOTH.values()))
    scores = best_scores(np.random.default_rng(9), 2000, 0.5)
    alone = np.concatenate(
        [np.where([[True, False]], scores, np.nan), np.where([[False, True]], scores, np.nan)]
    )
    rank = {"match": 2, "review": 1, "none": 0}
    of_pairs = np.array([rank[v] for v in both.verdicts(alone, CORPUS)]).reshape(2, -1).max(axis=0)
    assert of_pairs.tolist() == [rank[v] for v in both.verdicts(scores, CORPUS)]


def test_more_references_widen_the_interval_and_never_lower_it() -> None:
    joint = channels.measured(
        BOTH, best_scores(np.random.default_rng(2), 1000, 0.5), CORPUS, match=0.02, review=0.1
    )
    both = Channels(joint, tuple(BOTH.values()))
    own, grown, fewer = (both.interval(Verdict.MATCH, n) for n in (CORPUS, 50 * CORPUS, 10))
    assert own == (joint.match.low, joint.match.high)
    assert own and grown and fewer
    assert grown[0] <= own[0] and own[1] < grown[1]
    assert fewer == (0.0, own[1])
    assert both.interval(Verdict.NONE, CORPUS) is None


def test_too_few_strangers_and_bad_weights_are_refused() -> None:
    scores = best_scores(np.random.default_rng(0), 499, 0.5)
    with pytest.raises(CalibrationError, match="needs 500 queries without origin, there are 499: add 1") as e:
        channels.measured(BOTH, scores, CORPUS, match=0.02, review=0.1)
    assert e.value.missing == 1
    rejected = np.concatenate([scores, np.full((5, 2), np.nan)])
    with pytest.raises(CalibrationError, match="there are 499"):
        channels.measured(BOTH, rejected, CORPUS, match=0.02, review=0.1)
    for weights in [(0.6, 0.6), (1.0,), (1.0, 0.0)]:
        with pytest.raises(CalibrationError, match="weights"):
            channels.union(BOTH, match=0.02, review=0.1, weights=weights)
    with pytest.raises(CalibrationError, match="match ≤ review"):
        channels.union(BOTH, match=0.2, review=0.1)
    with pytest.raises(CalibrationError, match="infinite"):
        channels.measured(BOTH, np.full((500, 2), np.inf), CORPUS, match=0.02, review=0.1)


def test_strangers_are_matched_by_their_uri_and_rejected_ones_have_no_score() -> None:
    first = pa.table(
        {"query_uri": ["a", "a", "b", "c", "x"], "score": pa.array([0.1, 0.3, 0.2, 0.9, 0.8], pa.float32())}
    )
    second = pa.table({"query_uri": ["c", "a", "d"], "score": pa.array([0.7, 0.5, 0.4], pa.float32())})
    truth = {"a": None, "b": None, "c": "origin", "d": None, "e": None}
    scores = channels.stranger_scores({"sscd": second, "vae": first}, STEPS, truth)
    expected = [[0.3, 0.5], [0.2, np.nan], [np.nan, 0.4], [np.nan, np.nan]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    unknown = pa.table({"query_uri": ["a"], "score": pa.array([None], pa.float32())})
    with pytest.raises(CalibrationError, match="sscd: score is not known"):
        channels.stranger_scores({"sscd": unknown, "vae": first}, STEPS, truth)


def test_a_joint_calibration_is_kept_as_a_file_and_fits_its_channels_alone(tmp_path: Path) -> None:
    scores = best_scores(np.random.default_rng(2), 1000, 0.5)
    uri = str(tmp_path / "joint.json")
    for joint in (
        channels.measured(BOTH, scores, CORPUS, match=0.02, review=0.1),
        channels.union(BOTH, match=0.02, review=0.1),
    ):
        joint.save(uri)
        assert channels.load(uri) == joint
        Channels(joint, tuple(BOTH.values()))
    with pytest.raises(CalibrationError, match="calibrated for encoder_id"):
        Channels(joint, tuple(reversed(BOTH.values())))
    with pytest.raises(CalibrationError, match="calibrate jointly anew"):
        Channels(joint, (tailed(7, IDS), BOTH["sscd"]))
    with pytest.raises(CalibrationError, match="needs as many calibrations, not 1"):
        Channels(joint, (BOTH["vae"],))
    changed = json.loads(Path(uri).read_text())
    changed["channels"][0]["weight"] = 0.4
    Path(uri).write_text(json.dumps(changed))
    with pytest.raises(CalibrationError, match="changed after it was made"):
        channels.load(uri)
    changed["channels"][0]["weight"] = 0.6
    Path(uri).write_text(json.dumps(changed))
    with pytest.raises(CalibrationError, match="sum to more than 1"):
        channels.load(uri)
    with pytest.raises(CalibrationError, match="no such joint calibration"):
        channels.load(str(tmp_path / "none.json"))
    Path(uri).write_text("[]")
    with pytest.raises(CalibrationError, match="is not a joint calibration"):
        channels.load(uri)


def rows(name: str, scores: np.ndarray, information: list[float | None]) -> pa.Table:
    """Rows of `matches/` as the search of a channel makes them, one upload each."""
    ids = {"vae": IDS, "sscd": SECOND_IDS}[name]
    queries = pa.table(
        {
            "image_id": [f"{i:064x}" for i in range(len(scores))],
            "uri": [f"/q/{i}" for i in range(len(scores))],
        }
    )
    candidates = pa.table(
        {
            "query_row": pa.array(range(len(scores)), pa.int64()),
            "score": pa.array(scores, pa.float32()),
            "reference_id": ["r"] * len(scores),
            "reference_uri": ["/r"] * len(scores),
            "reference_information": pa.array(information, pa.float32()),
            "view": pa.nulls(len(scores), pa.string()),
            "detail": pa.nulls(len(scores), pa.float32()),
        }
    )
    constants = MatchConstants(
        ids["encoder_id"], ids["transform_id"], "flat-1", "run-1", datetime(2026, 1, 1, tzinfo=UTC)
    )
    return to_matches(queries, candidates, constants)


def test_a_channel_judges_its_rows_at_the_rate_of_all_channels() -> None:
    joint = channels.union(BOTH, match=0.02, review=0.1)
    both = Channels(joint, tuple(BOTH.values()))
    judge = ChannelJudge(both, "sscd", Judge(BOTH["sscd"]))
    match, review = (both.threshold("sscd", v, CORPUS) for v in (Verdict.MATCH, Verdict.REVIEW))
    assert judge.lowest <= review < BOTH["sscd"].match.score < match
    scores = np.array([match + 1e-3, match - 1e-3, review - 1e-3, BOTH["sscd"].match.score])
    judged = judge.judge(rows("sscd", scores, [None] * 4), CORPUS)
    assert judged.schema == schemas.MATCHES
    assert judged["verdict"].to_pylist() == ["match", "review", "none", "review"]
    assert judged["false_positive_rate"].to_pylist() == pytest.approx([0.02, 0.1, None, 0.1])
    assert set(judged["channel"].to_pylist()) == {"sscd"}
    assert set(judged["calibration_id"].to_pylist()) == {joint.calibration_id}
    assert judge.judge(schemas.MATCHES.empty_table(), CORPUS).num_rows == 0
    with pytest.raises(CalibrationError, match="calibrated for encoder_id"):
        judge.judge(rows("vae", scores, [None] * 4), CORPUS)


def test_a_picture_without_content_is_no_match_in_a_channel() -> None:
    bounded = BOTH["sscd"].model_copy(update={"content": 0.1})
    own = BOTH | {"sscd": bounded}
    both = Channels(channels.union(own, match=0.02, review=0.1), tuple(own.values()))
    judged = ChannelJudge(both, "sscd", Judge(bounded)).judge(
        rows("sscd", np.array([9.0, 9.0]), [0.05, 0.5]), CORPUS
    )
    assert judged["verdict"].to_pylist() == ["none", "match"]
    assert judged["verdict_reason"].to_pylist() == ["no_content", None]
    assert judged["false_positive_rate"].to_pylist() == pytest.approx([None, 0.02])


def test_a_channel_is_judged_by_its_own_calibration_alone() -> None:
    both = Channels(channels.union(BOTH, match=0.02, review=0.1), tuple(BOTH.values()))
    for name, own in (("sscd", BOTH["vae"]), ("pdq", BOTH["sscd"])):
        with pytest.raises(CalibrationError, match="is not the calibration of the channel"):
            ChannelJudge(both, name, Judge(own))
