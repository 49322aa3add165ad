"""Verdicts with a known false-positive rate: thresholds from uploads that have no origin.

A false positive is an upload *without* origin whose best reference still scores at least the threshold.
The rate is of such uploads, per upload and not per pair, and holds for uploads like those calibrated on
(drawn from the same stream, independent of each other) against a reference corpus of the stated size.

**Threshold.** For a target rate f, the smallest observed score that at most a share f of the n scores
reaches, equal scores counting as reaching it. Where even the best score is reached too often, just above
it.

**What the sample says.** With x of n scores at or above a threshold, the Clopper–Pearson interval holds
the true rate with at least the stated confidence. That the threshold was chosen on the same scores does not
break this: for continuous scores the true rate at the x-th best of n is Beta(x, n+1−x) distributed, and the
interval's ends are quantiles of Beta(x, n−x+1) and Beta(x+1, n−x).

**What it supports.** A target is supported when at least `EXPECTED` = 10 exceedances are expected, n·f ≥ 10.
The 95% interval of the true rate then ends below 1.84·f for every n: the data rule out twice the target.
More queries never make a supported target unsupported.

**Larger corpora.** Against N references instead of the calibrated M < N the best score of an upload can
only grow. A calibration holds a tail model for each target (`tails`): it says by how much a threshold must
rise for the rate to stay, and with what interval. `Calibration.threshold` is the score for N references. It
does not fall below that of M, and against fewer references f is stated, with a lower end of 0. With
`for_references` thresholds are chosen for a corpus of that size at least, and a smaller one has a lower rate.

No rate is above the union bound. For references of the same kind, P(best of N ≥ t) ≤ (N/M)·P(best of M ≥ t):
the chance that one more reference is the first to reach t falls with the number before it. A calibration
without a tail model, as all of version 1, has one threshold for all corpora and states this bound: f·N/M, at
most 1. References of another kind need a calibration of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.special import betainccinv, betaincinv  # type: ignore[import-untyped]

from id2core.errors import CalibrationError
from id2core.evaluation.truth_files import Truth
from id2core.search import looks
from id2core.store import datasets, storage, strict_json
from id2core.verdicts import content, normalization, tails
from id2core.verdicts.normalization import Normalization, normalize
from id2core.verdicts.tails import Pairs, Tail

# Without and with tail models; an older program refuses the latter.
VERSION: Final = "1"
VERSION_WITH_TAILS: Final = "2"
# What the rates of a calibration for larger corpora come from.
TAIL_MODEL: Final = "tail model"
UNION_BOUND: Final = "union bound"
CONFIDENCE = 0.95
EXPECTED = 10
# float32 columns of scores around 1, each rounded once.
_ROUNDING = 1e-6


class Verdict(StrEnum):
    """What the score of a match says, strongest first."""

    MATCH = "match"
    REVIEW = "review"
    NONE = "none"


class Threshold(BaseModel):
    """A score and how often uploads without origin reach it among the references that were calibrated with.

    Attributes:
        target: false-positive rate asked for, the rate that is stated.
        score: reached from here on.
        exceedances: scores of the calibration that reach it; at most target · n.
        low, high: two-sided Clopper–Pearson interval of the true rate.
        upper: one-sided upper bound of the true rate.
        tail: how score and rate follow the number of references; None where that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(gt=0, lt=1)
    score: float = Field(allow_inf_nan=False)
    exceedances: int = Field(ge=0)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    upper: float = Field(ge=0, le=1)
    tail: Tail | None = None


