"""mAP, Acc, µAP and R@P90 against their definitions, scikit-learn and literal resampling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    precision_recall_curve,
)

from id2core.evaluation import bootstrap, metrics, ranking
from id2core.evaluation.ranking import Predictions
from id2core.store import schemas

GOLDEN = {"q1": "r1", "q2": "r2", "q3": None, "q4": "r4"}
GOLDEN_ROWS = [("q1", "r1", 0.9), ("q3", "r7", 0.8), ("q2", "r2", 0.7), ("q2", "r9", 0.7)]


def matches(rows: list[tuple[str, str, float]], **more: list[Any]) -> pa.Table:
    """Rows as a scan writes them; each reference is its own picture unless `reference_id` says otherwise."""
    queries = [row[0] for row in rows]
    columns = {
        "query_uri": queries,
        "reference_id": [f"id of {row[1]}" for row in rows],
        "reference_uri": [row[1] for row in rows],
        "score": [row[2] for row in rows],
        "rank": [queries[:i].count(query) + 1 for i, query in enumerate(queries)],
        **more,
    }
    empty = [None] * len(rows)
    return pa.Table.from_pydict({n: columns.get(n, empty) for n in schemas.MATCHES.names}, schemas.MATCHES)


def simulated(n: int = 300, k: int = 10, seed: int = 0, gain: float = 2.0) -> Predictions:
    """n queries, half with an origin, of which two thirds are retrieved with scores `gain` higher."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(n), k)
    has_origin = np.arange(n) % 2 == 0
    relevant = (np.tile(np.arange(k), n) == rng.integers(0, k * 3 // 2, n)[query]) & has_origin[query]
    return Predictions(query, rng.normal(size=n * k) + gain * relevant, relevant, has_origin)


def answers(predictions: Predictions, k: int = 10) -> metrics.Answers:
    asked, pairs = predictions.queries, len(predictions.query)
    counts = metrics.Counts(predictions.origins, asked - predictions.origins, 0, 0)
    return metrics.Answers(
        predictions, tuple(map(str, range(asked))), metrics.Budget(k, pairs), counts, "score"
    )


def figures(p: Predictions) -> list[float | None]:
    """Every measure of some pairs."""
    point = ranking.recall_at_precision(p)
    return [
        ranking.mean_average_precision(p),
        ranking.recall_at(p, 1),
        ranking.recall_at(p, 3),
        ranking.micro_average_precision(p),
        point.recall if point else None,
    ]


@st.composite
def small(draw: st.DrawFn) -> Predictions:
    """Up to 8 queries with up to 5 pairs each and many equal scores."""
    has_origin = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=8)))
    query, score, relevant = [], [], []
    for i, with_origin in enumerate(has_origin):
        scores = draw(st.lists(st.integers(0, 4), max_size=5))
        true = draw(st.integers(0, 5)) if with_origin else len(scores)
        query += [i] * len(scores)
        score += scores
        relevant += [j == true for j in range(len(scores))]
    return Predictions(np.array(query, int), np.array(score, float), np.array(relevant, bool), has_origin)


def test_the_golden_example() -> None:
    result = metrics.evaluate(matches(GOLDEN_ROWS), GOLDEN, resamples=100)
    assert result.micro_ap.value == pytest.approx(0.5)
    assert result.recall_at_p90.value == pytest.approx(1 / 3)
    assert result.threshold_at_p90 == np.float32(0.9)
    assert result.accuracy.value == result.recall[1].value == pytest.approx(1 / 3)
    assert result.mean_ap.value == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert result.budget == metrics.Budget(per_query=2, pairs=4)
    assert set(result.recall) == {1}, "recall beyond two references per query was not measured"
    assert json.loads(result.model_dump_json())["recall"]["1"]["value"] == result.accuracy.value


def test_the_order_of_rows_and_of_equal_scores_changes_nothing() -> None:
    expected = metrics.evaluate(matches(GOLDEN_ROWS), GOLDEN, resamples=0)
    rows = matches(GOLDEN_ROWS)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(GOLDEN_ROWS))
        assert metrics.evaluate(rows.take(pa.array(order)), GOLDEN, resamples=0) == expected


def test_a_copy_of_the_origin_is_the_origin_and_counts_once() -> None:
    rows = [("q1", "copy", 0.9), ("q1", "origin", 0.9), ("q1", "other", 0.8), ("q2", "copy", 0.7)]
    table = matches(rows, reference_id=["A", "A", "B", "A"])
    result = metrics.evaluate(table, {"q1": "origin", "q2": "origin"}, resamples=0)
    assert result.accuracy.value == 1 and result.budget.pairs == 3
    assert result.micro_ap.value == pytest.approx((1 + 2 / 3) / 2)
    only_copy = table.slice(3)
    assert metrics.evaluate(only_copy, {"q2": "origin"}, resamples=0).accuracy.value == 0
    known = metrics.evaluate(only_copy, {"q2": "origin"}, resamples=0, image_ids={"origin": "A"})
    assert known.accuracy.value == 1


