"""What a system is measured by: mAP, Acc and recall@k of uploads with an origin; µAP and R@P90 of all.

mAP and Acc are the paper's (Section 5.1), µAP and R@P90 those of ISC2021 (arXiv 2106.09672). The
definitions on arrays are in `ranking`; here are the matches of a scan, the truth, and the results, each
with the confidence interval and the budget that it holds for. `evaluate` is the door.

A reference is its picture, not its URI. One with the image_id of the origin is the origin at any URI, and a
picture at several URIs is one prediction, with its best score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from id2core.evaluation import bootstrap, ranking
from id2core.evaluation.ranking import Predictions
from id2core.evaluation.truth_files import Truth

RECALL_AT = (1, 5, 10)
RESAMPLES = 1000
ScoreColumn = Literal["score", "normalized_score"]


@dataclass(frozen=True)
class Measure:
    """A measure with the ends of its 95% confidence interval; None where the data do not give it."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Budget:
    """What the system was allowed to answer; figures of unequal budgets do not compare.

    Attributes:
        per_query: references per query that count.
        pairs: pairs that were pooled, one per query and picture.
    """

    per_query: int
    pairs: int


@dataclass(frozen=True)
class Counts:
    """The queries behind the figures.

    Attributes:
        with_origin, without_origin: queries of the truth.
        without_matches: queries of the truth that no row answers; they count, with nothing retrieved.
        not_in_truth: queries that were answered and are ignored, because the truth does not name them.
    """

    with_origin: int
    without_origin: int
    without_matches: int
    not_in_truth: int


@dataclass(frozen=True)
class Answers:
    """A system's matches against a truth, ready to be measured.

    Attributes:
        predictions: as arrays; query i is `queries[i]`.
        queries: every query of the truth, in its order.
        score: column that the pairs are ordered by.
    """

    predictions: Predictions
    queries: tuple[str, ...]
    budget: Budget
    counts: Counts
    score: ScoreColumn


class Evaluation(BaseModel):
    """The measures of one system.

    Attributes:
        mean_ap, accuracy: mAP and Acc of the paper.
        recall: k → share of origins among the first k references; no k beyond the budget, for which
            nothing was measured.
        micro_ap: µAP.
        recall_at_p90: R@P90; None where no threshold reaches that precision. A resample that does not
            reach it counts as recall 0 in the interval.
        threshold_at_p90: the score from which on pairs are accepted at that point.
        score: column that the pairs were ordered by.
        resamples, seed: of the bootstrap.
    """

    model_config = ConfigDict(frozen=True)

    mean_ap: Measure
    accuracy: Measure
    recall: dict[int, Measure]
    micro_ap: Measure
    recall_at_p90: Measure
    threshold_at_p90: float | None
    budget: Budget
    counts: Counts
    score: ScoreColumn
    resamples: int
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same queries.

    Attributes:
        first, second: each by itself.
        difference: measure (`recall@k` for each k that both have) → first − second, with the interval of
            the paired bootstrap. An R@P90 that is not reached counts as 0.
    """

    first: Evaluation
    second: Evaluation
    difference: dict[str, Measure]


def evaluate(
    matches: pa.Table,
    truth: Truth,
    k: int | None = None,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    score: ScoreColumn | None = None,
    image_ids: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measure the matches of one run against the truth.

    Args:
        matches, truth, k, score, image_ids: as `read` takes them.
        recall_at: the ks of recall@k.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.

    Raises:
        ValueError: the matches cannot be measured; the message says why.
    """
    answers = read(matches, truth, k, score=score, image_ids=image_ids)
    return measure(answers, recall_at=recall_at, resamples=resamples, seed=seed)


