"""A calibration that holds on labeled uploads, and one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import id2
from id2.jobs.check_calibration import problems, read_last
from id2core.errors import CalibrationError, OptionError
from id2core.evaluation.comparison import VerdictRate


def rate(measured: float, low: float, high: float) -> VerdictRate:
    return VerdictRate(
        threshold=0.5,
        stated=0.01,
        stated_low=0.008,
        stated_high=0.012,
        measured=measured,
        low=low,
        high=high,
        queries=100,
        origins_found=1.0,
    )


def test_the_bundled_calibration_holds_on_the_demo_and_a_lower_accuracy_fails(tmp_path: Path) -> None:
    check = id2.check_calibration(out=str(tmp_path), encoder="mini")
    assert check.problems == [] and set(check.verdicts) == {"match", "review"}
    assert check.accuracy and check.accuracy_before is None
    assert read_last(str(tmp_path)) == check
    file = tmp_path / "check.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy": 1.0}))
    with pytest.raises(CalibrationError, match=r"does not hold: Acc is .* below the 100.0% of the last check"):
        id2.check_calibration(out=str(tmp_path), encoder="mini")
    last = read_last(str(tmp_path))
    assert last and last.accuracy == 1.0, "a check that fails is compared with by none"


@pytest.mark.parametrize(
    ("measured", "low", "high", "holds"),
    [(0.01, 0.002, 0.03, True), (0.0, 0.0, 0.03, True), (0.05, 0.02, 0.1, False), (0.0, 0.0, 0.001, False)],
)
def test_a_rate_whose_interval_has_nothing_in_common_with_the_stated_one_is_a_problem(
    measured: float, low: float, high: float, holds: bool
) -> None:
    assert (problems({"match": rate(measured, low, high)}, 0.9, 0.9) == []) is holds


def test_accuracy_is_compared_where_there_is_an_earlier_one() -> None:
    assert problems({}, 0.9, None) == problems({}, 0.9, 0.8) == problems({}, None, 0.8) == []
    assert problems({}, 0.7, 0.8) == ["Acc is 70.0%, below the 80.0% of the last check"]


def test_labeled_uploads_that_are_named_in_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="together"):
        id2.check_calibration(out=str(tmp_path), truth="truth.csv")
    with pytest.raises(OptionError, match="no calibration"):
        id2.check_calibration(out=str(tmp_path), calibration="none")
