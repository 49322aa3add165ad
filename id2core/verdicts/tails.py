"""How the rate of a threshold grows with the references: a tail model for any number of them.

An upload without origin is a false positive where its best reference reaches the threshold t. Let r(t; N) be
the share of such uploads against N references, and M the number that was calibrated with.

**Model.** With L(r) = ln(−ln(1 − r)), which turns the rate of the best of many into a sum,

    L(r(t; N)) = L(f) + β · ln(N / M) − ln(1 + ξ · (t − s) / σ) / ξ

s is the score that a share f reaches among M references. In N it is the law of the best of (N/M)^β times as
many: β = 1 for references that are independent draws and uploads that are all alike, which the union bound
allows for. It is smaller where the same few uploads collect the high scores, or where references resemble
each other. So β gives the effective number of references. In t it is a generalized Pareto tail (Pickands
1975).

**Fit.** Near f, the rates of M/2, M/4 and M/8 references follow without another search: an upload of which k
references reach t is a false positive of a random share p of them with the chance 1 − (1 − p)^k. A linear
regression of L of these rates, on ln of the references and ln of the share of *pairs* that reach t, gives β
and how the rate follows the pairs. The tail of the pairs is fitted above a lower score by maximum likelihood
(Grimshaw 1993). There are more pairs than uploads, so they say more about scores that no upload has reached.

**Interval.** The model is fitted again to random halves of uploads and references at once. Halves that are
drawn without replacement vary as the whole sample does. An upload or a reference that makes many of the high
scores thus widens the interval, and so does each factor between M and N.

Queries that belong together (of one picture, of one account) are halved together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

DRAWS: Final = 200
# Best references of each upload that a fit should have: counts of more are cut off.
DEPTH: Final = 64
# The tail is fitted to pairs above the score that this many times the target reach, and at most this rate.
_SPAN, _MOST = 8.0, 0.4
_LEVELS = 6
_SHARES = (1.0, 0.5, 0.25, 0.125)
# Fewer references have no eighths; fewer different excesses have no tail.
_LEAST_REFERENCES, _LEAST_EXCESSES = 16, 20
# Of the shape of pairs: below −½ the likelihood has no regular maximum.
_SHAPES = (-0.5, 0.5)
_DIGITS = 7
# L of rates that cannot be told from 0.
_NEVER = -700.0


class Fit(BaseModel):
    """The model, fitted once or many times.

    Attributes:
        references: M.
        score: s, which the target rate reaches.
        shape, scale: ξ and σ.
        growth: β.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    references: int = Field(ge=1)
    score: tuple[float, ...]
    shape: tuple[float, ...]
    scale: tuple[float, ...]
    growth: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Fit:
        if not len(self.score) == len(self.shape) == len(self.scale) == len(self.growth) > 0:
            raise ValueError("a fit has as many shapes, scales and growths as scores")
        if min(self.scale) <= 0 or not 0 <= min(self.growth) <= max(self.growth) <= 1:
            raise ValueError("a scale is above 0, and a growth from 0 to 1")
        return self

    def log_rates(
        self, target: float, score: float | NDArray[np.float64], references: int
    ) -> NDArray[np.float64]:
        """Return L of the rate of a score against some references, by each fit.

        Scores float64[n,1] give float64[n,fits].
        """
        shape, scale, growth = (np.array(x) for x in (self.shape, self.scale, self.growth))
        excess = (score - np.array(self.score)) / scale
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.log1p(np.maximum(shape * excess, -1))
            fall = np.where(np.abs(shape) < 1e-9, excess, inside / shape)
        grown = growth * math.log(references / self.references)
        return np.asarray(np.maximum(to_log(target) + grown - fall, _NEVER))


