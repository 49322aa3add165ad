"""A joint calibration: the rate of one verdict of two encoders, measured on uploads that both have scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import id2
from id2core.errors import CalibrationError, OptionError
from id2core.runs import records
from id2core.search.match_rows import CHANNEL
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration, channels
from tests.calibrations import tailed
from tests.commands import call
from tests.drawing import draw_photos, scene
from tests.id2.test_second_channel import Colors

REFERENCES, STRANGERS = 48, 100
MATCH, REVIEW = 0.2, 0.5
PLAIN = {"transform": "none", "views": "none"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References, strangers of which one encoder rejects one, a background, and a calibration of PDQ."""
    folder = tmp_path_factory.mktemp("joint")
    draw_photos(folder / "references", REFERENCES)
    strangers = draw_photos(folder / "strangers", STRANGERS, first_seed=500)
    spoiled = scene(499)
    spoiled.paste("white", (0, 0, 5, 5))
    spoiled.save(strangers / "spoiled.png")
    draw_photos(folder / "background", 6, first_seed=900)
    torch.jit.script(Colors()).save(str(folder / "colors.pt"))
    # Half of the rates: PDQ has too few different scores for a tail model.
    pdq = {"match": MATCH / 2, "review": REVIEW / 2, "encoder": "pdq"}
    id2.calibrate(**sides(folder), **PLAIN, **pdq, out=str(folder / "pdq.json"))
    return folder


def sides(folder: Path) -> dict[str, Any]:
    return {"reference": str(folder / "references"), "queries": str(folder / "strangers")}


def also(folder: Path, name: str = "pdq.json") -> dict[str, Any]:
    return {"also": "pdq", "also_calibration": str(folder / name)}


def calibrate(folder: Path, **more: object) -> id2.CalibrateReport:
    given: dict[str, Any] = {"match": MATCH, "review": REVIEW, "encoder": str(folder / "colors.pt"), **PLAIN}
    return id2.calibrate(**sides(folder) | given | also(folder) | more)


def scan(folder: Path, out: Path, **more: object) -> id2.ScanSummary:
    given: dict[str, Any] = {"encoder": str(folder / "colors.pt"), "keep": "all", "out": str(out), **PLAIN}
    return id2.scan(**sides(folder) | given | also(folder) | more)


def test_a_scan_of_the_same_uploads_has_the_rate_that_was_measured(drawn: Path, tmp_path: Path) -> None:
    files = tmp_path / "colors.json", tmp_path / "joint.json"
    options = {"encoder": drawn / "colors.pt", "match": MATCH, "review": REVIEW, "out": files[0]}
    options |= PLAIN | sides(drawn) | also(drawn) | {"joint_out": files[1]}
    flags = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    result = call("calibrate", *(word for flag in flags for word in flag))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(file) for file in files]
    assert "One verdict of latent and pdq, measured on 101 uploads without origin" in result.stderr
    assert "The channel latent rejected 1 of them" in result.stderr

    joint = channels.load(str(files[1]))
    assert (joint.rule, joint.queries, joint.references) == ("measured", STRANGERS + 1, REFERENCES)
    for level, target in ((joint.match, MATCH), (joint.review, REVIEW)):
        assert level.target == target and level.low is not None and level.high is not None
        assert level.low < target < level.high
    given = {"calibration": str(files[0]), "joint_calibration": str(files[1])}
    summary = scan(drawn, tmp_path / "out", **given)
    assert summary.joint and summary.joint.calibration_id == joint.calibration_id
    assert summary.verdicts["match"] == joint.match.exceedances
    rate = summary.joint.verdicts["match"]
    assert (summary.joint.rule, rate.low, rate.high) == ("measured", joint.match.low, joint.match.high)
    assert scan(drawn, tmp_path / "out", **given) == summary

    fresh = draw_photos(tmp_path / "fresh", STRANGERS, first_seed=2000)
    later = scan(drawn, tmp_path / "later", queries=str(fresh), **given)
    assert rate.low < later.verdicts["match"] / STRANGERS < rate.high


def test_a_joint_calibration_says_what_each_channel_contributes(drawn: Path, tmp_path: Path) -> None:
    made = calibrate(drawn, out=str(tmp_path / "colors.json"), joint_out=str(tmp_path / "joint.json"))
    joint = made.joint
    assert joint and list(joint.channels) == [CHANNEL, "pdq"]
    for name, level in (("match", joint.match), ("review", joint.review)):
        reached = [own.reached[name] for own in joint.channels.values()]
        assert all(reached) and sum(reached) - joint.in_several[name] == level.exceedances
    assert [own.scored for own in joint.channels.values()] == [STRANGERS, STRANGERS + 1]
    # A share of the rate is a higher threshold than that of the channel alone.
    threshold = joint.channels[CHANNEL].thresholds["match"]
    assert threshold and threshold > calibration.load(str(made.out)).match.score
    assert Dataset.open(str(tmp_path / "colors-data" / "channels" / "pdq" / "queries" / "embeddings")).rows

    given = {"calibration": made.out, "joint_out": str(tmp_path / "again.json")}
    again = calibrate(drawn, **given)
    assert again.out is None and again.calibration_id == made.calibration_id
    assert again.joint == joint.model_copy(update={"out": str(tmp_path / "again.json")})
    assert calibrate(drawn, **given).joint == again.joint
    less = calibrate(drawn, **given | {"joint_out": str(tmp_path / "less.json")}, also_weight=0.75).joint
    assert less and [own.weight for own in less.channels.values()] == [0.25, 0.75]
    higher = less.channels[CHANNEL].thresholds["match"]
    assert higher and higher > threshold
    runs = records.read(str(tmp_path / "again-data"))
    assert [(run.embedded, run.references) for run in runs] == [(None, REFERENCES)] * 2


