"""Known pairs that a night finds, and nights that cannot find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from id2.jobs import canary
from id2core import settings
from id2core.errors import NightError
from id2core.runs.progress import tally
from tests.calibrations import calibrated


def test_a_night_with_the_bundled_weights_finds_the_known_pairs(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    stop = tally.listen(lambda stage, counts: heard.append((stage, counts.completed, counts.total)))
    result = canary.run(settings.load(encoder="mini"), str(tmp_path), "night-1")
    stop()
    assert heard == [("canary", 0, 4), ("canary", 4, 4)]
    assert (result.pairs, result.lost) == (canary.PAIRS, {})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["last.json"]
    assert json.loads((tmp_path / "_canary/last.json").read_text())["run_id"] == "night-1"


def test_an_encoder_without_calibration_is_checked_by_rank(tmp_path: Path) -> None:
    # Its pictures are too few to train the night's index on.
    night = settings.load(encoder="pdq", transform="none", index="RR256,IVF64,RaBitQ")
    assert canary.run(night, str(tmp_path), "night-1").lost == {}


def test_pictures_without_content_are_not_lost_unless_all_are(tmp_path: Path) -> None:
    calibrated(0.5, content=0.5).save(str(tmp_path / "calibration.json"))
    # PDQ sees too little in some pictures of the demo.
    pdq = settings.load(encoder="pdq", transform="none", calibration=str(tmp_path / "calibration.json"))
    assert canary.run(pdq, str(tmp_path), "night-1").lost == {}
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(8):
        corner = (number % 4 * 60, number // 4 * 120)
        picture = Image.new("L", (256, 256), 255)
        picture.paste(235, (*corner, corner[0] + 50, corner[1] + 90))
        picture.save(folder / f"{number}.png")
    with pytest.raises(NightError, match=r"4 of 4.*shows too little"):
        canary.run(pdq, str(tmp_path), "night-1", pictures=folder)


def test_a_night_that_cannot_tell_pictures_apart_fails_and_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "alike"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (256, 256), (128, 128, 128 + number % 2)).save(folder / f"{number}.png")
    with pytest.raises(NightError, match=r"of 4 known pairs were not found.*run the night again"):
        canary.run(settings.load(encoder="pdq", transform="none"), str(tmp_path), "night-1", pictures=folder)
    assert json.loads((tmp_path / "_canary/last.json").read_text())["lost"]