def test_counts_say_what_was_asked_answered_and_ignored() -> None:
    rows = [*GOLDEN_ROWS, ("q8", "r1", 0.99), ("q9", "r1", 0.99)]
    result = metrics.evaluate(matches(rows), GOLDEN, resamples=0)
    assert result.counts == metrics.Counts(3, 1, without_matches=1, not_in_truth=2)
    assert result.micro_ap.value == pytest.approx(0.5)


def test_k_is_the_budget() -> None:
    rows = [("q1", "x", 0.9), ("q1", "r1", 0.8), ("q1", "y", 0.7)]
    one = metrics.evaluate(matches(rows), {"q1": "r1"}, k=1, resamples=0)
    two = metrics.evaluate(matches(rows), {"q1": "r1"}, k=2, resamples=0, recall_at=(1, 2, 3))
    assert (one.mean_ap.value, one.budget) == (0, metrics.Budget(1, 1))
    assert (two.mean_ap.value, two.budget, set(two.recall)) == (0.5, metrics.Budget(2, 2), {1, 2})


def test_normalized_scores_decide_where_they_are_known() -> None:
    rows = [("q1", "r1", 0.8), ("q2", "x", 0.9)]
    table = matches(rows, normalized_score=[0.5, 0.2])
    truth = {"q1": "r1", "q2": None}
    by_default, raw = (metrics.read(table, truth, score=column) for column in (None, "score"))
    assert (by_default.score, raw.score) == ("normalized_score", "score")
    assert metrics.measure(by_default, resamples=0).micro_ap.value == 1
    assert metrics.measure(raw, resamples=0).micro_ap.value == 0.5
    assert metrics.compare(by_default, raw, resamples=0).difference["micro_ap"].value == 0.5


def test_without_origins_or_without_matches_there_is_nothing_to_measure() -> None:
    no_origin = metrics.evaluate(matches(GOLDEN_ROWS), dict.fromkeys(GOLDEN))
    assert no_origin.micro_ap == no_origin.mean_ap == no_origin.recall_at_p90 == metrics.Measure(None)
    nothing = metrics.evaluate(matches([]), GOLDEN, resamples=50)
    assert nothing.mean_ap.value == nothing.micro_ap.value == 0
    assert nothing.recall_at_p90.value is None and nothing.threshold_at_p90 is None


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        (matches(GOLDEN_ROWS).drop_columns("rank"), "no column rank"),
        (matches(GOLDEN_ROWS, rank=[1, 1, 1, 1], run_id=["a", "a", "b", "b"]), "several runs"),
        (matches(GOLDEN_ROWS, normalized_score=[0.5, None, 0.1, 0.1]), "not known in every row"),
        (matches(GOLDEN_ROWS, score=[0.5, float("nan"), 0.1, 0.1]), "finite"),
    ],
)
def test_matches_that_cannot_be_measured_are_refused(table: pa.Table, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        metrics.evaluate(table, GOLDEN)


def test_two_true_pairs_of_one_query_are_refused() -> None:
    with pytest.raises(ValueError, match="one relevant pair"):
        Predictions(np.array([0, 0]), np.ones(2), np.ones(2, bool), np.ones(1, bool))


@given(small(), st.integers(0, 1000))
def test_measures_do_not_depend_on_order_or_scale(p: Predictions, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p.query))
    shuffled = Predictions(p.query[order], p.score[order], p.relevant[order], p.has_origin)
    stretched = Predictions(p.query, np.exp(p.score) - 7, p.relevant, p.has_origin)
    assert figures(shuffled) == figures(stretched) == figures(p)
    assert all(value is None or 0 <= value <= 1 for value in figures(p))


@given(small())
def test_ties_are_the_worst_order_that_they_allow(p: Predictions) -> None:
    worse = Predictions(p.query, p.score - 0.01 * p.relevant, p.relevant, p.has_origin)
    better = Predictions(p.query, p.score + 0.01 * p.relevant, p.relevant, p.has_origin)
    assert figures(worse) == figures(p)
    assert all((x or 0) <= (y or 0) for x, y in zip(figures(p), figures(better), strict=True))


@given(small())
def test_the_pooled_measures_agree_with_scikit_learn(p: Predictions) -> None:
    if not p.relevant.any():
        return
    retrieved = p.relevant.sum() / p.origins
    theirs = average_precision_score(p.relevant, p.score) * retrieved
    mine = ranking.micro_average_precision(p)
    assert mine is not None and mine <= theirs + 1e-12, "they take all pairs of one score at once"
    distinct = Predictions(p.query, p.score - 0.01 * np.arange(len(p.score)), p.relevant, p.has_origin)
    theirs = average_precision_score(distinct.relevant, distinct.score) * retrieved
    assert ranking.micro_average_precision(distinct) == pytest.approx(theirs)
    precision, recall, _ = precision_recall_curve(p.relevant, p.score)
    best = recall[precision >= 0.9].max() * retrieved  # their last point is recall 0 at precision 1
    point = ranking.recall_at_precision(p)
    assert (point.recall if point else 0) == pytest.approx(best)


