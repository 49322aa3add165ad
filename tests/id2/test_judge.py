"""Stored pairs get verdicts of another calibration, without a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import id2
from id2core.errors import CalibrationError, OptionError
from id2core.search import shards
from id2core.store.datasets import Dataset
from id2core.verdicts.normalization import Normalization
from tests.calibrations import calibrated, tailed
from tests.drawing import draw_photos

GIVEN = {"encoder": "pdq", "transform": "none", "top_k": 3}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four uploads, each of which is one of six references, judged by a lenient calibration."""
    draw_photos(tmp_path / "references", 6)
    draw_photos(tmp_path / "uploads", 4)
    for name, score in (("lenient", 0.3), ("strict", 1.5), ("below", 0.05)):
        calibrated(score).save(str(tmp_path / f"{name}.json"))
    scan(tmp_path, "lenient")
    return tmp_path / "out"


def scan(folder: Path, name: str) -> id2.ScanSummary:
    return id2.scan(
        reference=str(folder / "references"),
        queries=str(folder / "uploads"),
        calibration=str(folder / f"{name}.json"),
        out=str(folder / "out"),
        **GIVEN,
    )


def verdicts(out: Path) -> list[str]:
    return [str(verdict) for verdict in id2.matches(str(out))["verdict"].to_pylist()]


def test_stored_pairs_are_judged_anew_and_the_step_back_is_one_command(out: Path) -> None:
    before = verdicts(out)
    assert before.count("match") >= 4
    report = id2.judge(out=str(out), calibration=str(out.parent / "strict.json"))
    assert (report.pairs, report.verdicts) == (len(before), {"none": len(before)})
    assert set(verdicts(out)) == {"none"}
    assert report.calibration_id in (out / "report.html").read_text()
    back = id2.judge(out=str(out), back=True)
    assert (back.calibration_id, back.before) == (report.before, report.calibration_id)
    assert verdicts(out) == before
    assert id2.judge(out=str(out), back=True).calibration_id == report.calibration_id


def test_a_scan_judges_what_was_judged_by_another_calibration_in_between(out: Path) -> None:
    before = verdicts(out)
    id2.judge(out=str(out), calibration=str(out.parent / "strict.json"))
    scan(out.parent, "lenient")
    assert verdicts(out) == before
    assert id2.judge(out=str(out), back=True).calibration_id == calibrated(1.5).calibration_id


def test_verdicts_follow_a_corpus_that_grows(tmp_path: Path) -> None:
    draw_photos(tmp_path / "references", 6)
    draw_photos(tmp_path / "uploads", 4)
    chosen = tailed(0.95, 0.1)
    chosen.save(str(tmp_path / "tailed.json"))
    small = scan(tmp_path, "tailed")
    assert small.calibration and small.calibration.verdicts["match"].threshold == chosen.match.score
    assert verdicts(tmp_path / "out").count("match") == 4
    draw_photos(tmp_path / "references", 18, first_seed=6)
    large = scan(tmp_path, "tailed")
    assert large.counts.references == 24 and large.calibration
    threshold = large.calibration.verdicts["match"].threshold
    assert threshold == pytest.approx(chosen.match.score + 0.1 * np.log(24 / 8), abs=1e-3)
    assert large.calibration.verdicts["match"].false_positive_rate == pytest.approx(0.01)
    assert threshold > 1 and "match" not in verdicts(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "24 of this scan follow from a tail model" in text


def test_what_cannot_be_judged_is_refused_by_name(out: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="keeps pairs with a score of"):
        id2.judge(out=str(out), calibration=str(tmp_path / "below.json"))
    with pytest.raises(CalibrationError, match="nothing to go back to"):
        id2.judge(out=str(out), back=True)
    with pytest.raises(OptionError, match="give either"):
        id2.judge(out=str(out))
    given = {"calibration": tmp_path / "strict.json", "background": f"dataset:{out}/reference"}
    for name, value in given.items():
        with pytest.raises(OptionError, match=f"has one channel: leave --also-{name} out"):
            id2.judge(out=out, calibration=given["calibration"], **{f"also_{name}": value})
    calibrated(0.5, Normalization(factor=0.5, k=2, background_id="b")).save(str(tmp_path / "other.json"))
    with pytest.raises(CalibrationError, match="normalized by nothing"):
        id2.judge(out=str(out), calibration=str(tmp_path / "other.json"))


def test_the_calibration_that_ships_is_asked_for_by_auto(tmp_path: Path) -> None:
    draw_photos(tmp_path / "references", 3)
    draw_photos(tmp_path / "uploads", 2)
    places = {"reference": str(tmp_path / "references"), "queries": str(tmp_path / "uploads")}
    shipped = id2.scan(**places, out=str(tmp_path / "mini"), keep="all")
    report = id2.judge(out=str(tmp_path / "mini"), calibration="auto")
    assert shipped.calibration and report.calibration_id == shipped.calibration.calibration_id
    id2.scan(**places, out=str(tmp_path / "pdq"), keep="all", calibration="none", **GIVEN)
    with pytest.raises(CalibrationError, match="no calibration ships"):
        id2.judge(out=str(tmp_path / "pdq"), calibration="auto")


def test_a_background_is_searched_once_and_kept(tmp_path: Path) -> None:
    draw_photos(tmp_path / "references", 6)
    draw_photos(tmp_path / "uploads", 4)
    folder = draw_photos(tmp_path / "background", 24)
    for path in (tmp_path / "references").iterdir():
        (folder / path.name).unlink()
    out = tmp_path / "out"
    given = {"reference": str(tmp_path / "references"), "queries": str(tmp_path / "uploads")}
    id2.scan(**given, calibration="none", views="none", out=str(out), **GIVEN)
    id2.embed(images=str(folder), out=str(tmp_path / "bg"), encoder="pdq", transform="none")
    held = Dataset.open(str(tmp_path / "bg" / "embeddings"))
    normalization = Normalization(factor=0.5, k=2, background_id=shards.index_id(held))
    calibrated(0.3, normalization).save(str(tmp_path / "normalized.json"))
    asked = {"out": str(out), "calibration": str(tmp_path / "normalized.json")}
    with pytest.raises(CalibrationError, match="give its data set with --background"):
        id2.judge(**asked)
    report = id2.judge(**asked, background=f"dataset:{tmp_path}/bg")
    assert report.pairs == 12 and report.skipped == 0
    assert set(verdicts(out)) <= {"match", "review", "none"}
    assert id2.judge(**asked).verdicts == report.verdicts
    scores = {row["query_uri"] for row in id2.matches(str(out)).to_pylist() if row["verdict"] == "match"}
    assert len(scores) == 4
