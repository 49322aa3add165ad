"""Background normalization: how much better is a match than the query's matches in a background?

Some pictures (plain, blurred, a grid of faces) lie near everything. Their scores are high against any
corpus, so one threshold for all queries lets them through. A background corpus, disjoint from the
references, says how high: s' = s − factor · mean of the query's k best background scores (score
normalization of ISC2021, arXiv 2106.09672, and of SSCD, arXiv 2202.10261).

What is subtracted is one number per query and comes after the top-k: the order of a query's references
stays, the order between queries changes, and with it µAP and every threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from id2core.errors import NormalizationError
from id2core.evaluation import ranking
from id2core.evaluation.metrics import Answers
from id2core.evaluation.ranking import Predictions
from id2core.search.background_rows import background_means
from id2core.store import schemas

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
KS = (1, 3, 5, 10)
RAW = (0.0, 1)  # factor and k where nothing is subtracted


class Normalization(BaseModel):
    """How scores were normalized.

    Attributes:
        factor: of the background that is subtracted.
        k: background scores per query that are averaged.
        background_id: index_id of the background corpus: another corpus gives other scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(gt=0, allow_inf_nan=False)
    k: int = Field(ge=1)
    background_id: str = Field(min_length=1)


@dataclass(frozen=True)
class Tuning:
    """The normalization with the best µAP on validation queries.

    Attributes:
        normalization: None where raw scores are as good as any.
        micro_ap, raw_micro_ap: µAP with it and without. The first was chosen for being the largest, so
            it promises too much: state the µAP of other queries.
        grid: (factor, k) → µAP, see `micro_aps`.
    """

    normalization: Normalization | None
    micro_ap: float
    raw_micro_ap: float
    grid: dict[tuple[float, int], float]


def normalize(
    scores: NDArray[np.floating], background: NDArray[np.floating], factor: float
) -> NDArray[np.float64]:
    """Return scores less `factor` times the background of their query, in float64; arrays of one shape."""
    return np.asarray(scores.astype(np.float64) - factor * background.astype(np.float64))


def background_scores(background: pa.Table, queries: Sequence[str], k: int) -> NDArray[np.float64]:
    """Return the k best background scores of queries, as a matrix.

    Args:
        background: matches of the queries in the background corpus: query_uri, rank, score.
        queries: query URIs.
        k: how many.

    Returns:
        float64[Q,k], best first; NaN in the row of a query that was not searched.

    Raises:
        NormalizationError: a query has some background scores, but not the k best of them.
    """
    kept = background.filter(pc.less_equal(background["rank"], k))
    number = pc.index_in(kept["query_uri"], value_set=pa.array(list(queries), pa.string()))
    known = number.is_valid()
    rows = number.filter(known).to_numpy()
    ranks = kept["rank"].filter(known).to_numpy() - 1
    best = np.full((len(queries), k), np.nan)
    best[rows, ranks] = kept["score"].filter(known).to_numpy()
    complete = np.isfinite(best).all(axis=1)
    partial = int((np.isfinite(best).any(axis=1) & ~complete).sum())
    if partial:
        raise NormalizationError(
            f"{partial} queries have fewer than {k} background scores: search the background with top_k ≥ "
            f"{k}, in a corpus of at least {k} pictures"
        )
    return best


def normalize_matches(matches: pa.Table, background: pa.Table, normalization: Normalization) -> pa.Table:
    """Fill in `background` and `normalized_score` of matches; `score` stays.

    Args:
        matches: a `schemas.MATCHES` table: a whole run or some blocks of queries.
        background: matches of (at least) the same queries in the background corpus.
        normalization: factor and k.

    Returns:
        A `schemas.MATCHES` table with the rows in their order.

    Raises:
        NormalizationError: a query was not searched in the background, or not deep enough.
    """
    queries = matches["query_uri"].unique()
    best = background_scores(background, queries.to_pylist(), normalization.k)
    missing = int(np.isnan(best[:, 0]).sum())
    if missing:
        raise NormalizationError(f"{missing} queries have no background score: search the background for all")
    number = pc.index_in(matches["query_uri"], value_set=queries).to_numpy()
    mean = background_means(best, normalization.k)[number].astype(np.float32)
    return with_background(matches, mean, normalization.factor)