class Calibration(BaseModel):
    """Two thresholds and what they hold for.

    Attributes:
        match, review: the strict threshold and the loose one.
        references: size of the reference corpus that the uploads were searched in.
        queries: n, uploads without origin.
        confidence: of the intervals.
        encoder_id, transform_id, preprocess_id: what the scores were made with.
        normalization: None where raw scores were calibrated.
        for_references: least number of references that thresholds are chosen for; None for `references`.
        content: the least information of a picture with content; None in a calibration that has no such
            threshold.
        views: id of the views under which uploads were looked at; `none` for whole uploads alone.
        version: of this file format: 2 with tail models, else 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["1", "2"] = VERSION
    match: Threshold
    review: Threshold
    references: int = Field(ge=1)
    queries: int = Field(ge=1)
    confidence: float = Field(gt=0, lt=1)
    encoder_id: str = Field(min_length=1)
    transform_id: str = Field(min_length=1)
    preprocess_id: str = Field(min_length=1)
    normalization: Normalization | None = None
    content: float | None = Field(default=None, ge=0, le=1)
    for_references: int | None = Field(default=None, ge=1)
    views: str = looks.NONE

    @model_validator(mode="after")
    def _ordered(self) -> Calibration:
        if self.match.score < self.review.score or self.match.target > self.review.target:
            raise ValueError("the match threshold must be at least as strict as the review threshold")
        return self

    @model_validator(mode="after")
    def _with_tails(self) -> Calibration:
        tailed = [t.tail is not None for t in (self.match, self.review)]
        if any(tailed) is not all(tailed) or any(tailed) is not (self.version == VERSION_WITH_TAILS):
            raise ValueError("version 2 has a tail model for both thresholds, version 1 has none")
        if self.for_references is not None and not any(tailed):
            raise ValueError("thresholds for another number of references need tail models")
        return self

    @property
    def calibration_id(self) -> str:
        """First 16 hex of a SHA-256 over all of it."""
        return datasets.digest_of(self._facts())

    def _facts(self) -> dict[str, Any]:
        """All of it, JSON-able, without what is not known and an older version does not have."""
        facts = self.model_dump(mode="json")
        for name in ("match", "review"):
            facts[name] = _known(facts[name], ("tail",))
        if self.views == looks.NONE:  # as before there were others
            del facts[looks.VIEWS]
        return _known(facts, ("content", "for_references"))

    @property
    def score(self) -> Literal["score", "normalized_score"]:
        """The column of `schemas.MATCHES` that the thresholds are for."""
        return "normalized_score" if self.normalization else "score"

    @property
    def rates_from(self) -> Literal["tail model", "union bound"]:
        """What the rates for a larger corpus come from."""
        return TAIL_MODEL if self.match.tail else UNION_BOUND

    def threshold(self, verdict: Verdict, references: int) -> float:
        """Return the score from which on pairs of a corpus of `references` get a verdict, or a stronger one.

        Raises:
            ValueError: nothing is needed for the verdict `none`.
        """
        if verdict is Verdict.NONE:
            raise ValueError("the verdict none has no threshold")
        scores = [self._score(each, references) for each in (self.review, self.match)]
        # Both models are fitted for themselves: far out they may cross.
        return max(scores) if verdict is Verdict.MATCH else scores[0]

    def is_out_of_reach(self, verdict: Verdict, references: int) -> bool:
        """Return whether no pair of a corpus of `references` can reach the threshold of a verdict."""
        return self.threshold(verdict, references) > self.most

    @property
    def most(self) -> float:
        """Return the greatest score that a pair can have.

        A cosine is at most 1, and fine detail adds 1 at most. What is subtracted is `factor` times a score,
        which is at least −1.
        """
        most = 1.0 if self.views == looks.NONE else 2.0
        return most + (self.normalization.factor if self.normalization else 0.0)

    def lowest(self, verdict: Verdict) -> float:
        """Return the least threshold of a verdict for a corpus of any size."""
        return self.threshold(verdict, 1)

    def false_positive_rate(self, verdict: Verdict, references: int) -> float | None:
        """Return the rate of a verdict against `references` pictures; None for the verdict `none`.

        The rate of `review` is that of reaching the review threshold: of `review` and `match` together.

        Raises:
            CalibrationError: there are no references.
        """
        if verdict is Verdict.NONE:
            return None
        grown, held = self._growth(references), self._threshold(verdict)
        bound = min(1.0, held.target * grown)
        if held.tail is None or (grown == 1.0 and self.for_references is None):
            return bound
        rate = held.tail.rate(self.threshold(verdict, references), max(references, self.references))
        return min(bound, rate)

    def interval(self, verdict: Verdict, references: int) -> tuple[float, float] | None:
        """Return the two-sided interval of a verdict's true rate against `references`; None for `none`.

        With a tail model it is at least as wide as that of the calibration, for the same distance from the
        rate, and never above that of the union bound. Without one, more references do not lower the rate and
        raise it N/M-fold at most, so the upper end alone is scaled. Against fewer references the lower end
        is 0.

        Raises:
            CalibrationError: there are no references.
        """
        rate = self.false_positive_rate(verdict, references)
        if rate is None:
            return None
        held = self._threshold(verdict)
        bound = min(1.0, held.high * self._growth(references))
        low = held.low if references >= self.references else 0.0
        if held.tail is None or (references <= self.references and self.for_references is None):
            return low, bound
        size = max(references, self.references)
        drawn = held.tail.interval(self.threshold(verdict, references), size, self.confidence)
        lower = min(drawn[0], rate * held.low / held.target)
        upper = max(drawn[1], rate * held.high / held.target)
        return (lower if references >= self.references else 0.0), min(bound, upper)

    def _threshold(self, verdict: Verdict) -> Threshold:
        return self.match if verdict is Verdict.MATCH else self.review

    def _score(self, held: Threshold, references: int) -> float:
        """Return the threshold for a corpus, by its own model, but never below that of the calibration."""
        size = max(references, self.for_references or 1)
        if held.tail is None or size <= self.references:
            return held.score
        return max(held.score, held.tail.threshold(size))

    def _growth(self, references: int) -> float:
        if references < 1:
            raise CalibrationError(f"a scan of {references} references has no false-positive rate")
        return max(1.0, references / self.references)

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise CalibrationError when `ids` of scores are not those of the calibration.

        Args:
            ids: of `schemas.ROW_IDS`, and `views`.
        """
        for name, value in ids.items():
            if getattr(self, name) != value:
                if name == looks.VIEWS:
                    raise CalibrationError(self._other_views(value))
                raise CalibrationError(
                    f"calibrated for {name} {getattr(self, name)}, these scores are of {value}: calibrate "
                    "anew with the encoder and transform of the scan"
                )

    def is_for(self, ids: Mapping[str, str]) -> bool:
        """Return whether ids of scores are those of the calibration, see `check_ids`."""
        return all(getattr(self, name) == value for name, value in ids.items())

    def _other_views(self, asked: str) -> str:
        mend = "--views auto"
        if self.views == looks.NONE:
            mend = f"--views {looks.NONE}"
        elif asked != looks.NONE:
            mend = "the version and the file of W that it was made with"
        own, other = looks.described(self.views), looks.described(asked)
        return f"calibrated for {own}, these scores are of {other}: give {mend}, or calibrate anew"

    def save(self, uri: str) -> None:
        """Write JSON to a local path or gs:// URI."""
        whole = {"calibration_id": self.calibration_id} | self._facts()
        storage.write_bytes(storage.normalize(uri), json.dumps(whole, indent=1).encode())


