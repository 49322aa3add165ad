"""A calibration that holds on labeled uploads, and one that does not."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import id2
import id2core
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


DEMO = Path(id2core.__file__).parent / "data/demo"


@pytest.fixture
def labeled(tmp_path: Path) -> dict[str, str]:
    """A part of the demo: twelve uploads, and the originals of those that have one."""
    for name in ("uploads", "references"):
        (tmp_path / name).mkdir()
    with (DEMO / "truth.csv").open() as file:
        rows = list(csv.DictReader(file))[:12]
    for uri in {uri for row in rows for uri in (row["query_uri"], row["reference_uri"]) if uri}:
        shutil.copy(DEMO / uri, tmp_path / uri)
    lines = ["query_uri,reference_uri", *(f"{row['query_uri']},{row['reference_uri']}" for row in rows)]
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    return {
        "reference": str(tmp_path / "references"),
        "queries": str(tmp_path / "uploads"),
        "truth": str(tmp_path / "truth.csv"),
        "out": str(tmp_path / "out"),
        "encoder": "mini",
    }


def test_the_bundled_calibration_holds_and_a_lower_accuracy_fails(labeled: dict[str, str]) -> None:
    check = id2.check_calibration(**labeled)
    assert check.problems == [] and set(check.verdicts) == {"match", "review"}
    assert check.accuracy and check.accuracy_before is None
    assert read_last(labeled["out"]) == check
    file = Path(labeled["out"]) / "check.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy": 1.1}))
    with pytest.raises(
        CalibrationError, match=r"does not hold: Acc is .* below the 110.0% of the last check"
    ):
        id2.check_calibration(**labeled)
    last = read_last(labeled["out"])
    assert last and last.accuracy == 1.1, "no check is compared with one that failed"


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
