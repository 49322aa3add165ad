"""The verdicts of one channel's pairs, at the rate of all channels together.

A pair reaches a joint level where its score reaches the threshold of its channel (`channels`). So each
channel's search judges its own rows, and nothing is joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from id2core.errors import CalibrationError
from id2core.search.background_rows import Backgrounds
from id2core.store.datasets import Dataset
from id2core.verdicts import content
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.channels import Channels
from id2core.verdicts.judging import Judge
from id2core.verdicts.normalization import with_columns


@dataclass(frozen=True)
class ChannelJudge:
    """Judges the matches of one channel: a `match_rows.Judge`, as `judging.Judge` is.

    Attributes:
        channels: the joint calibration.
        name: of the channel.
        own: normalizes the scores of the channel; its calibration is that of the channel.

    Raises:
        CalibrationError: there is no such channel, or `own` judges by another calibration.
    """

    channels: Channels
    name: str
    own: Judge

    def __post_init__(self) -> None:
        """Check that the judge is that of the channel."""
        held = {channel.name: channel.calibration_id for channel in self.channels.joint.channels}
        if held.get(self.name) != self.own.calibration_id:
            raise CalibrationError(
                f"{self.own.calibration_id} is not the calibration of the channel {self.name}: the joint "
                f"calibration has {', '.join(f'{name} by {by}' for name, by in held.items())}"
            )

    @property
    def calibration_id(self) -> str:
        """Name of the joint calibration."""
        return self.channels.joint.calibration_id

    @property
    def calibration(self) -> Calibration:
        """The calibration of the channel."""
        return self.own.calibration

    @property
    def backgrounds(self) -> Backgrounds | None:
        """What normalizes the scores of the channel."""
        return self.own.backgrounds

    @property
    def score(self) -> str:
        """The column of `matches/` that is judged."""
        return self.own.score

    @property
    def lowest(self) -> float:
        """Least score that is reviewed in a corpus of any size."""
        return self.channels.threshold(self.name, Verdict.REVIEW, 1)

    def is_out_of_reach(self, references: int) -> bool:
        """Return whether no pair of the channel can be a match in a corpus of `references`."""
        threshold = self.channels.threshold(self.name, Verdict.MATCH, references)
        return threshold > self.calibration.most

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise CalibrationError when the channel is calibrated for scores of other ids."""
        self.own.check_ids(ids)

    def after(self, backgrounds: Dataset) -> ChannelJudge:
        """Return the judge once a search of the background is committed to a data set."""
        return replace(self, own=self.own.after(backgrounds))

    def judge(self, matches: pa.Table, references: int, segments: frozenset[str] | None = None) -> pa.Table:
        """Return matches with their verdicts, rows in their order; as `judging.Judge.judge`.

        `false_positive_rate` is that of an upload over all channels, and `channel` is this one.
        """
        judged = self.own.judge(matches, references, segments)
        if not judged.num_rows:
            return judged
        scores = judged[self.score].to_numpy().astype(np.float64)
        levels = (Verdict.MATCH, Verdict.REVIEW)
        empty = content.without(judged["information"].to_numpy(), self.own.calibration.content)
        reached = [
            (scores >= self.channels.threshold(self.name, level, references)) & ~empty for level in levels
        ]
        names = np.select(reached, [level.value for level in levels], Verdict.NONE.value).tolist()
        rates = {level.value: self.channels.joint.level(level).target for level in levels}
        rows = judged.num_rows
        return with_columns(
            judged,
            {
                "channel": pa.repeat(pa.scalar(self.name), rows),
                "verdict": pa.array(names, pa.string()),
                "false_positive_rate": pa.array([rates.get(name) for name in names], pa.float32()),
                "calibration_id": pa.repeat(pa.scalar(self.calibration_id), rows),
            },
        )


# What judges the pairs of a search: by a calibration of its own, or as one of several channels.
AnyJudge = Judge | ChannelJudge
