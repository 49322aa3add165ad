"""One verdict from several encoders, at one stated false-positive rate.

A second encoder beside the first is a second channel: a search of its own, with a calibration of its own. Two
alarms at 1% each are up to 2% of false positives. So an upload gets one statistic, and the rate is that of
the statistic.

**Statistic.** A calibration turns a score s of its channel c into the false-positive rate q_c(s) of a
threshold there, against N references (`rates_of`). Each channel has a weight w_c, and the weights sum to 1 at
most. The statistic of an upload is

    t = min over channels c of q_c(best score of c) / w_c

and its verdict is `match` where t ≤ τ. This says the same of each pair by itself: a pair of channel c is a
match where its score reaches the threshold of the rate w_c · τ. So pairs are judged row by row, and no
channel waits for another.

**Union bound.** With τ = r, the rate is at most r, however the channels depend on each other:

    P(t ≤ r) ≤ Σ_c P(q_c ≤ w_c · r) ≤ Σ_c w_c · r ≤ r

It takes nothing but the calibrations, and is true as far as they are.

**Measured.** Channels resemble each other, so the union bound gives away rate. Strangers, uploads without
origin that all channels have scored, say which τ a share r of them reaches. The interval of the true rate is
that of any calibration (Clopper–Pearson). It holds even where the q_c are wrong, because t may be any
statistic. A rate needs as many strangers as in `calibration`.

**A channel is missing** for an upload that its encoder rejects. The others then count at their own weights.
By the union bound that is no more than Σ of the present w_c · r. With a measured τ it is
P(q_c ≤ w_c · τ) ≤ P(t ≤ τ), if the q_c are right. So no upload raises its rate by being rejected.

**Another number of references.** q_c follows N, and τ stays. Where a measured τ meets another N than it was
measured against, its interval is widened towards what holds for any dependence: at least the rate of the most
likely channel alone, and at most the sum of all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from id2core.errors import CalibrationError
from id2core.evaluation.truth_files import Truth
from id2core.store import datasets, storage, strict_json
from id2core.verdicts import calibration, tails
from id2core.verdicts.calibration import CONFIDENCE, Calibration, Verdict, clopper_pearson
from id2core.verdicts.tails import Tail

VERSION: Final = "1"
Rule = Literal["union bound", "measured"]
UNION: Final = "union bound"
MEASURED: Final = "measured"
# Weights such as three thirds may sum to a little more than 1.
_ROUNDING: Final = 1e-9
# A threshold between two observed statistics lies this little above the lower one, so that rounding decides
# nothing.
_ABOVE: Final = 1 + 1e-9
_MOST: Final = 1 - 1e-12


class Channel(BaseModel):
    """A channel of a joint calibration.

    Attributes:
        name: the `channel` of its rows in `matches/`.
        weight: share of the rate that is the channel's by the union bound.
        calibration_id, encoder_id, transform_id, preprocess_id: of its calibration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    weight: float = Field(gt=0, le=1)
    calibration_id: str = Field(min_length=1)
    encoder_id: str = Field(min_length=1)
    transform_id: str = Field(min_length=1)
    preprocess_id: str = Field(min_length=1)