def test_mean_average_precision_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    scores, true = rng.normal(size=(50, 8)), rng.integers(0, 8, 50)
    relevant = np.arange(8) == true[:, None]
    query = np.repeat(np.arange(50), 8)
    p = Predictions(query, scores.ravel(), relevant.ravel(), np.ones(50, bool))
    theirs = label_ranking_average_precision_score(relevant, scores)
    assert ranking.mean_average_precision(p) == pytest.approx(theirs)


def test_the_threshold_gives_the_recall_it_is_stated_with() -> None:
    p = simulated(gain=4)
    point = ranking.recall_at_precision(p)
    assert point is not None
    accepted = p.score >= point.threshold
    assert p.relevant[accepted].mean() >= 0.9
    assert p.relevant[accepted].sum() / p.origins == pytest.approx(point.recall)


def test_a_precision_of_exactly_ninety_percent_is_enough() -> None:
    """9 of 10, 18 of 20, …: 0.9 has no exact float."""
    for n in (10, 20, 30, 70, 110, 1230):
        false = np.arange(n) < n // 10
        p = Predictions(np.arange(n), -np.arange(n) * 1.0, ~false, ~false)
        weights = np.ones((1, n), int)
        assert ranking.recall_at_precision(p) == ranking.OperatingPoint(1.0, 1.0 - n)
        assert ranking.weighted(p, ())(weights)[0, -1] == 1
        one_more = np.append(0, np.arange(n))  # a second false pair of the first query, before all others
        worse = Predictions(one_more, np.append(1.0, p.score), np.append(False, ~false), p.has_origin)
        assert ranking.recall_at_precision(worse) is None
        assert ranking.weighted(worse, ())(weights)[0, -1] == 0


@given(small(), st.integers(0, 1000))
def test_a_resample_is_measured_as_if_its_queries_were_written_out(p: Predictions, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, p.queries, p.queries)
    rows = [np.flatnonzero(p.query == q) for q in drawn]
    query = np.repeat(np.arange(p.queries), [len(r) for r in rows])
    flat = np.concatenate(rows)
    copy = Predictions(query, p.score[flat], p.relevant[flat], p.has_origin[drawn])
    weights = np.bincount(drawn, minlength=p.queries)[None]
    precision = ranking.weighted(p, (1, 3))(weights)[0]
    if not copy.origins:
        assert np.isnan(precision).all()
    else:
        assert precision == pytest.approx([value or 0 for value in figures(copy)])


def test_intervals_hold_the_value_and_repeat_with_their_seed() -> None:
    system = answers(simulated(600))
    result = metrics.measure(system, resamples=300, seed=1)
    every = [result.mean_ap, result.accuracy, *result.recall.values(), result.micro_ap, result.recall_at_p90]
    for measure in every:
        assert measure.value is not None and measure.low is not None and measure.high is not None
        assert measure.low <= measure.value <= measure.high
    assert metrics.measure(system, resamples=300, seed=1) == result
    assert metrics.measure(system, resamples=300, seed=2) != result


def test_the_interval_of_a_share_is_the_one_of_theory() -> None:
    values = np.arange(1000) < 300
    low, high = bootstrap.intervals(lambda w: (w @ values / 1000.0)[:, None], 1000, 4000, 0)[:, 0]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert [low, high] == pytest.approx([0.3 - half, 0.3 + half], abs=0.003)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    first = simulated(600)
    noise = np.random.default_rng(9).normal(size=len(first.query)) * 0.3
    second = Predictions(first.query, first.score + noise, first.relevant, first.has_origin)
    result = metrics.compare(answers(first), answers(second), resamples=300)
    assert result.first == metrics.measure(answers(first), resamples=300)
    difference = result.difference["micro_ap"]
    one, other = result.first.micro_ap, result.second.micro_ap
    assert None not in (difference.value, difference.low, difference.high, one.value, other.value)
    assert difference.low <= difference.value == one.value - other.value <= difference.high  # type: ignore[operator]
    unpaired = np.hypot(one.high - one.low, other.high - other.low)  # type: ignore[operator]
    assert difference.high - difference.low < 0.6 * unpaired  # type: ignore[operator]
    same = metrics.compare(answers(first), answers(first), resamples=50)
    assert set(same.difference.values()) == {metrics.Measure(0.0, 0.0, 0.0)}


def test_systems_read_against_different_truths_do_not_compare() -> None:
    table = matches(GOLDEN_ROWS)
    with pytest.raises(ValueError, match="same truth"):
        metrics.compare(metrics.read(table, GOLDEN), metrics.read(table, GOLDEN | {"q3": "r7"}))


def test_a_thousand_resamples_of_five_thousand_queries_give_narrow_intervals() -> None:
    def width(queries: int) -> float:
        accuracy = metrics.measure(answers(simulated(queries)), resamples=1000).accuracy
        assert accuracy.low is not None and accuracy.high is not None
        return accuracy.high - accuracy.low

    assert 5 < width(50) / width(5000) < 20  # 10 in theory
