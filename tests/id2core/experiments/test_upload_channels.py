"""Two encoders on the same uploads: what each and one verdict find, and what is kept of the second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from id2core.encoders.registry import load_encoder
from id2core.experiments import evaluation_sets, upload_channels
from id2core.experiments.evaluation_sets import EvaluationSet
from id2core.experiments.methods import Methods
from id2core.experiments.results import Skipped
from id2core.experiments.upload_channels import Channel, Judge, SecondSet, Verdicts
from id2core.experiments.upload_edits import EDITS
from id2core.experiments.upload_matchers import Whole
from id2core.experiments.upload_sets import COPY, UploadSet
from id2core.transforms.linear import Transform
from tests.id2core.experiments.test_uploads import data, lost, made

__all__ = ["data", "lost", "made"]  # fixtures


def _channel(name: str, uploads: UploadSet) -> Channel:
    identity = Transform()
    whole = Whole(name, identity, identity.apply(uploads.references))
    return Channel(name, uploads, whole, identity.transform_id)


def test_the_same_encoder_again_changes_no_verdict(
    data: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_sets, "RESAMPLES", 50)
    monkeypatch.setattr(upload_channels, "MATCH", 0.5)
    monkeypatch.setattr(upload_channels, "REVIEW", 0.5)
    monkeypatch.setattr(
        upload_channels, "_WEIGHTS", (0.5, 0.5)
    )  # few scores: there is no tail below the rate
    again = SecondSet(data, second=load_encoder("pdq"))

    judge = Judge.of(_channel("latent", UploadSet(data)), _channel("pdq", again))
    rows = upload_channels.measure(judge, [EDITS["untouched"], EDITS["mirrored"]])

    np.testing.assert_array_equal(again.references, data.references)
    assert [(row["kind"], row["edit"]) for row in rows[:3]] == [
        (COPY, "untouched"),
        (COPY, "mirrored"),
        (COPY, "all"),
    ]
    assert rows[0]["first"].value == 1 > rows[1]["first"].value
    for row in rows:
        assert row["first"] == row["second"] == row["joint"]
        assert row["kept"].value in (1, None)


def test_what_the_second_encoder_saw_is_kept(data: EvaluationSet, lost: Path) -> None:
    edit = EDITS["crop-0.5-centered"]
    first = SecondSet(data, second=load_encoder("pdq"))
    references, (latents, _) = first.references, first.of(edit, "b").latents()
    lost.rename(lost.parent / "aside")  # nothing can be encoded any more

    again = SecondSet(data, second=load_encoder("pdq"))

    np.testing.assert_array_equal(again.references, references)
    np.testing.assert_array_equal(again.of(edit, "b").latents()[0], latents)


def test_a_row_compares_one_verdict_with_each_channel_alone() -> None:
    hits = {"first": [1] * 12 + [0] * 8, "second": [0] * 10 + [1] * 6 + [0] * 4}
    hits["joint"] = [0] * 2 + [1] * 12 + [0] * 6
    hits["equal"] = [0] * 4 + [1] * 12 + [0] * 4
    found = {name: np.array(flags, np.bool_) for name, flags in hits.items()}
    none = dict.fromkeys(found, np.zeros(20, np.bool_))

    one = Verdicts(found, none, np.arange(20)).row()
    twice = Verdicts.pool([Verdicts(found, none, np.arange(20))] * 2).row()

    assert (one["first"].value, one["joint"].value, one["of_better"].value) == (0.6, 0.6, 1)
    assert one["either"] == 16 and one["kept"].value == 12 / 16
    assert one["kept"].low == pytest.approx(0.4762, abs=1e-4)  # Clopper–Pearson of 12 of 16
    assert one["kept_equal"].value == 12 / 16 and one["false_joint"].value == 0
    assert (twice["uploads"], twice["either"], twice["kept"].value) == (40, 32, 12 / 16)
    assert twice["kept"].high - twice["kept"].low > 0.2  # the same photos again narrow nothing


def test_the_experiment_needs_a_second_encoder_and_a_w(data: EvaluationSet, tmp_path: Path) -> None:
    alone = upload_channels.two(Methods(data, tmp_path))
    without = upload_channels.two(Methods(data, tmp_path, also="pdq"))

    assert isinstance(alone, Skipped) and "--also" in alone.reason
    assert isinstance(without, Skipped) and "no W with views" in without.reason