def with_background(matches: pa.Table, mean: NDArray[np.float32], factor: float) -> pa.Table:
    """Fill in `background` and `normalized_score` of matches, rows in their order; `score` stays.

    Args:
        matches: a `schemas.MATCHES` table of n rows.
        mean: float32[n], the background of the upload of each row. In float32, as the column keeps it: what a
            reader computes from the stored columns is what was stored.
        factor: of the background that is subtracted.
    """
    normalized = normalize(matches["score"].to_numpy(), mean, factor).astype(np.float32)
    return with_columns(matches, {"background": pa.array(mean), "normalized_score": pa.array(normalized)})


def with_columns(matches: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """Return a `schemas.MATCHES` table with some columns replaced."""
    whole = [columns.get(name, matches[name]) for name in schemas.MATCHES.names]
    return pa.Table.from_arrays(whole, schema=schemas.MATCHES)


def tune(
    answers: Answers,
    background: pa.Table,
    background_id: str,
    factors: Sequence[float] = FACTORS,
    ks: Sequence[int] = KS,
) -> Tuning:
    """Choose factor and k on validation queries: the best µAP of a small grid.

    Of equal µAP the smaller factor wins, then the smaller k; raw scores win over all of them.

    Args:
        answers: raw scores (`metrics.read(…, score="score")`) of queries that are neither tested nor
            calibrated on.
        background: matches of the same queries in the background corpus, at least max(ks) deep.
        background_id: index_id of that corpus.
        factors, ks: the grid.

    Raises:
        NormalizationError: the background is not deep enough or misses queries, the scores are normalized
            already, or no query has an origin.
    """
    p = answers.predictions
    if answers.score != "score" or not p.origins:
        raise NormalizationError("tune on raw scores of queries of which some have an origin")
    best = background_scores(background, answers.queries, max(ks))
    if np.isnan(best[p.query]).any():
        raise NormalizationError("some queries have no background score: search the background for all")
    (factor, k), grid = choose_parameters(p, best, factors, ks)
    chosen = Normalization(factor=factor, k=k, background_id=background_id) if factor else None
    return Tuning(chosen, grid[factor, k], grid[RAW], grid)


def choose_parameters(
    p: Predictions,
    background: NDArray[np.floating],
    factors: Sequence[float] = FACTORS,
    ks: Sequence[int] = KS,
) -> tuple[tuple[float, int], dict[tuple[float, int], float]]:
    """Return the factor and k of the best µAP, and the grid; arguments and errors as of `micro_aps`."""
    grid = micro_aps(p, background, factors, ks)
    return max(grid, key=grid.__getitem__), grid


def micro_aps(
    p: Predictions,
    background: NDArray[np.floating],
    factors: Sequence[float] = FACTORS,
    ks: Sequence[int] = KS,
) -> dict[tuple[float, int], float]:
    """Compute µAP of raw scores and of every normalization, simplest first: `max` returns the simplest.

    Args:
        p: raw scores of Q queries.
        background: float[Q,K] in any order along K, their best background scores.
        factors, ks: the grid; no k above K.

    Returns:
        (factor, k) → µAP: `RAW`, then by factor, then by k.

    Raises:
        NormalizationError: there are fewer than max(ks) scores per query.
    """
    means = {k: background_means(background, k) for k in sorted(ks)}
    grid = {RAW: _micro_ap(p, p.score)}
    for factor in sorted(factors):
        for k, mean in means.items():
            grid[factor, k] = _micro_ap(p, normalize(p.score, mean[p.query], factor))
    return grid


def _micro_ap(p: Predictions, scores: NDArray[np.floating]) -> float:
    moved = Predictions(p.query, scores, p.relevant, p.has_origin)
    return ranking.micro_average_precision(moved) or 0.0