class Level(BaseModel):
    """From which statistic on an upload gets a verdict.

    Attributes:
        target: false-positive rate that is stated.
        statistic: τ, reached by uploads whose t is no larger.
        exceedances: strangers that reach it; None by the union bound, as `low` and `high`.
        low, high: two-sided Clopper–Pearson interval of the true rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    target: float = Field(gt=0, lt=1)
    statistic: float = Field(gt=0)
    exceedances: int | None = Field(default=None, ge=0)
    low: float | None = Field(default=None, ge=0, le=1)
    high: float | None = Field(default=None, ge=0, le=1)


class JointCalibration(BaseModel):
    """How several channels give one verdict.

    Attributes:
        rule: where the rates come from.
        channels: in the order of their columns.
        match, review: the strict level and the loose one.
        references: that the strangers were searched in; None by the union bound, as `queries`.
        queries: n, strangers.
        confidence: of the intervals.
        version: of this file format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["1"] = VERSION
    rule: Rule
    channels: tuple[Channel, ...] = Field(min_length=1)
    match: Level
    review: Level
    references: int | None = Field(default=None, ge=1)
    queries: int | None = Field(default=None, ge=1)
    confidence: float = Field(default=CONFIDENCE, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> JointCalibration:
        if len({c.name for c in self.channels}) < len(self.channels):
            raise ValueError("two channels have the same name")
        if sum(c.weight for c in self.channels) > 1 + _ROUNDING:
            raise ValueError("the weights of the channels sum to more than 1")
        if self.match.statistic > self.review.statistic or self.match.target > self.review.target:
            raise ValueError("the match level must be at least as strict as the review level")
        counts = (self.references, self.queries, *(x.exceedances for x in (self.match, self.review)))
        ends = (self.match.low, self.match.high, self.review.low, self.review.high)
        if any((x is None) is (self.rule == MEASURED) for x in (*counts, *ends)):
            raise ValueError("a measured rate has its strangers and its interval, and a union bound has none")
        if self.rule == UNION and any(x.statistic > x.target for x in (self.match, self.review)):
            raise ValueError("by the union bound, a statistic is no larger than its rate")
        return self

    @property
    def calibration_id(self) -> str:
        """First 16 hex of a SHA-256 over all of it, so of the calibrations of its channels."""
        return datasets.digest_of(self._facts())

    def _facts(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def level(self, verdict: Verdict) -> Level:
        """Return the level of `match` or `review`."""
        return self.match if verdict is Verdict.MATCH else self.review

    def save(self, uri: str) -> None:
        """Write JSON to a local path or gs:// URI."""
        whole = {"calibration_id": self.calibration_id} | self._facts()
        storage.write_bytes(storage.normalize(uri), json.dumps(whole, indent=1).encode())


def load(uri: str) -> JointCalibration:
    """Read what `JointCalibration.save` wrote.

    Raises:
        CalibrationError: the file is missing, no joint calibration, or changed by hand.
    """
    try:
        raw = strict_json.parse_object(storage.read_marked(storage.normalize(uri))[0])
        stated = raw.pop("calibration_id")
        joint = JointCalibration.model_validate(raw)
    except FileNotFoundError as error:
        raise CalibrationError(f"{uri}: no such joint calibration") from error
    except ValidationError as error:
        raise CalibrationError(f"{uri} is not a joint calibration: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{uri} is not a joint calibration") from error
    if joint.calibration_id != stated:
        raise CalibrationError(f"{uri} was changed after it was made (its content is not {stated})")
    return joint


@dataclass(frozen=True)
class Channels:
    """A joint calibration with the calibrations of its channels: what gives verdicts.

    Attributes:
        joint: the rule.
        calibrations: of its channels, in their order.

    Raises:
        CalibrationError: a calibration is not that of its channel.
    """

    joint: JointCalibration
    calibrations: tuple[Calibration, ...]

    def __post_init__(self) -> None:
        """Check that every calibration is that of its channel."""
        if len(self.calibrations) != len(self.joint.channels):
            raise CalibrationError(
                f"a joint calibration of {len(self.joint.channels)} channels needs as many calibrations, "
                f"not {len(self.calibrations)}"
            )
        for channel, own in zip(self.joint.channels, self.calibrations, strict=True):
            own.check_ids({name: getattr(channel, name) for name in _IDS})
            if own.calibration_id != channel.calibration_id:
                raise CalibrationError(
                    f"the channel {channel.name} was calibrated jointly with {channel.calibration_id}, this "
                    f"is {own.calibration_id}: give that calibration, or calibrate jointly anew"
                )

    @property
    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each channel, float64[C]."""
        return np.array([channel.weight for channel in self.joint.channels])

    def statistic(self, scores: NDArray[np.floating], references: int) -> NDArray[np.float64]:
        """Return t of uploads, float64[Q]; NaN where no channel has a score.

        Args:
            scores: float[Q,C], best score of each upload in each channel, as the channel is calibrated; NaN
                where a channel has none.
            references: size of the corpus that was searched.
        """
        return _statistic(self.calibrations, self.weights, scores, [references] * len(self.calibrations))

    def threshold(self, name: str, verdict: Verdict, references: int) -> float:
        """Return the score from which on a pair of a channel gets a verdict; ∞ where no score is enough.

        Raises:
            ValueError: nothing is needed for the verdict `none`.
            KeyError: there is no such channel.
        """
        if verdict is Verdict.NONE:
            raise ValueError("the verdict none has no threshold")
        return self._thresholds(verdict, references)[[c.name for c in self.joint.channels].index(name)]

    def _thresholds(self, verdict: Verdict, references: int) -> list[float]:
        level = self.joint.level(verdict).statistic
        return [
            score_of(own, channel.weight * level, references)
            for channel, own in zip(self.joint.channels, self.calibrations, strict=True)
        ]

    def verdicts(self, scores: NDArray[np.floating], references: int) -> NDArray[np.str_]:
        """Return the verdict of each upload, `none` where no channel has a score.

        Args:
            scores: as of `statistic`. A row of one pair, with NaN in all other channels, gives the verdict of
                the pair.
            references: size of the corpus that was searched.
        """
        exact = np.asarray(scores, np.float64)
        reached = [
            (exact >= np.array(self._thresholds(verdict, references))).any(axis=1)
            for verdict in (Verdict.MATCH, Verdict.REVIEW)
        ]
        return np.select(reached, [Verdict.MATCH.value, Verdict.REVIEW.value], Verdict.NONE.value)

    def interval(self, verdict: Verdict, references: int) -> tuple[float, float] | None:
        """Return the two-sided interval of a verdict's true rate; None for `none`.

        By the union bound it is between the rate of the most likely channel and the sum of all, each with its
        own interval at a confidence that holds for all at once. A measured rate has its own interval against
        the references that it was measured with.
        """
        if verdict is Verdict.NONE:
            return None
        level, joint = self.joint.level(verdict), self.joint
        ends = [self._ends(i, level, references) for i in range(len(self.calibrations))]
        low, high = max(low for low, _ in ends), min(1.0, sum(high for _, high in ends))
        if level.low is None or level.high is None or joint.references is None:
            return low, high
        if references == joint.references:
            return level.low, level.high
        # For thresholds that do not fall, more references raise a rate N/M-fold at most.
        grown = min(1.0, level.high * max(1.0, references / joint.references))
        lower = min(level.low, low) if references > joint.references else 0.0
        return lower, max(level.high, min(grown, high))

    def _ends(self, place: int, level: Level, references: int) -> tuple[float, float]:
        """Return the interval of the rate of one channel alone."""
        own = self.calibrations[place]
        confidence = 1 - (1 - self.joint.confidence) / len(self.calibrations)
        rate = self.joint.channels[place].weight * level.statistic
        score = score_of(own, rate, references)
        if score == math.inf:
            return 0.0, 0.0
        held = own.match if rate <= own.match.target else own.review
        low, high = (
            rate * x / held.target for x in clopper_pearson(held.exceedances, own.queries, confidence)
        )
        if held.tail:
            drawn = held.tail.interval(score, max(references, own.references), confidence)
            low, high = min(low, drawn[0]), max(high, drawn[1])
        return (low if references >= own.references else 0.0), min(1.0, high)


_IDS: Final = ("encoder_id", "transform_id", "preprocess_id")


def union(
    calibrations: Mapping[str, Calibration],
    *,
    match: float,
    review: float,
    weights: Sequence[float] | None = None,
) -> JointCalibration:
    """Make a joint calibration whose rate the union bound proves.

    Args:
        calibrations: name of a channel → its calibration. One whose targets are its share of the rates
            (weight · match, weight · review) has measured thresholds there; others follow its tail models.
        match, review: target rates of the two verdicts, 0 < match ≤ review < 1.
        weights: of the channels, in their order; equal by default.

    Raises:
        CalibrationError: rates or weights are out of order or range, or a calibration without tail models
            has no threshold at its share.
    """
    levels = {
        name: Level(target=target, statistic=target) for name, target in _targets(match, review).items()
    }
    return _made(UNION, calibrations, weights, levels)


def measured(
    calibrations: Mapping[str, Calibration],
    scores: NDArray[np.floating],
    references: int,
    *,
    match: float,
    review: float,
    weights: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
) -> JointCalibration:
    """Make a joint calibration by strangers that all channels have scored.

    Args:
        calibrations: name of a channel → its calibration.
        scores: float[n,C], best score of each stranger in each channel (`stranger_scores`); NaN where the
            channel rejects it. A stranger that all channels reject is left out.
        references: size of the corpus that they were searched in.
        match, review: target rates of the two verdicts, 0 < match ≤ review < 1.
        weights: of the channels, in their order; equal by default.
        sizes: of the corpus in each channel, where an encoder rejects some references; `references` by
            default.

    Raises:
        CalibrationError: there are too few strangers for a rate (its `missing` says how many), a score is
            infinite, rates or weights are out of order or range, or a calibration without tail models has no
            threshold at the level.
    """
    if np.isinf(scores).any():
        raise CalibrationError("some scores are infinite; leave them out, or set NaN where there is none")
    targets = _targets(match, review)
    shares = _weights(calibrations, weights)
    held = sizes or [references] * len(calibrations)
    statistics = _statistic(tuple(calibrations.values()), np.array(shares), scores, held)
    known = np.sort(statistics[~np.isnan(statistics)])
    calibration.require_queries(len(known), match)
    levels = {name: _level(known, target) for name, target in targets.items()}
    return _made(MEASURED, calibrations, shares, levels, references=references, queries=len(known))


def stranger_scores(
    matches: Mapping[str, pa.Table], calibrations: Mapping[str, Calibration], truth: Truth
) -> NDArray[np.float64]:
    """Return the best score of each query that the truth says has no origin in each channel, float64[n,C].

    A query without a match in a channel was rejected there, and has NaN. So the matches must be stored
    without a floor.

    Args:
        matches: name of a channel → its matches of one run: `query_uri` and the score that is calibrated.
        calibrations: name of a channel → its calibration; columns have their order.
        truth: which queries have an origin.

    Raises:
        CalibrationError: a score is not known.
    """
    without = pa.array([query for query, origin in truth.items() if not origin], pa.string())
    scores = np.full((len(without), len(calibrations)), np.nan)
    for place, (name, own) in enumerate(calibrations.items()):
        rows = matches[name].select(["query_uri", own.score])
        number = pc.index_in(rows["query_uri"], value_set=without)
        rows, number = rows.filter(number.is_valid()), number.drop_null()
        if rows[own.score].null_count:
            raise CalibrationError(f"{name}: {own.score} is not known in every row: fill it in")
        np.fmax.at(scores[:, place], number.to_numpy(), rows[own.score].to_numpy().astype(np.float64))
    return scores


def _level(statistics: NDArray[np.float64], target: float) -> Level:
    """Return the largest statistic that at most a share of all (sorted) reaches, ties counted in."""
    values, counts = np.unique(statistics, return_counts=True)
    reached = np.cumsum(counts)
    place = int(np.searchsorted(reached / len(statistics), target, side="right")) - 1
    if place < 0:
        exceedances, level = 0, float(values[0]) / 2
    else:
        exceedances, level = int(reached[place]), float(values[place])
        following = values[place + 1] if place + 1 < len(values) else math.inf
        level = min(level * _ABOVE, (level + float(following)) / 2)
    low, high = clopper_pearson(exceedances, len(statistics))
    return Level(target=target, statistic=level, exceedances=exceedances, low=low, high=high)


def _targets(match: float, review: float) -> dict[str, float]:
    if not 0 < match <= review < 1:
        raise CalibrationError(f"the rates must be 0 < match ≤ review < 1, not {match} and {review}")
    return {"match": match, "review": review}


def _weights(calibrations: Mapping[str, Calibration], weights: Sequence[float] | None) -> list[float]:
    count = len(calibrations)
    given = list(weights) if weights is not None else [1 / count] * count
    if len(given) != count or min(given, default=0) <= 0 or sum(given) > 1 + _ROUNDING:
        raise CalibrationError(f"{count} channels need as many weights above 0 that sum to 1, not {given}")
    return given


def _made(
    rule: Rule,
    calibrations: Mapping[str, Calibration],
    weights: Sequence[float] | None,
    levels: dict[str, Level],
    **sample: int,
) -> JointCalibration:
    channels = tuple(
        Channel(
            name=name,
            weight=weight,
            calibration_id=own.calibration_id,
            **{key: getattr(own, key) for key in _IDS},
        )
        for (name, own), weight in zip(calibrations.items(), _weights(calibrations, weights), strict=True)
    )
    for channel, own in zip(channels, calibrations.values(), strict=True):
        _check_reach(channel.name, own, channel.weight, levels["match"])
    return JointCalibration(rule=rule, channels=channels, **levels, **sample)


def check_share(name: str, own: Calibration, match: float, weight: float) -> None:
    """Raise CalibrationError where a channel has no threshold at its share of a rate.

    A measured rule may leave a channel a larger share than the union bound does. How large is known at the
    end, so a calibration must not depend on it.

    Args:
        name: of the channel.
        own: its calibration.
        match: target rate of a match over all channels.
        weight: of the channel.
    """
    _check_reach(name, own, weight, Level(target=match, statistic=match))


def _check_reach(name: str, own: Calibration, weight: float, level: Level) -> None:
    """Raise CalibrationError where no score of a channel is enough for a match."""
    share = weight * level.statistic
    if score_of(own, share, own.references) == math.inf:
        raise CalibrationError(
            f"no score of the channel {name} is enough for a match: its share is a rate of "
            f"{share:.2g}, and its calibration knows no threshold there. Calibrate it on more references, so "
            f"that it has a tail model, or by itself with --match {weight * level.target:.2g}, and give that "
            "file. If it is the first channel, its rate is the joint one: measure a joint calibration with "
            "id2 calibrate --also"
        )


def _statistic(
    calibrations: Sequence[Calibration],
    weights: NDArray[np.float64],
    scores: NDArray[np.floating],
    sizes: Sequence[int],
) -> NDArray[np.float64]:
    each = zip(calibrations, scores.T, sizes, strict=True)
    rates = np.column_stack([rates_of(own, column, size) for own, column, size in each])
    return np.asarray(np.fmin.reduce(rates / weights, axis=1))


def rates_of(own: Calibration, scores: NDArray[np.floating], references: int) -> NDArray[np.float64]:
    """Return the false-positive rate of a threshold at each score, float64[n]; NaN where a score is.

    At the thresholds of the calibration it is the rate that they state. L of the rate (`tails`) is linear
    between them. Above and below it follows the tail model of the nearer one. It never falls where the score
    does. Without tail models it is a step: the rate of the strongest verdict that a score gets, else 1.

    Args:
        own: the calibration.
        scores: float[n], as it is calibrated (raw or normalized).
        references: size of the corpus that was searched.
    """
    return _Curve.of(own, references).rates(np.asarray(scores, np.float64))


def score_of(own: Calibration, rate: float, references: int) -> float:
    """Return the score from which on `rates_of` is at most a rate; ∞ where no score is enough.

    Args:
        own: the calibration.
        rate: above 0.
        references: size of the corpus that was searched.
    """
    return _Curve.of(own, references).score(rate)


@dataclass(frozen=True)
class _Point:
    """A threshold against a number of references.

    Attributes:
        score: of the threshold.
        rate: that is stated for it.
        tail: how the rate follows the score.
    """

    score: float
    rate: float
    tail: Tail | None

    @classmethod
    def of(cls, own: Calibration, verdict: Verdict, references: int) -> _Point:
        held = own.match if verdict is Verdict.MATCH else own.review
        rate = own.false_positive_rate(verdict, references) or 0.0
        # L of 1 is infinite.
        return cls(own.threshold(verdict, references), min(rate, _MOST), held.tail)


@dataclass(frozen=True)
class _Curve:
    """The rate of every score against a number of references.

    Attributes:
        match, review: the thresholds that a calibration states.
        references: that tail models are asked for: at least as many as were calibrated with.
    """

    match: _Point
    review: _Point
    references: int

    @classmethod
    def of(cls, own: Calibration, references: int) -> _Curve:
        match, review = (_Point.of(own, v, references) for v in (Verdict.MATCH, Verdict.REVIEW))
        # Both models are fitted for themselves: far out they may cross.
        strict = _Point(match.score, min(match.rate, review.rate), match.tail)
        return cls(strict, review, max(references, own.references))

    def rates(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rate of each score."""
        match, review = self.match, self.review
        if match.tail is None or review.tail is None:
            steps = np.select([scores >= match.score, scores >= review.score], [match.rate, review.rate], 1.0)
            return np.where(np.isnan(scores), np.nan, steps)
        above = np.minimum(match.tail.rates(scores, self.references), match.rate)
        below = np.maximum(review.tail.rates(scores, self.references), review.rate)
        rates = np.select(
            [scores >= match.score, scores >= review.score], [above, self._between(scores)], below
        )
        return np.where(np.isnan(scores), np.nan, rates)

    def _between(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        ends = [tails.to_log(point.rate) for point in (self.review, self.match)]
        return tails.to_rates(np.interp(scores, [self.review.score, self.match.score], ends))

    def score(self, rate: float) -> float:
        """Return the score from which on the rate is at most `rate`."""
        match, review = self.match, self.review
        if rate >= 1:
            return -math.inf
        if rate < tails.least_rate():
            return math.inf
        if match.tail is None or review.tail is None:
            return review.score if rate >= review.rate else match.score if rate >= match.rate else math.inf
        if rate >= review.rate:
            return min(review.score, review.tail.threshold(self.references, rate))
        if rate < match.rate:
            return max(match.score, match.tail.threshold(self.references, rate))
        ends = [tails.to_log(point.rate) for point in (match, review)]
        return float(np.interp(tails.to_log(rate), ends, [match.score, review.score]))