def read(
    matches: pa.Table,
    truth: Truth,
    k: int | None = None,
    *,
    score: ScoreColumn | None = None,
    image_ids: Mapping[str, str] | None = None,
) -> Answers:
    """Compare the matches of one run with the truth.

    Args:
        matches: columns query_uri, reference_uri, rank and the scores of `schemas.MATCHES`; reference_id
            where pictures may be at several URIs.
        truth: what is asked. All of its queries count: leave out those that were not scanned.
        k: rows of a query that count, by `rank`; all by default.
        score: column to order by; by default normalized_score where it is known, else score.
        image_ids: URI of a reference → its image_id. Needed only where an origin's own URI may be missing
            from the matches while a copy at another URI is there.

    Raises:
        ValueError: a column is missing, a score is not known, or the rows are of several runs.
    """
    column = score or _score_column(matches)
    _check(matches, column, k)
    within = matches if k is None else matches.filter(pc.less_equal(matches["rank"], k))
    number = pc.index_in(within["query_uri"], value_set=pa.array(list(truth), pa.string()))
    rows = within.append_column("number", number).filter(number.is_valid())
    origins = _pictures(truth, matches, image_ids or {})
    pairs = _pairs(rows, origins, column)
    predictions = Predictions(
        query=pairs["number"].to_numpy(),
        score=pairs["score_max"].to_numpy(),
        relevant=pairs["relevant_any"].to_numpy(),
        has_origin=origins.is_valid().to_numpy(zero_copy_only=False),
    )
    asked, answered = len(truth), len(rows["number"].unique())
    counts = Counts(
        with_origin=predictions.origins,
        without_origin=asked - predictions.origins,
        without_matches=asked - answered,
        not_in_truth=len(within["query_uri"].unique()) - answered,
    )
    budget = Budget(pc.max(within["rank"]).as_py() or 0, pairs.num_rows)
    return Answers(predictions, tuple(truth), budget, counts, column)