def _known(facts: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return facts without those of some names that are None."""
    return {name: value for name, value in facts.items() if value is not None or name not in names}


def load(uri: str) -> Calibration:
    """Read what `Calibration.save` wrote.

    Raises:
        CalibrationError: the file is missing, of another version, no calibration, or changed by hand.
    """
    try:
        raw = strict_json.parse_object(storage.read_marked(storage.normalize(uri))[0])
        version, stated = raw["version"], raw.pop("calibration_id")
    except FileNotFoundError as error:
        raise CalibrationError(f"{uri}: no such calibration; make one with calibrate") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{uri} is not a calibration") from error
    if version not in (VERSION, VERSION_WITH_TAILS):
        raise CalibrationError(
            f"{uri} has version {version}, this program reads up to {VERSION_WITH_TAILS}: calibrate anew"
        )
    try:
        calibration = Calibration.model_validate(raw)
    except ValidationError as error:
        raise CalibrationError(f"{uri} is not a calibration: {error}") from error
    if calibration.calibration_id != stated:
        raise CalibrationError(f"{uri} was changed after it was made (its content is not {stated})")
    return calibration


def clopper_pearson(
    exceedances: int, n: int, confidence: float = CONFIDENCE, sides: Literal[1, 2] = 2
) -> tuple[float, float]:
    """Return the exact interval of a rate of which `exceedances` of `n` were seen (Clopper & Pearson 1934).

    `scipy.stats.binomtest` finds the ends by a root search to an absolute 2e-12. That costs digits at the
    small rates that are calibrated here (a relative 4e-6 at 3 of 10⁸), and scipy.stats is slow to import.
    The quantiles of the beta distribution are the same interval, to all digits.

    Args:
        exceedances: 0 to n.
        n: independent trials.
        confidence: the interval holds the true rate at least this often.
        sides: 1 for an upper bound alone; the lower end is then 0.

    Returns:
        Lower and upper end.
    """
    if not 0 <= exceedances <= n or n < 1:
        raise ValueError(f"{exceedances} of {n} is no share of anything")
    tail = (1 - confidence) / sides
    bounded = sides == 2 and exceedances > 0
    low = float(betaincinv(exceedances, n - exceedances + 1, tail)) if bounded else 0.0
    high = float(betainccinv(exceedances + 1, n - exceedances, tail)) if exceedances < n else 1.0
    return low, high


def required_queries(target: float) -> int:
    """The smallest number of queries without origin that supports a target rate: 10 exceedances expected."""
    if not 0 < target < 1:
        raise ValueError(f"a target rate lies between 0 and 1; {target} does not")
    # Below the answer, however the quotient was rounded; the rule itself is then applied as it stands.
    n = max(1, math.floor(EXPECTED / target) - 1)
    while EXPECTED / n > target:
        n += 1
    return n


def calibrate(
    scores: NDArray[np.floating],
    *,
    match: float,
    review: float,
    references: int,
    ids: Mapping[str, str],
    normalization: Normalization | None = None,
    tuned_on: float = 0.0,
    content: float | None = None,
    pairs: Pairs | None = None,
    for_references: int | None = None,
) -> Calibration:
    """Thresholds for two target rates.

    Args:
        scores: float[n], the best score of each query without origin (`best_scores`).
        match, review: target rates of the two verdicts, 0 < match ≤ review < 1.
        references: size of the reference corpus that was searched.
        ids: all of `schemas.ROW_IDS` of that search.
        normalization: of the scores; None where they are raw.
        tuned_on: share of the queries that was tuned on and is not among the scores, as it will be of
            queries that are added.
        content: see `Calibration`; `content.threshold` makes it.
        pairs: the best pairs of the same queries (`best_pairs`), for tail models. There are none without
            them, and where the scores have no tail.
        for_references: least number of references that thresholds are chosen for.

    Raises:
        CalibrationError: there are too few queries for a target (its `missing` says how many), a score is
            not finite, or thresholds are asked for another number of references and there is no tail model,
            or it gives none that a score can reach.
        ValueError: the targets are out of order or range.
    """
    if not 0 < match <= review < 1:
        raise CalibrationError(f"the rates must be 0 < match ≤ review < 1, not {match} and {review}")
    if not np.isfinite(scores).all():
        raise CalibrationError("some scores are not finite; leave out queries without a score")
    require_queries(len(scores), match, tuned_on)
    fits = tails.fit(pairs, (match, review)) if pairs else [None, None]
    if None in fits:
        fits = [None, None]
        if for_references is not None:
            raise CalibrationError(
                f"thresholds for {for_references} references need a tail model, and these scores have none: "
                "there are too few references, or too few different scores"
            )
    made = Calibration(
        version=VERSION_WITH_TAILS if fits[0] else VERSION,
        match=_threshold(scores, match, fits[0]),
        review=_threshold(scores, review, fits[1]),
        for_references=for_references,
        references=references,
        queries=len(scores),
        confidence=CONFIDENCE,
        encoder_id=ids["encoder_id"],
        transform_id=ids["transform_id"],
        preprocess_id=ids["preprocess_id"],
        normalization=normalization,
        content=content,
        views=ids.get(looks.VIEWS, looks.NONE),
    )
    if for_references is not None and made.is_out_of_reach(Verdict.MATCH, for_references):
        raise CalibrationError(
            f"for {for_references:,} references, the match threshold would be "
            f"{made.threshold(Verdict.MATCH, for_references):.2f}, which no score reaches: calibrate on more "
            f"references than {references:,}, or ask for a higher rate. Uploads that have an origin, taken "
            "for uploads without, do this, too"
        )
    return made


def require_queries(queries: int, target: float, tuned_on: float = 0.0) -> None:
    """Raise CalibrationError where there are too few queries without origin for a target rate.

    Args:
        queries: how many there are.
        target: rate.
        tuned_on: as of `calibrate`.
    """
    needed = required_queries(target)
    if queries >= needed:
        return
    missing = math.ceil((needed - queries) / (1 - tuned_on))
    aside = f" beside the {tuned_on:.0%} that the normalization is tuned on" if tuned_on else ""
    raise CalibrationError(
        f"a false-positive rate of {target:g} needs {needed} queries without origin{aside}, there are "
        f"{queries}: add {missing}, or ask for a higher rate",
        missing,
    )


def _threshold(scores: NDArray[np.floating], target: float, tail: Tail | None = None) -> Threshold:
    values, counts = np.unique(scores.astype(np.float64), return_counts=True)
    exceedances = np.cumsum(counts[::-1])[::-1]
    low_enough = exceedances / len(scores) <= target
    first = int(np.argmax(low_enough))
    reached = int(exceedances[first]) if low_enough.any() else 0
    score = values[first] if reached else np.nextafter(values[-1], np.inf)
    low, high = clopper_pearson(reached, len(scores))
    _, upper = clopper_pearson(reached, len(scores), sides=1)
    return Threshold(
        target=target,
        score=float(score),
        exceedances=reached,
        low=low,
        high=high,
        upper=upper,
        tail=tail,
    )


def best_scores(matches: pa.Table, truth: Truth, column: str) -> NDArray[np.float64]:
    """The best score of each query that the truth says has no origin, float64[n].

    Queries without a match (unreadable uploads) are left out: counted as never accepted, they would make
    the rate of the readable ones look lower than it is.

    Args:
        matches: of one run; columns query_uri and `column`.
        truth: which queries have an origin.
        column: score or normalized_score.

    Raises:
        CalibrationError: a score is not known.
    """
    without = pa.array([query for query, origin in truth.items() if not origin], pa.string())
    rows = matches.filter(pc.is_in(matches["query_uri"], value_set=without)).select(["query_uri", column])
    if rows[column].null_count:
        raise CalibrationError(f"{column} is not known in every row: fill it in or take the other score")
    best = rows.group_by("query_uri").aggregate([(column, "max")])
    return np.asarray(best[f"{column}_max"].cast(pa.float64()).to_numpy())


def best_pairs(matches: pa.Table, truth: Truth, column: str, corpus: int) -> Pairs:
    """Return the pairs of the queries that the truth says have no origin, for tail models.

    Args:
        matches: of one run, at least `tails.DEPTH` deep; columns query_uri, reference_id and `column`.
        truth: which queries have an origin.
        column: score or normalized_score.
        corpus: size of the reference corpus that was searched.
    """
    without = pa.array([query for query, origin in truth.items() if not origin], pa.string())
    rows = matches.filter(pc.is_in(matches["query_uri"], value_set=without))
    queries, references = (
        rows[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("query_uri", "reference_id")
    )
    groups = np.arange(queries.max(initial=-1) + 1)
    return Pairs(rows[column].to_numpy().astype(np.float64), queries, references, groups, corpus)


def verdicts(scores: NDArray[np.floating], calibration: Calibration, references: int) -> NDArray[np.str_]:
    """The verdict of each score (raw or normalized, as calibrated): `match`, `review` or `none`."""
    if not np.isfinite(scores).all():
        raise CalibrationError("some scores are not finite: they have no verdict")
    exact = scores.astype(np.float64)
    reached = [exact >= calibration.threshold(v, references) for v in (Verdict.MATCH, Verdict.REVIEW)]
    return np.select(reached, [Verdict.MATCH.value, Verdict.REVIEW.value], Verdict.NONE.value)


def judge(matches: pa.Table, calibration: Calibration, references: int) -> pa.Table:
    """Matches with `verdict`, `verdict_reason`, `false_positive_rate` and `calibration_id` filled in.

    Args:
        matches: a `schemas.MATCHES` table: a whole run or some blocks of it.
        calibration: for the encoder, transform and normalization of these scores.
        references: size of the corpus that was scanned.

    Returns:
        A `schemas.MATCHES` table with the rows in their order. The rate is null beside `none`.

    Raises:
        CalibrationError: the calibration is for other scores.
    """
    for name in ("encoder_id", "transform_id"):
        for value in matches[name].unique().to_pylist():
            calibration.check_ids({name: value})
    _check_normalization(matches, calibration.normalization)
    given = verdicts(matches[calibration.score].to_numpy(), calibration, references)
    empty = content.without(matches["information"].to_numpy(), calibration.content)
    given = np.where(empty, Verdict.NONE.value, given)
    rates = {v.value: calibration.false_positive_rate(v, references) for v in Verdict}
    columns: dict[str, Any] = {
        "verdict": pa.array(given.tolist(), pa.string()),
        "false_positive_rate": pa.array([rates[v] for v in given.tolist()], pa.float32()),
        "calibration_id": pa.repeat(pa.scalar(calibration.calibration_id), matches.num_rows),
        "verdict_reason": pa.array(
            [content.NO_CONTENT if none else None for none in empty.tolist()], pa.string()
        ),
    }
    return normalization.with_columns(matches, columns)


def _check_normalization(matches: pa.Table, normalization: Normalization | None) -> None:
    names = ["score", "background", "normalized_score"]
    if normalization is None:
        if matches["normalized_score"].null_count < matches.num_rows:
            raise CalibrationError("calibrated on raw scores, these are normalized: calibrate on such scores")
        return
    if any(matches[name].null_count for name in names):
        raise CalibrationError(f"calibrated on normalized scores: normalize these with {normalization!r}")
    score, background, normalized = (matches[name].to_numpy() for name in names)
    expected = normalize(score, background, normalization.factor)
    if len(matches) and np.abs(expected - normalized).max() > _ROUNDING:
        raise CalibrationError(
            f"these scores were normalized with another factor than {normalization.factor:g}: normalize "
            "with the calibration's, or calibrate anew"
        )
