"""What the verdicts of several channels hold for, as `summary.json` says it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from id2core.verdicts import judging
from id2core.verdicts.calibration import Verdict
from id2core.verdicts.channels import Channels, Rule
from id2core.verdicts.judging import CalibrationFacts


class JointRate(BaseModel):
    """The false-positive rate of an upload's verdict over all channels, and the interval of the true rate."""

    model_config = ConfigDict(frozen=True)

    false_positive_rate: float
    low: float
    high: float


class ChannelFacts(BaseModel):
    """One channel of a joint calibration.

    Attributes:
        weight: its share of the rate by the union bound.
        thresholds: `match` and `review` → the score from which on a pair of the channel gets the verdict;
            None where no score is enough.
        calibration: of the channel. Its rates are those that it has alone, not those of the verdicts.
    """

    model_config = ConfigDict(frozen=True)

    weight: float
    thresholds: dict[str, float | None]
    calibration: CalibrationFacts


class JointFacts(BaseModel):
    """What the verdicts of a scan of several channels hold for.

    Attributes:
        calibration_id: names the joint calibration.
        rule: `union bound` or `measured`.
        origin: `union`, or its file; `from` in JSON.
        confidence: of the intervals.
        verdicts: `match` and `review` → the rates that are stated.
        channels: name → facts, in the order of the joint calibration.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    calibration_id: str
    rule: Rule
    origin: str = Field(alias="from")
    confidence: float
    verdicts: dict[str, JointRate]
    channels: dict[str, ChannelFacts]


def reached(
    chosen: Channels, scores: NDArray[np.floating], verdict: Verdict, sizes: Sequence[int]
) -> NDArray[np.bool_]:
    """Return in which channels an upload reaches a level, bool[Q,C].

    Args:
        chosen: the joint calibration.
        scores: float[Q,C], as of `Channels.statistic`.
        verdict: `match` or `review`.
        sizes: of the corpus that was searched in each channel.
    """
    each = zip(chosen.joint.channels, sizes, strict=True)
    thresholds = [chosen.threshold(channel.name, verdict, size) for channel, size in each]
    return np.asarray(scores, np.float64) >= np.array(thresholds)


def facts(chosen: Channels, spec: str, references: int, own: Sequence[CalibrationFacts]) -> JointFacts:
    """Return what the verdicts of a scan hold for.

    Args:
        chosen, spec: the joint calibration and how it was asked for.
        references: size of the corpus that was searched.
        own: facts of each channel's calibration, in their order.
    """
    joint = chosen.joint
    return JointFacts(
        calibration_id=joint.calibration_id,
        rule=joint.rule,
        origin=spec,
        confidence=joint.confidence,
        verdicts={level.value: _rate(chosen, level, references) for level in judging.LEVELS},
        channels={
            channel.name: ChannelFacts(
                weight=channel.weight,
                thresholds={
                    level.value: finite(chosen.threshold(channel.name, level, references))
                    for level in judging.LEVELS
                },
                calibration=one,
            )
            for channel, one in zip(joint.channels, own, strict=True)
        },
    )


def _rate(chosen: Channels, level: Verdict, references: int) -> JointRate:
    low, high = chosen.interval(level, max(1, references)) or (0.0, 1.0)
    return JointRate(false_positive_rate=chosen.joint.level(level).target, low=low, high=high)


def finite(score: float) -> float | None:
    """Return a threshold as files have it: None where no score is enough."""
    return score if math.isfinite(score) else None