def measure(
    answers: Answers,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measure answers; arguments as `evaluate` takes them."""
    ks = _measurable(recall_at, answers)
    statistic = ranking.weighted(answers.predictions, (1, *ks))
    ends = _ends(statistic, 4 + len(ks), answers, resamples, seed)
    return _evaluation(answers, ks, ends, resamples, seed)


def compare(
    first: Answers,
    second: Answers,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Measure two systems and their differences; arguments as `evaluate` takes them.

    Both are resampled alike, so that what makes a query hard for both does not widen the interval. Of
    recall@k, only the ks within both budgets are measured.

    Raises:
        ValueError: the two were not read against the same truth.
    """
    a, b = first.predictions, second.predictions
    if first.queries != second.queries or not np.array_equal(a.has_origin, b.has_origin):
        raise ValueError("the two systems answer different questions; read both against the same truth")
    ks = tuple(k for k in _measurable(recall_at, first) if k in _measurable(recall_at, second))
    of_a, of_b = ranking.weighted(a, (1, *ks)), ranking.weighted(b, (1, *ks))

    def both(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        x, y = of_a(weights), of_b(weights)
        return np.concatenate([x, y, x - y], axis=1)

    ends = np.split(_ends(both, 3 * (4 + len(ks)), first, resamples, seed), 3, axis=1)
    values = [
        (x or 0.0) - (y or 0.0) if a.origins else None
        for x, y in zip(_values(a, ks), _values(b, ks), strict=True)
    ]
    names = ("mean_ap", "accuracy", *(f"recall@{k}" for k in ks), "micro_ap", "recall_at_p90")
    return Comparison(
        _evaluation(first, ks, ends[0], resamples, seed),
        _evaluation(second, ks, ends[1], resamples, seed),
        dict(zip(names, _measures(values, ends[2]), strict=True)),
    )


def _ends(
    statistic: bootstrap.Statistic, size: int, answers: Answers, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Ends of the intervals of `size` measures, float64[2,size]; NaN where there is nothing to resample."""
    if not resamples or not answers.predictions.origins:
        return np.full((2, size), np.nan)
    return bootstrap.intervals(statistic, answers.predictions.queries, resamples, seed)


def _evaluation(
    answers: Answers, ks: Sequence[int], ends: NDArray[np.float64], resamples: int, seed: int
) -> Evaluation:
    predictions = answers.predictions
    mean_ap, accuracy, *recall, micro_ap, at_p90 = _measures(_values(predictions, ks), ends)
    point = ranking.recall_at_precision(predictions)
    return Evaluation(
        mean_ap=mean_ap,
        accuracy=accuracy,
        recall=dict(zip(ks, recall, strict=True)),
        micro_ap=micro_ap,
        recall_at_p90=at_p90,
        threshold_at_p90=point.threshold if point else None,
        budget=answers.budget,
        counts=answers.counts,
        score=answers.score,
        resamples=resamples,
        seed=seed,
    )


def _score_column(matches: pa.Table) -> ScoreColumn:
    known = "normalized_score" in matches.column_names and (
        matches.num_rows > matches["normalized_score"].null_count
    )
    return "normalized_score" if known else "score"


def _check(matches: pa.Table, column: str, k: int | None) -> None:
    missing = {"query_uri", "reference_uri", "rank", column} - set(matches.column_names)
    if missing:
        raise ValueError(f"the matches have no column {', '.join(sorted(missing))}")
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; at least 1 reference per query must count")
    if matches[column].null_count:
        raise ValueError(f"{column} is not known in every row; order by the other score or fill it in")
    if "run_id" in matches.column_names and len(matches["run_id"].unique()) > 1:
        places = matches.select(["query_uri", "rank"]).group_by(["query_uri", "rank"]).aggregate([])
        if places.num_rows < matches.num_rows:
            raise ValueError("the matches are of several runs; read them with search.current")


def _pictures(truth: Truth, matches: pa.Table, image_ids: Mapping[str, str]) -> pa.Array:
    """The picture of each query's origin, null where there is none; an unseen URI stands for itself."""
    at_origin = pc.is_in(matches["reference_uri"], value_set=pa.array(list(truth.values()), pa.string()))
    rows = matches.filter(at_origin)
    seen = zip(rows["reference_uri"].to_pylist(), _picture(rows).to_pylist(), strict=True)
    known = dict(seen) | dict(image_ids)
    return pa.array([known.get(uri, uri) if uri else None for uri in truth.values()], pa.string())


def _picture(rows: pa.Table) -> pa.ChunkedArray:
    if "reference_id" not in rows.column_names:
        return rows["reference_uri"]
    return pc.coalesce(rows["reference_id"], rows["reference_uri"])


def _pairs(rows: pa.Table, origins: pa.Array, column: str) -> pa.Table:
    """One row per query and picture: `number`, `picture`, `score_max` in float64, `relevant_any`."""
    wanted = origins.take(rows["number"].combine_chunks())
    columns = {
        "number": rows["number"],
        "picture": _picture(rows),
        "score": rows[column].cast(pa.float64()),
        "relevant": pc.fill_null(pc.equal(_picture(rows), wanted), False),
    }
    return (
        pa.table(columns).group_by(["number", "picture"]).aggregate([("score", "max"), ("relevant", "any")])
    )


def _measurable(recall_at: Sequence[int], answers: Answers) -> tuple[int, ...]:
    return tuple(k for k in sorted(set(recall_at)) if 1 <= k <= answers.budget.per_query)


def _values(predictions: Predictions, ks: Sequence[int]) -> list[float | None]:
    """The measures in the order of `ranking.weighted`, Acc being recall@1."""
    point = ranking.recall_at_precision(predictions)
    return [
        ranking.mean_average_precision(predictions),
        *(ranking.recall_at(predictions, k) for k in (1, *ks)),
        ranking.micro_average_precision(predictions),
        point.recall if point else None,
    ]


def _measures(values: Sequence[float | None], ends: NDArray[np.float64]) -> list[Measure]:
    known = [[None if np.isnan(end) else float(end) for end in row] for row in ends]
    return [Measure(*three) for three in zip(values, *known, strict=True)]
