"""A scan by two encoders: one verdict of an upload, at one rate, in one report."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import ImageOps

import id2
from flows import outcomes
from flows.commands.scan import summary_lines
from id2.results import NightlySummary
from id2core.errors import CalibrationError, DatasetError, OptionError
from id2core.runs import ledger, records
from id2core.search import shards
from id2core.search.match_rows import CHANNEL
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration, channels
from id2core.verdicts.normalization import Normalization
from tests.calibrations import calibrated, tailed
from tests.drawing import draw_photos, scene
from tests.id2.test_takedown import holding
from tests.infra.places import ask

TOP_K = 3


class Colors(torch.nn.Module):
    """Coarse colors. Their float16 overflows where the first corner of a picture is white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x[:, :, :4, :4].amin(dim=(1, 2, 3)) > 0.999).float()
        return torch.nn.functional.avg_pool2d(x, 32) * (1 + 1e9 * white)[:, None, None, None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six references; a copy for both encoders, one for PDQ alone, one for colors alone, two strangers."""
    folder = tmp_path_factory.mktemp("channels")
    draw_photos(folder / "references", 6)
    uploads = draw_photos(folder / "uploads", 2, first_seed=500)
    scene(2).resize((60, 45)).save(uploads / "copy.png")
    ImageOps.grayscale(scene(5)).convert("RGB").save(uploads / "gray.png")
    ImageOps.posterize(scene(3), 2).save(uploads / "poster.png")
    torch.jit.script(Colors()).save(str(folder / "colors.pt"))
    tailed(0.8, 0.01, str(folder / "colors.pt")).save(str(folder / "colors.json"))
    tailed(0.7, 0.01).save(str(folder / "pdq.json"))
    return folder


def given(folder: Path, out: Path) -> dict[str, object]:
    """Options of a scan and of a night by two encoders."""
    return {
        "encoder": str(folder / "colors.pt"),
        "transform": "none",
        "calibration": str(folder / "colors.json"),
        "also": "pdq",
        "also_calibration": str(folder / "pdq.json"),
        "top_k": TOP_K,
        "keep": "all",
        "out": str(out),
    }


def scan(folder: Path, out: Path, **more: object) -> id2.ScanSummary:
    corpora = {"reference": str(folder / "references"), "queries": str(folder / "uploads")}
    return id2.scan(**given(folder, out) | corpora | more)


def night(folder: Path, out: Path, *queries: Path, **more: object) -> NightlySummary:
    corpora = {"reference": [str(folder / "references")], "queries": [str(path) for path in queries]}
    return id2.nightly(**given(folder, out) | corpora | {"canary": False} | more)


def embedded(images: Path, out: Path, encoder: str = "pdq") -> Path:
    """Embed pictures for the second channel into a place of their own, and return it."""
    id2.embed(images=str(images), out=str(out), encoder=encoder, transform="none", views="none")
    return out


def matched(out: Path) -> set[tuple[str, str, str]]:
    """Channel, upload, and reference of each match, by the last part of their names."""
    rows = id2.matches(str(out))
    found = rows.filter(pc.equal(rows["verdict"], "match")).to_pylist()
    return {(r["channel"], Path(r["query_uri"]).name, Path(r["reference_uri"]).name) for r in found}


FOUND = {
    (CHANNEL, "copy.png", "p0002.jpg"),
    (CHANNEL, "poster.png", "p0003.jpg"),
    ("pdq", "copy.png", "p0002.jpg"),
    ("pdq", "gray.png", "p0005.jpg"),
}


def test_two_encoders_give_one_verdict_and_a_second_scan_adds_nothing(drawn: Path, tmp_path: Path) -> None:
    summary = scan(drawn, tmp_path)
    assert matched(tmp_path) == FOUND
    assert (summary.counts.queries, summary.counts.matches) == (5, 2 * 5 * TOP_K)
    assert sum(summary.verdicts.values()) == 5 and summary.verdicts["match"] == 3
    assert {name: own["match"] for name, own in summary.channels.items()} == {CHANNEL: 2, "pdq": 2}
    joint, rows = summary.joint, id2.matches(str(tmp_path))
    assert joint and summary.calibration is None
    assert set(rows["calibration_id"].to_pylist()) == {joint.calibration_id}
    rate = joint.verdicts["match"]
    assert joint.rule == "union bound" and rate.low < rate.false_positive_rate == 0.01
    for name, file in ((CHANNEL, "colors"), ("pdq", "pdq")):
        chosen = calibration.load(str(drawn / f"{file}.json"))  # half of its rate: a higher threshold
        threshold = joint.channels[name].thresholds["match"]
        assert threshold and threshold > chosen.match.score
        assert joint.channels[name].calibration.calibration_id == chosen.calibration_id
    ranks = Counter((r["query_uri"], r["channel"], r["rank"]) for r in rows.to_pylist())
    assert set(ranks.values()) == {1} and {rank for _, _, rank in ranks} == {1, 2, 3}
    page = (tmp_path / "report.html").read_text()
    assert page.count("found by pdq") == 1 and page.count(f"found by {CHANNEL}") == 4
    assert joint.calibration_id in page and "union bound" in page
    assert any("channel pdq: 2 match" in line for line in summary_lines(summary))
    query = "SELECT query_uri, verdict, channel, reference_uri, calibration_id FROM id2.current_uploads"
    uploads = ask(tmp_path, query)
    assert Counter(verdict for _, verdict, *_ in uploads) == Counter(summary.verdicts)
    best = {(row["query_uri"], row["channel"]): row for row in rows.to_pylist() if row["rank"] == 1}
    for uri, verdict, channel, reference, calibration_id in uploads:
        row = best[uri, channel]
        found = row["verdict"], row["reference_uri"], row["calibration_id"]
        assert found == (verdict, reference, calibration_id)
    assert ask(tmp_path, "SELECT count(*) FROM id2.current") == [(rows.num_rows,)]
    stored = Dataset.open(str(tmp_path / "matches"))
    assert scan(drawn, tmp_path) == summary
    again = Dataset.open(str(tmp_path / "matches"))
    assert (again.rows, ledger.events(again.commit)) == (stored.rows, ledger.events(stored.commit))
    assert id2.report(out=str(tmp_path)).channels == summary.channels
    assert not id2.doctor(out=str(tmp_path)).findings


def test_an_upload_that_one_encoder_rejects_is_judged_by_the_other(drawn: Path, tmp_path: Path) -> None:
    uploads = draw_photos(tmp_path / "uploads", 1, first_seed=500)
    spoiled = scene(1)
    spoiled.paste("white", (0, 0, 5, 5))
    spoiled.save(uploads / "spoiled.png")
    given = {"queries": str(uploads), "keep": "floor"}
    summary = scan(drawn, tmp_path / "out", **given)
    assert matched(tmp_path / "out") == {("pdq", "spoiled.png", "p0001.jpg")}
    assert summary.rejects["queries"] == {"not_encodable": 1} and not summary.rejects["pdq/queries"]
    assert summary.counts.queries == 1 and summary.verdicts == {"match": 1, "review": 0, "none": 1}
    assert "spoiled.png" in (tmp_path / "out" / "report.html").read_text()
    assert not id2.doctor(out=str(tmp_path / "out")).findings
    turned = {"encoder": "pdq", "calibration": str(drawn / "pdq.json")}
    turned |= {"also": str(drawn / "colors.pt"), "also_calibration": str(drawn / "colors.json")}
    summary = scan(drawn, tmp_path / "turned", **given | turned)
    assert matched(tmp_path / "turned") == {(CHANNEL, "spoiled.png", "p0001.jpg")}
    assert summary.rejects["colors/queries"] == {"not_encodable": 1} and not summary.rejects["queries"]
    lines = list(summary_lines(summary))
    assert "0 files rejected" in lines[0] and lines[1] == "channel colors rejected (1 not_encodable)"
    page = (tmp_path / "turned" / "report.html").read_text()
    assert "colors/queries" in page and "every file that was found could be read" not in page


def test_verdicts_of_both_channels_follow_a_corpus_that_grows(drawn: Path, tmp_path: Path) -> None:
    references = draw_photos(tmp_path / "references", 6)
    given = {"reference": str(references)}
    scan(drawn, tmp_path / "out", **given)
    draw_photos(references, 18, first_seed=6)
    summary = scan(drawn, tmp_path / "out", **given)
    joint = channels.load(str(tmp_path / "out" / "calibrations" / f"{_joint_id(summary)}.json"))
    own = [calibration.load(str(drawn / f"{name}.json")) for name in ("colors", "pdq")]
    both = channels.Channels(joint, tuple(own))
    rows = id2.matches(str(tmp_path / "out"))
    assert matched(tmp_path / "out") == FOUND and rows.num_rows == 2 * 5 * TOP_K
    for name in (CHANNEL, "pdq"):
        threshold = both.threshold(name, calibration.Verdict.MATCH, 24)
        above = pc.and_(pc.equal(rows["channel"], name), pc.greater_equal(rows["score"], threshold))
        assert rows.filter(above)["verdict"].unique().to_pylist() == ["match"]
    assert Dataset.open(str(tmp_path / "out" / "verdicts")).rows == 2 * 5 * 2 * TOP_K


def _joint_id(summary: id2.ScanSummary) -> str:
    assert summary.joint
    return summary.joint.calibration_id


def test_a_picture_that_is_taken_down_goes_from_both_channels(drawn: Path, tmp_path: Path) -> None:
    scan(drawn, tmp_path)
    uri = str(drawn / "references" / "p0005.jpg")
    assert any(place.startswith("channels/pdq/reference/") for place in holding(tmp_path, uri))
    taken = id2.takedown(out=str(tmp_path), uri=[uri])
    [image_id] = taken.pictures
    assert not holding(tmp_path, image_id)
    assert matched(tmp_path) == {found for found in FOUND if found[1] != "gray.png"}
    summary = scan(drawn, tmp_path)
    assert not holding(tmp_path, image_id)
    assert summary.rejects["pdq/reference"] == summary.rejects["reference"] == {"taken_down": 1}
    id2.compact(out=str(tmp_path), everything=True)
    assert scan(drawn, tmp_path).verdicts == summary.verdicts


def test_a_truth_measures_each_channel_and_what_the_one_verdict_finds(drawn: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    origins = {"copy.png": "p0002.jpg", "gray.png": "p0005.jpg", "poster.png": "p0003.jpg", "p0500.jpg": ""}
    rows = [f"{query},{origin},{query[:1]}" for query, origin in origins.items()]
    truth.write_text("\n".join(["query_uri,reference_uri,group", *rows]))
    summary = scan(drawn, tmp_path / "out", truth=str(truth), keep="floor")
    own = summary.channel_measures
    assert list(own) == [CHANNEL, "pdq"] and summary.measures == own[CHANNEL]
    stored = id2.matches(str(tmp_path / "out")).to_pylist()
    assert len(stored) == 2 * 5 * TOP_K  # all pairs, whatever the floor
    best = {(r["channel"], Path(r["query_uri"]).name): r for r in stored if r["rank"] == 1}
    for name, measures in own.items():
        hits = [Path(best[name, q]["reference_uri"]).name == o for q, o in origins.items() if o]
        assert measures.accuracy.value == sum(hits) / 3 and measures.counts.with_origin == 3
    # Each encoder alone gives two of the three a match.
    assert summary.origins_found["match"] == summary.verdicts_of["origin"]["match"] == 3
    assert summary.verdicts_of["no_origin"]["match"] == 0
    assert summary.groups["c"].verdicts["match"] == 1
    lines = list(summary_lines(summary))
    assert any(line.startswith("channel pdq: Acc ") for line in lines)
    assert "Acc of pdq" in (tmp_path / "out" / "report.html").read_text()
    assert scan(drawn, tmp_path / "out", truth=str(truth), keep="floor") == summary
    assert id2.report(out=str(tmp_path / "out")).origins_found == summary.origins_found


def test_what_is_not_supported_with_a_second_channel_is_refused(drawn: Path, tmp_path: Path) -> None:
    for more, error, reason in (
        ({"also_calibration": None}, OptionError, "needs --also-calibration"),
        ({"also": None}, OptionError, "give --also, too"),
        ({"calibration": "none"}, CalibrationError, "only by calibrations"),
        ({"also_calibration": str(drawn / "colors.json")}, CalibrationError, "calibrated for encoder_id"),
        ({"also": str(drawn / "colors.pt")}, OptionError, "is the encoder of the first channel"),
        ({"joint_calibration": str(drawn / "pdq.json")}, CalibrationError, "not a joint calibration"),
        ({"also_background": str(drawn / "references")}, CalibrationError, "uses no background"),
    ):
        with pytest.raises(error, match=reason):
            scan(drawn, tmp_path / "refused", **more)
    calibrated(0.7).save(str(drawn / "step.json"))
    with pytest.raises(CalibrationError, match="calibration knows no threshold there"):
        scan(drawn, tmp_path / "refused", also_calibration=str(drawn / "step.json"))
    assert not (tmp_path / "refused" / "channels").exists()
    out = tmp_path / "out"
    scan(drawn, out)
    with pytest.raises(OptionError, match="give --also, too"):
        scan(drawn, tmp_path / "refused", also=None, also_calibration=None, also_queries=str(drawn))
    chosen = {"calibration": str(drawn / "colors.json")}
    with pytest.raises(DatasetError, match="second channel, pdq: give it with --also"):
        night(drawn, out, drawn / "uploads", also=None, also_calibration=None)
    with pytest.raises(OptionError, match="second channel, pdq: give its calibration with --also-cal"):
        id2.judge(out=str(out), **chosen)
    with pytest.raises(DatasetError, match="second channel, pdq: give it with --also"):
        scan(drawn, out, also=None, also_calibration=None)


def test_corpora_that_are_embedded_are_taken_by_both_channels(drawn: Path, tmp_path: Path) -> None:
    """Data sets of the same pictures, by both encoders, give the verdicts of a scan of the pictures."""
    for name, encoder in (("colors", str(drawn / "colors.pt")), ("pdq", "pdq")):
        for side in ("references", "uploads"):
            embedded(drawn / side, tmp_path / f"{name}-{side}", encoder)
    first = {
        "reference": f"dataset:{tmp_path}/colors-references",
        "queries": f"dataset:{tmp_path}/colors-uploads",
    }
    with pytest.raises(OptionError, match="Give --also-reference: the place of the images, or dataset:"):
        scan(drawn, tmp_path / "out", **first)
    other = {"also_reference": f"dataset:{tmp_path}/pdq-references"}
    swapped = {"also_queries": f"dataset:{tmp_path}/pdq-references"}
    with pytest.raises(DatasetError, match="both channels have to see the same"):
        scan(drawn, tmp_path / "out", **first | other | swapped)
    with pytest.raises(DatasetError, match="encoder_id"):
        scan(drawn, tmp_path / "out", **first | other | {"also_queries": first["queries"]})
    assert not (tmp_path / "out").exists()
    images = scan(drawn, tmp_path / "images")
    for out, queries in (("out", f"dataset:{tmp_path}/pdq-uploads"), ("mixed", str(drawn / "uploads"))):
        given = first | other | {"also_queries": queries}
        summary = scan(drawn, tmp_path / out, **given)
        assert matched(tmp_path / out) == FOUND
        assert (summary.verdicts, summary.channels) == (images.verdicts, images.channels)
        assert scan(drawn, tmp_path / out, **given) == summary
        with pytest.raises(DatasetError, match="second channel, pdq: give it with --also"):
            scan(drawn, tmp_path / out, **first, also=None, also_calibration=None)
        (tmp_path / out / "matches" / "_SUCCESS").unlink()
        made = id2.doctor(out=str(tmp_path / out), rebuild=True)
        assert made.rebuilt and not made.rebuilt.set_aside and not made.findings
    judged = {"calibration": str(drawn / "colors.json"), "also_calibration": str(drawn / "pdq.json")}
    assert id2.judge(out=str(tmp_path / "out"), **judged).pairs == 2 * 5 * TOP_K


def test_a_scan_that_cannot_follow_the_last_one_embeds_nothing(drawn: Path, tmp_path: Path) -> None:
    elsewhere = f"dataset:{embedded(drawn / 'references', tmp_path / 'elsewhere')}"
    queries = shutil.copytree(drawn / "uploads", tmp_path / "uploads")
    images, mixed = {"queries": str(queries)}, {"queries": str(queries), "also_reference": elsewhere}
    scan(drawn, tmp_path / "images", **images)
    scan(drawn, tmp_path / "mixed", **mixed)
    draw_photos(queries, 1, first_seed=700)
    for out, more, reason in (
        ("images", mixed, "keeps matches of other references than those in .*elsewhere"),
        ("images", images | {"top_k": TOP_K + 1}, f"keeps {TOP_K} matches of an upload"),
        ("mixed", images, "matches of other references than those in .*channels/pdq/.*, where none"),
    ):
        before = sorted((tmp_path / out).rglob("*"))
        with pytest.raises(DatasetError, match=reason):
            scan(drawn, tmp_path / out, **more)
        assert sorted((tmp_path / out).rglob("*")) == before
    shutil.rmtree(tmp_path / "images" / "channels" / "pdq" / "queries")
    with pytest.raises(DatasetError, match=r"other uploads than those in .*channels/pdq/queries"):
        night(drawn, tmp_path / "images", queries)
    assert scan(drawn, tmp_path / "mixed", **mixed).counts.queries == 6


def forget_searches(out: Path, encoder: str) -> None:
    """Take the searches by an encoder out of the ledger of an `--out`."""
    matches = Dataset.open(str(out / "matches"))
    runs = dict(matches.commit.runs)
    for run_id in runs:
        own = ledger.events_of(matches.commit, run_id)
        left = [e.model_dump(mode="json") for e in own if not e.ids["encoder_id"].startswith(encoder)]
        runs[run_id] = runs[run_id] | {ledger.EVENTS: left}
    datasets.write_commit(matches.uri, replace(matches.commit, runs=runs))


def test_what_a_summary_says_of_channels_is_also_known_without_it(drawn: Path, tmp_path: Path) -> None:
    """The first channel embeds its images below the `--out`; the second has data sets elsewhere."""
    own: dict[str, str] = {}
    for name, side in (("also_reference", "references"), ("also_queries", "uploads")):
        own[name] = f"dataset:{embedded(drawn / side, tmp_path / side)}"
    out = tmp_path / "out"
    scan(drawn, out, **own)
    places = out / "channels" / "pdq" / "places.json"
    assert str(tmp_path / "references") in places.read_text()
    (out / "summary.json").unlink()
    judged = {"calibration": str(drawn / "colors.json"), "also_calibration": str(drawn / "pdq.json")}
    assert id2.judge(out=str(out), **judged).pairs == 2 * 5 * TOP_K
    (out / "matches" / "_SUCCESS").unlink()
    made = id2.doctor(out=str(out), rebuild=True)
    assert made.rebuilt and (made.rebuilt.searches, made.findings) == (2, [])
    forget_searches(out, "pdq")
    assert [finding.fault for finding in id2.doctor(out=str(out)).findings] == ["uncovered"]
    places.write_text("{}")
    with pytest.raises(DatasetError, match=r"places.json is damaged .*: repeat the last scan"):
        id2.doctor(out=str(out))


def test_a_lost_commit_of_both_channels_is_built_again(drawn: Path, tmp_path: Path) -> None:
    """The ledger may lack a search of one channel: its file goes aside, and its pairs are scored again."""
    scan(drawn, tmp_path)
    before = Dataset.open(str(tmp_path / "matches"))
    (tmp_path / "matches" / "_SUCCESS").unlink()
    made = id2.doctor(out=str(tmp_path), rebuild=True)
    assert made.rebuilt and not made.findings
    assert (made.rebuilt.searches, made.rebuilt.files, made.rebuilt.set_aside) == (2, 2, [])
    after = Dataset.open(str(tmp_path / "matches"))
    assert ledger.events(after.commit) == ledger.events(before.commit)
    assert night(drawn, tmp_path, drawn / "uploads").pairs == 0
    (tmp_path / "matches" / "_SUCCESS").unlink()
    table = Dataset.open(str(tmp_path / "ledger"))
    rows = table.read(schemas.LEDGER)
    first = rows.filter(pc.starts_with(rows["encoder_id"], "colors"))
    file = datasets.write_file(table.uri, "a" * 16, [first], first.schema)
    datasets.write_commit(table.uri, replace(table.commit, files=(file,)))
    for held in table.files:
        (tmp_path / "ledger" / held.name).unlink()
    made = id2.doctor(out=str(tmp_path), rebuild=True)
    assert made.rebuilt and (made.rebuilt.files, len(made.rebuilt.set_aside)) == (1, 1)
    assert night(drawn, tmp_path, drawn / "uploads").pairs == 5 * 6
    assert matched(tmp_path) == FOUND and not id2.doctor(out=str(tmp_path)).findings


def test_a_measured_rule_is_taken_from_its_file(drawn: Path, tmp_path: Path) -> None:
    files = {CHANNEL: "colors.json", "pdq": "pdq.json"}
    own = {name: calibration.load(str(drawn / file)) for name, file in files.items()}
    strangers = np.random.default_rng(0).normal(0.6, 0.05, (1000, 2))
    joint = channels.measured(own, strangers, 6, match=0.01, review=0.05)
    joint.save(str(tmp_path / "joint.json"))
    given = {"joint_calibration": str(tmp_path / "joint.json")}
    summary = scan(drawn, tmp_path / "out", **given)
    assert summary.joint and summary.joint.calibration_id == joint.calibration_id
    rate = summary.joint.verdicts["match"]
    assert (summary.joint.rule, rate.low, rate.high) == ("measured", joint.match.low, joint.match.high)
    assert "Rates were measured" in (tmp_path / "out" / "report.html").read_text()
    colors = {"also": str(drawn / "colors.pt"), "also_calibration": str(drawn / "colors.json")}
    with pytest.raises(CalibrationError, match="of the channels latent, pdq, and these are latent, colors"):
        scan(drawn, tmp_path / "x", encoder="pdq", calibration=str(drawn / "pdq.json"), **colors, **given)


def test_a_second_channel_has_a_background_of_its_own(drawn: Path, tmp_path: Path) -> None:
    background = draw_photos(tmp_path / "background", 4, first_seed=900)
    held = embedded(background, tmp_path / "embedded")
    index_id = shards.index_id(Dataset.open(str(held / "embeddings")))
    how = Normalization(factor=0.5, k=2, background_id=index_id)
    normalized = calibration.load(str(drawn / "pdq.json")).model_copy(update={"normalization": how})
    normalized.save(str(tmp_path / "pdq.json"))
    given = {"also_calibration": str(tmp_path / "pdq.json")}
    with pytest.raises(CalibrationError, match="give it with --also-background"):
        scan(drawn, tmp_path / "out", **given)
    given["also_background"] = str(background)
    summary = scan(drawn, tmp_path / "out", **given)
    rows = id2.matches(str(tmp_path / "out"))
    is_pdq = pc.equal(rows["channel"], "pdq")
    assert pc.all(pc.equal(is_pdq, pc.is_valid(rows["normalized_score"]))).as_py()
    pdq = rows.filter(is_pdq)
    less = pc.subtract(pdq["score"], pc.multiply(pdq["background"], 0.5))
    assert np.allclose(pdq["normalized_score"].to_numpy(), less.to_numpy(), atol=1e-6)
    assert matched(tmp_path / "out") >= {
        (CHANNEL, "poster.png", "p0003.jpg"),
        ("pdq", "gray.png", "p0005.jpg"),
    }
    assert (tmp_path / "out" / "channels" / "pdq" / "queries" / "backgrounds").is_dir()
    assert scan(drawn, tmp_path / "out", **given) == summary


def test_a_second_encoder_joins_a_place_that_had_one(drawn: Path, tmp_path: Path) -> None:
    """The pairs of the first channel are judged anew: half of the rate is a higher threshold."""
    alone = scan(drawn, tmp_path, also=None, also_calibration=None, keep="floor")
    assert alone.calibration and alone.verdicts["match"] == 2
    both = scan(drawn, tmp_path, keep="floor")
    assert both.joint and both.verdicts["match"] == 3 and matched(tmp_path) == FOUND
    assert set(id2.matches(str(tmp_path))["calibration_id"].to_pylist()) == {both.joint.calibration_id}
    assert scan(drawn, tmp_path, keep="floor") == both
    assert not id2.doctor(out=str(tmp_path)).findings


def test_nights_search_by_two_encoders_and_each_pair_once(drawn: Path, tmp_path: Path) -> None:
    """Two nights, the second with a new reference, find what one scan finds, and a re-run adds nothing."""
    out, references = tmp_path / "out", draw_photos(tmp_path / "corpus" / "references", 5)
    for name in ("colors.pt", "colors.json", "pdq.json"):
        shutil.copy(drawn / name, tmp_path / "corpus")
    first, second = tmp_path / "1", tmp_path / "2"
    for folder, names in ((first, ("gray.png", "p0500.jpg")), (second, ("copy.png", "poster.png"))):
        folder.mkdir()
        for name in names:
            shutil.copy(drawn / "uploads" / name, folder)
    made = night(tmp_path / "corpus", out, first)
    assert (made.new_uploads, made.pairs, made.pairs_stored) == (2, 2 * 2 * 5, 2 * 2 * TOP_K)
    assert sum(made.verdicts.values()) == 2 and made.verdicts.get("match", 0) == 0
    draw_photos(references, 1, first_seed=5)
    made = night(tmp_path / "corpus", out, first, second)
    assert (made.new_uploads, made.new_references, made.back_scan_open) == (2, 1, 0)
    assert made.pairs == 2 * (2 * 6 + 2 * 1)
    assert matched(out) == FOUND
    # Of the new uploads both are found, and of the earlier ones that one of which PDQ alone knows the origin.
    assert made.verdicts["match"] == 3
    assert {name: own["match"] for name, own in made.channels.items()} == {CHANNEL: 2, "pdq": 2}
    [run] = [run for run in records.read(str(out)) if run.run_id == made.run_id]
    assert (run.first_searched, run.first_matched, run.match_pairs) == (2, 2, 4)
    assert outcomes.read(str(out), run).new["match"] == 3
    page = (out / "report.html").read_text()
    assert "found by pdq" in page and "union bound" in page
    stored = Dataset.open(str(out / "matches"))
    again = night(tmp_path / "corpus", out, first, second)
    assert (again.new_uploads, again.pairs, again.pairs_stored, again.verdicts) == (0, 0, 0, {})
    after = Dataset.open(str(out / "matches"))
    assert (after.rows, ledger.events(after.commit)) == (stored.rows, ledger.events(stored.commit))
    assert not id2.doctor(out=str(out)).findings
    with pytest.raises(DatasetError, match="second channel, pdq: give it with --also"):
        night(drawn, out, first, also=None, also_calibration=None)


def test_a_night_that_ends_early_leaves_the_back_scan_of_both_channels(drawn: Path, tmp_path: Path) -> None:
    out, references = tmp_path / "out", draw_photos(tmp_path / "corpus" / "references", 5)
    for name in ("colors.pt", "colors.json", "pdq.json"):
        shutil.copy(drawn / name, tmp_path / "corpus")
    night(tmp_path / "corpus", out, drawn / "uploads")
    draw_photos(references, 1, first_seed=5)
    late = night(tmp_path / "corpus", out, drawn / "uploads", deadline_hours=1e-9)
    assert (late.pairs, late.back_scan_open) == (0, 1)
    made = night(tmp_path / "corpus", out, drawn / "uploads")
    assert (made.pairs, made.back_scan_open) == (2 * 5 * 1, 0)
    assert matched(out) == FOUND


def test_a_second_encoder_joins_nights_that_had_one(drawn: Path, tmp_path: Path) -> None:
    alone = night(drawn, tmp_path, drawn / "uploads", also=None, also_calibration=None)
    assert alone.verdicts["match"] == 2 and not alone.channels
    both = night(drawn, tmp_path, drawn / "uploads", canary=True)
    assert (both.new_uploads, both.pairs) == (0, 5 * 6)
    assert matched(tmp_path) == FOUND and both.channels["pdq"]["match"] == 2
    [run] = [run for run in records.read(str(tmp_path)) if run.run_id == both.run_id]
    assert (run.first_searched, run.first_matched, run.match_pairs) == (0, 0, 2)
    assert (tmp_path / "_canary" / "last-pdq.json").is_file()
    assert not id2.doctor(out=str(tmp_path)).findings


def test_pairs_of_both_channels_are_judged_anew_and_the_step_back_is_one_command(
    drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = scan(drawn, out)
    assert before.joint
    with pytest.raises(CalibrationError, match="by one joint calibration only"):
        id2.judge(out=str(out), back=True)
    tailed(1.2, 0.01, str(drawn / "colors.pt")).save(str(tmp_path / "strict.json"))
    strict = {"calibration": str(tmp_path / "strict.json"), "also_calibration": str(drawn / "pdq.json")}
    made = id2.judge(out=str(out), **strict)
    assert (made.before, made.pairs, made.skipped) == (before.joint.calibration_id, 2 * 5 * TOP_K, 0)
    assert matched(out) == {found for found in FOUND if found[0] == "pdq"}
    assert made.calibration_id in (out / "report.html").read_text()
    summary = id2.report(out=str(out))
    assert summary.joint and summary.joint.calibration_id == made.calibration_id
    assert summary.verdicts["match"] == 2
    assert id2.judge(out=str(out), back=True).calibration_id == made.before
    back = id2.report(out=str(out)).joint
    assert matched(out) == FOUND and back and back.verdicts == before.joint.verdicts
    assert id2.judge(out=str(out), back=True).calibration_id == made.calibration_id

    files = {CHANNEL: "colors.json", "pdq": "pdq.json"}
    own = {name: calibration.load(str(drawn / file)) for name, file in files.items()}
    strangers = np.random.default_rng(0).normal(0.6, 0.05, (1000, 2))
    joint = channels.measured(own, strangers, 6, match=0.01, review=0.05)
    joint.save(str(tmp_path / "joint.json"))
    given = {"calibration": str(drawn / "colors.json"), "also_calibration": str(drawn / "pdq.json")}
    given["joint_calibration"] = str(tmp_path / "joint.json")
    assert id2.judge(out=str(out), **given).calibration_id == joint.calibration_id
    with pytest.raises(CalibrationError, match="was calibrated jointly with"):
        id2.judge(out=str(out), **given | strict)
    rows = Dataset.open(str(out / "matches")).rows
    assert scan(drawn, out).joint == before.joint and matched(out) == FOUND
    assert Dataset.open(str(out / "matches")).rows == rows
    assert not id2.doctor(out=str(out)).findings


def test_a_new_background_of_a_second_channel_is_searched_once(drawn: Path, tmp_path: Path) -> None:
    scan(drawn, tmp_path / "out")
    plain = {"encoder": "pdq", "transform": "none", "views": "none"}
    background = draw_photos(tmp_path / "background", 4, first_seed=900)
    id2.embed(images=str(background), out=str(tmp_path / "embedded"), **plain)
    index_id = shards.index_id(Dataset.open(str(tmp_path / "embedded" / "embeddings")))
    how = Normalization(factor=0.5, k=2, background_id=index_id)
    calibration.load(str(drawn / "pdq.json")).model_copy(update={"normalization": how}).save(
        str(tmp_path / "pdq.json")
    )
    given = {"calibration": str(drawn / "colors.json"), "also_calibration": str(tmp_path / "pdq.json")}
    with pytest.raises(CalibrationError, match="give its data set with --also-background"):
        id2.judge(out=str(tmp_path / "out"), **given)
    behind = {"also_background": f"dataset:{tmp_path / 'embedded'}"}
    made = id2.judge(out=str(tmp_path / "out"), **given, **behind)
    assert (made.pairs, made.skipped) == (2 * 5 * TOP_K, 0)
    assert id2.judge(out=str(tmp_path / "out"), **given).verdicts == made.verdicts
    scan(drawn, tmp_path / "anew", **given, **behind)
    judged, anew = (_verdicts(tmp_path / name) for name in ("out", "anew"))
    assert judged == anew and set(judged.values()) == {"match", "none"}


def _verdicts(out: Path) -> dict[tuple[str, ...], str]:
    """Channel, upload, and reference of each pair → its verdict."""
    columns = ("channel", "query_uri", "reference_id")
    rows = id2.matches(str(out)).to_pylist()
    return {tuple(str(row[name]) for name in columns): str(row["verdict"]) for row in rows}
