"""Which calibration judges a scan, and which background it may be normalized by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from id2core.errors import CalibrationError
from id2core.search import shards
from id2core.verdicts import calibration, judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.normalization import Normalization
from tests.descriptor_sets import IDS, unit, write_embeddings


def calibrated(background_id: str | None = None, references: int = 100) -> Calibration:
    normalization = Normalization(factor=1, k=2, background_id=background_id) if background_id else None
    scores = np.linspace(0, 1, 1000)
    return calibration.calibrate(
        scores, match=0.01, review=0.05, references=references, ids=IDS, normalization=normalization
    )


def test_auto_is_the_calibration_of_the_bundled_transform_and_nothing_for_another(tmp_path: Path) -> None:
    assert judging.choose("auto", IDS, tmp_path) is None
    mine = calibrated()
    mine.save(str(tmp_path / judging.FILE))
    assert judging.choose("auto", IDS, tmp_path) == mine
    assert judging.choose("auto", IDS | {"transform_id": "identity"}, tmp_path) is None
    assert judging.choose("none", IDS, tmp_path) is None
    assert judging.choose(str(tmp_path / judging.FILE), IDS) == mine
    with pytest.raises(CalibrationError, match="calibrated for encoder_id e-1, these scores are of sd2"):
        judging.choose(str(tmp_path / judging.FILE), IDS | {"encoder_id": "sd2"})
    with pytest.raises(CalibrationError, match="no such calibration"):
        judging.choose(str(tmp_path / "nothing.json"), IDS)


def test_a_background_is_wanted_exactly_where_it_is_used(tmp_path: Path) -> None:
    judging.check_background(calibrated(), None)
    judging.check_background(calibrated("flat-b"), "/b")
    with pytest.raises(CalibrationError, match="give it with --background"):
        judging.check_background(calibrated("flat-b"), None)
    with pytest.raises(CalibrationError, match="this one has none: leave --background out"):
        judging.check_background(calibrated(), "/b")
    with pytest.raises(CalibrationError, match="no calibration is used"):
        judging.check_background(None, "/b")


def test_only_the_background_of_the_calibration_will_do(tmp_path: Path) -> None:
    background = write_embeddings(tmp_path / "b", unit(20, 4, 0), 2, "b")
    other = write_embeddings(tmp_path / "other", unit(21, 4, 0), 2, "o")
    chosen = calibrated(shards.index_id(background))
    judging.check_background_id(chosen, background)
    with pytest.raises(CalibrationError, match="give the data set that the calibration was made with"):
        judging.check_background_id(chosen, other)


def test_a_reference_in_the_background_is_refused(tmp_path: Path) -> None:
    background = write_embeddings(tmp_path / "b", unit(5, 4, 0), 2, "b")
    judging.check_disjoint(background, write_embeddings(tmp_path / "r", unit(9, 4, 1), 3, "r"))
    more = write_embeddings(tmp_path / "more", unit(7, 4, 1), 3, "b")
    with pytest.raises(CalibrationError, match="5 references are in the background"):
        judging.check_disjoint(background, more)


def test_the_facts_say_what_the_verdicts_hold_for() -> None:
    chosen = calibrated("flat-b")
    facts = judging.facts(chosen, "/c.json", 200, "/b")
    assert facts is not None and facts.calibration_id == chosen.calibration_id
    assert (facts.origin, facts.score, facts.background) == ("/c.json", "normalized_score", "/b")
    match = facts.verdicts["match"]
    assert match.threshold == chosen.match.score and match.false_positive_rate == 0.02
    assert (match.low, match.high) == (chosen.match.low, 2 * chosen.match.high)
    nothing = judging.facts(chosen, "auto", 0)
    assert nothing is not None and nothing.verdicts["review"].false_positive_rate is None
    assert judging.facts(None, "auto", 200) is None