class Tail(BaseModel):
    """The model of a target rate.

    Attributes:
        target: f.
        point: the fit to all uploads and references.
        draws: fits to halves of both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(gt=0, lt=1)
    point: Fit
    draws: Fit

    def rate(self, score: float, references: int) -> float:
        """Return the rate of a threshold against at least as many references as were calibrated with."""
        return to_rate(self.point.log_rates(self.target, score, references)[0])

    def rates(self, scores: NDArray[np.float64], references: int) -> NDArray[np.float64]:
        """Return the rate of each threshold of float64[n], as of `rate`."""
        return to_rates(self.point.log_rates(self.target, scores[:, None], references)[:, 0])

    def threshold(self, references: int, rate: float | None = None) -> float:
        """Return the score that a rate of uploads, by default the target, reaches against some references."""
        [shape], [scale], [growth], [score] = (
            self.point.shape,
            self.point.scale,
            self.point.growth,
            self.point.score,
        )
        grown = growth * math.log(references / self.point.references)
        fall = grown + (to_log(self.target) - to_log(rate) if rate is not None else 0.0)
        return score + scale * (math.expm1(min(shape * fall, -_NEVER)) / shape if abs(shape) > 1e-9 else fall)

    def interval(self, score: float, references: int, confidence: float) -> tuple[float, float]:
        """Return the two-sided interval of `rate`."""
        drawn = self.draws.log_rates(self.target, score, references)
        ends = (1 - confidence) / 2
        low, middle, high = np.quantile(drawn, [ends, 0.5, 1 - ends])
        rate = float(self.point.log_rates(self.target, score, references)[0])
        return to_rate(rate + low - middle), to_rate(rate + high - middle)

    @property
    def growth(self) -> float:
        """Return β of the fit to all."""
        return self.point.growth[0]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The best pairs of uploads without origin.

    Attributes:
        scores: float64[P], of at least the `DEPTH` best references of each upload.
        queries, references: int64[P], of which upload and which reference each pair is, from 0.
        groups: int64[Q], equal for uploads that belong together; Q uploads.
        corpus: M, size of the corpus that was searched.
    """

    scores: NDArray[np.float64]
    queries: NDArray[np.int64]
    references: NDArray[np.int64]
    groups: NDArray[np.int64]
    corpus: int

    def at_least(self, score: float) -> Pairs:
        """Return the pairs that reach a score."""
        kept = self.scores >= score
        arrays = (self.scores[kept], self.queries[kept], self.references[kept])
        return Pairs(*arrays, self.groups, self.corpus)

    def best(self) -> NDArray[np.float64]:
        """Return the best score of each upload, float64[Q]; −∞ where it has no pair."""
        best = np.full(len(self.groups), -np.inf)
        np.maximum.at(best, self.queries, self.scores)
        return best

    def half(self, rng: np.random.Generator) -> Pairs:
        """Draw a random half of the groups of uploads and of the references."""
        names = np.unique(self.groups)
        chosen = rng.choice(names, (len(names) + 1) // 2, replace=False)
        own = np.isin(self.groups, chosen)
        ids = np.arange(self.references.max(initial=0) + 1)
        # Whether a reference that is in no pair is drawn makes no difference.
        drawn = rng.random(len(ids)).argsort() < (len(ids) + 1) // 2
        kept = own[self.queries] & drawn[self.references]
        place = np.cumsum(own) - 1
        return Pairs(
            self.scores[kept],
            place[self.queries[kept]],
            self.references[kept],
            self.groups[own],
            max(1, self.corpus // 2),
        )


def to_log(rate: float) -> float:
    """Return L(rate) = ln(−ln(1 − rate))."""
    return math.log(-math.log1p(-rate))


def to_rate(log_rate: float) -> float:
    """Return the rate of which L is given."""
    return -math.expm1(-math.exp(min(log_rate, 50.0)))


def least_rate() -> float:
    """Return the rate of scores that no upload reaches by the model."""
    return to_rate(_NEVER)


def to_rates(log_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rates of which L are given."""
    return np.asarray(-np.expm1(-np.exp(np.minimum(log_rates, 50.0))))


def fit(pairs: Pairs, targets: Sequence[float], draws: int = DRAWS, seed: int = 0) -> list[Tail | None]:
    """Fit the model for each target rate.

    Args:
        pairs: of the uploads without origin.
        targets: rates.
        draws: fits to halves.
        seed: of the halves.

    Returns:
        A model for each target; None where there are too few references, or the scores have no tail (as
        those of an encoder with few different scores).
    """
    # A half of the references has lower best scores: twice the rate is room enough.
    pairs = pairs.at_least(_reached_by(_falling(pairs.best()), min(1.0, 2.5 * _widest(max(targets)))))
    points = [_fit(pairs, target) for target in targets]
    drawn: list[list[_Parameters]] = [[] for _ in targets]
    rng = np.random.default_rng(seed)
    for _ in range(draws if any(points) else 0):
        half = pairs.half(rng)
        for i, target in enumerate(targets):
            if points[i] and (parameters := _fit(half, target)):
                drawn[i].append(parameters)
    return [
        Tail(target=target, point=_joined(pairs.corpus, [point]), draws=_joined(pairs.corpus // 2, parts))
        if point and len(parts) > draws / 2
        else None
        for target, point, parts in zip(targets, points, drawn, strict=True)
    ]


# Score, shape, scale, growth.
_Parameters = tuple[float, float, float, float]


def _joined(references: int, fits: list[_Parameters]) -> Fit:
    score, shape, scale, growth = (
        tuple(float(f"{x:.{_DIGITS}g}") for x in column) for column in zip(*fits, strict=True)
    )
    return Fit(references=references, score=score, shape=shape, scale=scale, growth=growth)


def _fit(pairs: Pairs, target: float) -> _Parameters | None:
    """Fit the model once; None where it has no tail."""
    if pairs.corpus < _LEAST_REFERENCES:
        return None
    best = _falling(pairs.best())
    scores = [_reached_by(best, rate) for rate in np.geomspace(target, _widest(target), _LEVELS)]
    score, floor = scores[0], scores[-1]
    excesses = pairs.scores[pairs.scores > floor] - floor
    if not math.isfinite(floor) or score <= floor or len(np.unique(excesses)) < _LEAST_EXCESSES:
        return None
    follows, growth = _slopes(pairs, scores)
    if not follows > 0:
        return None
    shape, scale = pareto(excesses)
    scale_there = scale + shape * (score - floor)
    if scale_there <= 0:
        return None
    return score, shape / follows, scale_there / follows, min(max(growth, 0.0), 1.0)


def _widest(target: float) -> float:
    """Return the rate of the score from which on the tail of a target is fitted."""
    return max(min(_SPAN * target, _MOST), min(2 * target, 0.9))


def _falling(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sort(scores)[::-1]


def _reached_by(best: NDArray[np.float64], rate: float) -> float:
    """Return the score that a share of the best scores, falling, reaches."""
    return float(best[max(0, math.floor(rate * len(best)) - 1)])


def _slopes(pairs: Pairs, scores: Sequence[float]) -> tuple[float, float]:
    """Return how L of the rate follows ln of the share of pairs, and ln of the references."""
    rows, weights = [], []
    for score in scores:
        reaching = np.bincount(pairs.queries[pairs.scores >= score], minlength=len(pairs.groups))
        uploads = np.bincount(reaching)
        counts = np.arange(len(uploads))
        for share in _SHARES:
            rate = float(uploads @ (1 - (1 - share) ** counts)) / len(pairs.groups)
            if 0 < rate < 1:
                rows.append((1.0, math.log(reaching.mean()), math.log(share), to_log(rate)))
                weights.append(math.sqrt(rate))
    if len(rows) < 3:
        return 0.0, 0.0
    table, weight = np.array(rows), np.array(weights)[:, None]
    solution = np.linalg.lstsq(table[:, :3] * weight, table[:, 3] * weight[:, 0])[0]
    return float(solution[1]), float(solution[2])


def pareto(excesses: NDArray[np.float64]) -> tuple[float, float]:
    """Return shape and scale of a generalized Pareto distribution by maximum likelihood.

    With θ = shape / scale the shape is the mean of ln(1 + θ·y), which leaves a search along θ alone.
    `scipy.stats.genpareto.fit` finds the same maximum in two dimensions, but takes 0.1 to 0.3 s for 2,000
    values and cannot be asked hundreds of times.

    Args:
        excesses: float64[n], above 0.
    """
    # Whoever scans reads a model and fits none.
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    mean, largest = float(excesses.mean()), float(excesses.max())

    def parameters(place: float) -> tuple[float, float]:
        theta = math.expm1(place) / largest
        if abs(theta) * largest < 1e-6:
            return 0.0, mean
        shape = float(np.log1p(theta * excesses).mean())
        return shape, shape / theta

    def loss(place: float) -> float:
        shape, scale = parameters(place)
        return math.log(scale) + shape + 1

    place = minimize_scalar(loss, bounds=(-7.0, math.log1p(50 * largest / mean)), method="bounded").x
    shape, scale = parameters(float(place))
    if _SHAPES[0] <= shape <= _SHAPES[1]:
        return shape, scale
    # With the shape given, the mean of the excesses is scale / (1 − shape).
    shape = min(max(shape, _SHAPES[0]), _SHAPES[1])
    return shape, mean * (1 - shape)