def test_both_channels_may_have_a_background_and_uploads_an_origin(drawn: Path, tmp_path: Path) -> None:
    background = {"background": str(drawn / "background"), "factor": 0.5, "k": 2}
    pdq = {"encoder": "pdq", "match": MATCH / 2, "review": REVIEW / 2, "out": str(tmp_path / "pdq.json")}
    id2.calibrate(**sides(drawn) | pdq | background | PLAIN)
    truth = tmp_path / "truth.csv"
    names = sorted(path.name for path in (drawn / "strangers").iterdir())
    truth.write_text("query_uri,reference_uri\n" + "".join(f"{name},\n" for name in names[1:]))
    files = {"out": str(tmp_path / "colors.json"), "joint_out": str(tmp_path / "joint.json")}
    asked = files | also(tmp_path) | background | {"truth": str(truth)}
    with pytest.raises(CalibrationError, match="give it with --also-background"):
        calibrate(drawn, **asked)
    behind = {"also_background": str(drawn / "background")}
    made = calibrate(drawn, **asked, **behind)
    assert made.joint and made.joint.queries == STRANGERS and made.normalization
    given = {"calibration": files["out"], "joint_calibration": files["joint_out"]}
    given |= {"background": str(drawn / "background")} | behind | also(tmp_path)
    summary = scan(drawn, tmp_path / "out", **given)
    left_out = calibrated_alone(drawn, tmp_path / "alone", names[0], given)
    assert summary.verdicts["match"] - left_out == made.joint.match.exceedances

    only_joint = {"calibration": files["out"], "joint_out": str(tmp_path / "again.json")}
    with pytest.raises(CalibrationError, match="give it with --background"):
        calibrate(drawn, **only_joint, **behind, **also(tmp_path))
    again = calibrate(
        drawn,
        **only_joint | behind | also(tmp_path),
        truth=str(truth),
        background=str(drawn / "background"),
    )
    assert again.joint and again.joint.calibration_id == made.joint.calibration_id


def calibrated_alone(folder: Path, place: Path, name: str, given: dict[str, Any]) -> int:
    """Return whether an upload that was left out is a match."""
    (place / "uploads").mkdir(parents=True)
    (place / "uploads" / name).write_bytes((folder / "strangers" / name).read_bytes())
    return scan(folder, place / "out", queries=str(place / "uploads"), **given).verdicts.get("match", 0)


def test_what_makes_no_joint_calibration_is_refused(drawn: Path, tmp_path: Path) -> None:
    files = {"out": str(tmp_path / "colors.json"), "joint_out": str(tmp_path / "joint.json")}
    embedded = tmp_path / "embedded"
    id2.embed(images=str(drawn / "references"), out=str(embedded), encoder=str(drawn / "colors.pt"), **PLAIN)
    tailed(0.7, 0.01).save(str(tmp_path / "tailed.json"))
    for more, error, reason in (
        ({"joint_out": None}, OptionError, "give --joint-out"),
        ({"also": None}, OptionError, "--joint-out goes with --also: give --also"),
        ({"also_calibration": None}, OptionError, "--also needs --also-calibration"),
        ({"out": None}, OptionError, "give --out, .* or --calibration with --also"),
        ({"calibration": str(drawn / "pdq.json")}, OptionError, "give --out, .* or --calibration"),
        ({"joint_out": files["out"]}, OptionError, "is given for two calibrations"),
        ({"out": None, "calibration": "none"}, OptionError, "--calibration none is no calibration"),
        ({"out": None, "calibration": "auto", "k": 2, "background": "x"}, OptionError, "--k is for a new"),
        ({"reference": f"dataset:{embedded}"}, OptionError, "Give --also-reference: the place of"),
        ({"also": str(drawn / "colors.pt")}, OptionError, "is the encoder of the first channel"),
        ({"also_background": str(drawn / "background")}, CalibrationError, "uses no background"),
        ({"out": None, "calibration": "auto"}, CalibrationError, "no calibration ships with the encoder"),
        ({"out": None, "calibration": str(drawn / "joint-x.json")}, CalibrationError, "no such file"),
        (
            {"match": 0.05} | also(tmp_path, "tailed.json"),
            CalibrationError,
            "needs 200 queries without origin, there are 100: add 100",
        ),
    ):
        with pytest.raises(error, match=reason):
            calibrate(drawn, **files | more)
    assert not (tmp_path / "colors.json").exists() and not (tmp_path / "joint.json").exists()
    plain = {"encoder": "pdq", "match": MATCH, "review": REVIEW} | PLAIN
    id2.calibrate(**sides(drawn), **plain, out=str(tmp_path / "step.json"))
    early = {"joint_out": str(tmp_path / "early.json"), "out": str(tmp_path / "early-own.json")}
    with pytest.raises(
        CalibrationError, match=r"channel pdq is enough for a match: .* or by itself with --match 0.1, and"
    ):
        calibrate(drawn, **early, **also(tmp_path, "step.json"))
    assert not (tmp_path / "early-own-data").exists()
