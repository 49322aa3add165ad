from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import id2
from id2.jobs import evaluate as evaluating
from id2core.errors import CalibrationError, DatasetError, OptionError, StorageError, TruthError
from id2core.evaluation import metrics, truth_files
from id2core.runs import records
from id2core.search import exact
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Verdict
from tests.commands import as_json, call
from tests.drawing import draw_photos
from tests.latent_sets import good_w, origins, translated, write_embeddings

REFERENCES, WITH_ORIGIN, NO_ORIGIN = 300, 150, 1200


@dataclass(frozen=True)
class Place:
    """A corpus, uploads of which some are translations, and what is known of them."""

    folder: Path

    def __call__(self, name: str) -> str:
        return str(self.folder / name)

    def dataset(self, name: str) -> str:
        return f"dataset:{self.folder / name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A third of the uploads without origin lies near everything: far out where the mean of all is."""
    folder = tmp_path_factory.mktemp("measure")
    place = Place(folder)
    w = good_w()
    w.save(folder / "W.safetensors")
    plain = w.weights.sum(axis=1) / np.sqrt(w.weights.shape[1])

    def corpus(count: int, seed: int) -> np.ndarray:
        return origins(count, seed) + 4 * plain

    references = corpus(REFERENCES, 0)
    write_embeddings(folder / "references", references, "r", 3)
    ids = {"transform_id": w.transform_id}
    write_embeddings(folder / "background", corpus(200, 1), "b", **ids)
    write_embeddings(folder / "raw-background", corpus(200, 1), "b")
    for name, prefix, seed in (("uploads", "u", 10), ("fresh", "f", 20)):
        without_origin = corpus(NO_ORIGIN, seed)
        without_origin[::3] += 26 * plain
        ours = translated(references[:WITH_ORIGIN], seed + 1, little=1.2)
        write_embeddings(folder / name, np.concatenate([ours, without_origin]), prefix)
        rows = [f"/{prefix}/{i:06d}.jpg,/r/{i:06d}.jpg" for i in range(WITH_ORIGIN)]
        rows += [
            f"{i:06d}.jpg," for i in range(WITH_ORIGIN, WITH_ORIGIN + NO_ORIGIN)
        ]  # relative to the pictures
        lines = ["query_uri,reference_uri", *rows]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        (folder / f"{name}-known.csv").write_text("\n".join(lines[: WITH_ORIGIN + 1]) + "\n")
    return place


def calibrate(place: Place, out: Path, **more: Any) -> dict[str, Any]:
    given = {"transform": place("W.safetensors"), "truth": place("uploads.csv"), "match": 0.02} | more
    sides = {"reference": place.dataset("references"), "queries": place.dataset("uploads")}
    return as_json(id2.calibrate(**(sides | {"out": str(out), "review": 0.1} | given)))


def evaluate(place: Place, out: Path, **more: Any) -> dict[str, Any]:
    sides = {
        "reference": place.dataset("references"),
        "queries": place.dataset("fresh"),
        "truth": place("fresh.csv"),
    }
    return as_json(id2.evaluate(**(sides | {"out": str(out)} | more)))


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {system["name"]: system for system in report["systems"]}


def test_transforms_are_measured_on_the_same_uploads_and_compared(place: Place, tmp_path: Path) -> None:
    w, out = place("W.safetensors"), tmp_path / "out"
    sides = (
        "--reference",
        place.dataset("references"),
        "--queries",
        place.dataset("fresh"),
        "--truth",
        place("fresh.csv"),
    )
    command = ("evaluate", *sides, "--transform", "none", "--transform", w, "--out", out)
    result = call(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{out}/metrics.md"
    text = (out / "metrics.md").read_text()
    assert text in result.stderr and "| system | mAP | Acc | recall@5 | recall@10 | µAP | R@P90 |" in text
    assert "150 queries with an origin and 1,200 without, among 300 references; at most 10" in text

    report = json.loads((out / "metrics.json").read_text())
    systems = by_name(report)
    known = truth_files.read(place("fresh.csv"), "/r", "/f")
    [matches] = exact.search(Dataset.open(place("references")), Dataset.open(place("fresh")), [good_w()])
    expected = metrics.evaluate(matches, known).model_dump(mode="json")
    assert {name: systems[w][name] for name in expected} == expected
    assert systems[w]["mean_ap"]["value"] > 0.9 > systems["none"]["mean_ap"]["high"]
    [difference] = report["differences"]
    assert (difference["first"], difference["second"]) == ("none", w) and difference["mean_ap"]["high"] < 0
    rows = pq.read_table(out / "metrics.parquet").to_pylist()
    assert len(rows) == 12 and {r["measure"] for r in rows} >= {"mean_ap", "micro_ap", "recall@10"}
    known_rows = [r for r in rows if r["value"] is not None]  # raw latents reach no precision of 90 %
    assert len(known_rows) >= 11 and all(r["low"] <= r["value"] <= r["high"] for r in known_rows)
    assert {r["per_query"] for r in rows} == {10}
    [run] = records.read(str(out))
    assert (run.flow, run.references, run.queries) == ("evaluate", REFERENCES, WITH_ORIGIN + NO_ORIGIN)
    assert run.run_id == report["run_id"]
    again = call(*command, "--json")
    assert json.loads(again.stdout) == report | {"resumed": True}


def test_the_truth_may_name_some_of_the_uploads_only(place: Place, tmp_path: Path) -> None:
    known_only = evaluate(place, tmp_path, transform=["none"], truth=place("fresh-known.csv"), top_k=3)
    [system] = known_only["systems"]
    assert system["counts"] == {
        "with_origin": WITH_ORIGIN,
        "without_origin": 0,
        "without_matches": 0,
        "not_in_truth": NO_ORIGIN,
    }
    assert system["budget"]["per_query"] == 3 and set(system["recall"]) == {"1"}
    everything = evaluate(place, tmp_path, transform=["none"], top_k=3)
    assert everything["run_id"] != known_only["run_id"] and not everything["resumed"]
    assert by_name(everything)["none"]["accuracy"] == pytest.approx(system["accuracy"], rel=0.3)
    (tmp_path / "other.csv").write_text("query_uri,reference_uri\n/elsewhere/1.jpg,\n")
    with pytest.raises(TruthError, match="names 1 queries"):
        evaluate(place, tmp_path, transform=["none"], truth=str(tmp_path / "other.csv"))


def test_thresholds_hold_on_fresh_uploads(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    sides = ("--reference", place.dataset("references"), "--queries", place.dataset("uploads"))
    rates = ("--match", "0.02", "--review", "0.1", "--truth", place("uploads.csv"))
    result = call("calibrate", *sides, *rates, "--transform", place("W.safetensors"), "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "From 1,200 uploads without origin, for a corpus of 300 references" in result.stderr
    assert "| match | 2.000% |" in result.stderr and "24 of 1,200" in result.stderr
    held = calibration.load(str(out))
    assert (held.queries, held.references, held.normalization) == (NO_ORIGIN, REFERENCES, None)
    assert held.transform_id == good_w().transform_id

    report = evaluate(
        place, tmp_path / "out", transform=["none", place("W.safetensors")], calibration=str(out)
    )
    for verdict, threshold in (("match", held.match), ("review", held.review)):
        rate = report["verdicts"][verdict]
        assert rate["queries"] == NO_ORIGIN and rate["stated"] == threshold.target
        assert rate["low"] <= rate["measured"] <= rate["high"]
        assert rate["stated_low"] <= rate["high"] and rate["low"] <= rate["stated_high"]
    assert report["verdicts"]["review"]["origins_found"] > report["verdicts"]["match"]["origins_found"] > 0
    with pytest.raises(CalibrationError, match="none of those measured"):
        evaluate(place, tmp_path / "none", transform=["none"], calibration=str(out))


def test_thresholds_for_a_larger_corpus_are_higher_and_state_its_rate(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    sides = ("--reference", place.dataset("references"), "--queries", place.dataset("uploads"))
    rates = ("--match", "0.02", "--review", "0.1", "--truth", place("uploads.csv"), "--for-references", "3e4")
    result = call("calibrate", *sides, *rates, "--transform", place("W.safetensors"), "--out", out)
    assert result.returncode == 0, result.stderr
    assert "chosen for a corpus of up to 30,000 references" in result.stderr
    chosen = calibration.load(str(out))
    assert (chosen.for_references, chosen.rates_from) == (30_000, "tail model")
    assert chosen.lowest(Verdict.MATCH) > chosen.match.score
    assert chosen.false_positive_rate(Verdict.MATCH, 30_000) == pytest.approx(0.02)
    report = evaluate(place, tmp_path / "out", transform=[place("W.safetensors")], calibration=str(out))
    rate = report["verdicts"]["match"]
    assert rate["threshold"] == chosen.lowest(Verdict.MATCH) and rate["stated"] < 0.02
    assert rate["stated_low"] <= rate["high"] and rate["low"] <= rate["stated_high"]


def test_a_background_is_tuned_on_other_queries_and_raises_micro_ap(place: Place, tmp_path: Path) -> None:
    out, background = tmp_path / "calibration.json", place.dataset("background")
    chosen = calibrate(place, out, background=background)
    held = calibration.load(str(out))
    assert held.normalization and 0.6 * NO_ORIGIN < held.queries < 0.8 * NO_ORIGIN
    assert chosen["tuned"]["micro_ap"] > chosen["tuned"]["raw_micro_ap"]
    w = place("W.safetensors")
    measured = evaluate(place, tmp_path / "out", transform=[w], calibration=str(out), background=background)
    systems = by_name(measured)
    assert systems[f"{w}, normalized"]["score"] == "normalized_score"
    assert systems[f"{w}, normalized"]["micro_ap"]["value"] > systems[w]["micro_ap"]["value"]
    assert systems[f"{w}, normalized"]["mean_ap"] == systems[w]["mean_ap"]
    rate = measured["verdicts"]["match"]
    assert rate["stated_low"] <= rate["high"] and rate["low"] <= rate["stated_high"]
    fixed = calibrate(place, out, background=background, factor=0.5, k=3)
    assert fixed["tuned"] is None and fixed["queries"] == NO_ORIGIN
    assert (fixed["normalization"]["factor"], fixed["normalization"]["k"]) == (0.5, 3)
    with pytest.raises(CalibrationError, match="give it with --background"):
        evaluate(place, tmp_path / "more", transform=[w], calibration=str(out))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"match": 0.001}, CalibrationError, "needs 10000 queries without origin, there are 1200: add 8800"),
        (
            {"match": 0.005, "background": "background"},
            CalibrationError,
            "needs 2000 queries without origin beside the 30% that .* there are 8[0-9]+: add 1[67][0-9]+,",
        ),
        ({"match": 0.2}, OptionError, "0 < match ≤ review < 1"),
        ({"factor": 1.0}, OptionError, "give --background"),
        ({"background": "background", "truth": None}, CalibrationError, "give a --truth"),
        ({"background": "raw-background"}, CalibrationError, "would not know the background again"),
        ({"background": "references"}, CalibrationError, "transform identity"),
        ({"reference": "nothing"}, StorageError, "no such folder"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    place: Place,
    tmp_path: Path,
) -> None:
    given = {
        name: place.dataset(value) if name in ("background", "reference", "queries") else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=message):
        calibrate(place, tmp_path / "calibration.json", **given)
    assert not (tmp_path / "calibration.json").exists()


@pytest.mark.slow
def test_the_bundled_calibration_is_measured_with_its_background(tmp_path: Path) -> None:
    draw_photos(tmp_path / "originals", 5)
    draw_photos(tmp_path / "uploads", 4, first_seed=3)  # two of them are pictures of the corpus
    names = sorted(p.name for p in (tmp_path / "uploads").iterdir())
    originals = sorted(p.name for p in (tmp_path / "originals").iterdir())
    rows = [f"{names[0]},{originals[3]}", f"{names[1]},{originals[4]}", f"{names[2]},", f"{names[3]},"]
    (tmp_path / "truth.csv").write_text("\n".join(["query_uri,reference_uri", *rows]))
    sides = {
        "reference": str(tmp_path / "originals"),
        "queries": str(tmp_path / "uploads"),
        "encoder": "mini",
    }
    report = as_json(
        id2.evaluate(
            **sides, truth=str(tmp_path / "truth.csv"), out=str(tmp_path / "out"), calibration="auto"
        )
    )
    assert [system["name"] for system in report["systems"]] == ["auto", "auto, normalized"]
    assert by_name(report)["auto, normalized"]["micro_ap"]["value"] == 1.0
    rate = report["verdicts"]["match"]
    assert (rate["queries"], rate["stated"], rate["origins_found"]) == (2, 0.02, 1.0)
    assert "| match | 2.00 [0.00, " in evaluating.table(str(tmp_path / "out"))
    raw = {
        "truth": str(tmp_path / "truth.csv"),
        "out": str(tmp_path / "raw"),
        "calibration": "auto",
    }
    with pytest.raises(CalibrationError, match="calibrated for encoder_id mini"):
        id2.evaluate(**(sides | raw | {"encoder": "pdq"}))
    assert not (tmp_path / "raw").exists()
    with pytest.raises(CalibrationError, match="none of those measured"):
        id2.evaluate(**sides, **raw, transform=["none"])


def test_pictures_are_embedded_once_for_every_transform(tiny_vae: str, tmp_path: Path) -> None:
    draw_photos(tmp_path / "originals", 14)
    draw_photos(tmp_path / "uploads", 8, first_seed=8)  # six of them are pictures of the corpus
    names = sorted(p.name for p in (tmp_path / "uploads").iterdir())
    originals = sorted(p.name for p in (tmp_path / "originals").iterdir())
    rows = [f"{name},{original}" for name, original in zip(names, originals[8:], strict=False)]
    (tmp_path / "truth.csv").write_text("\n".join(["query_uri,reference_uri", *rows[:5], f"{names[7]},"]))
    given = {
        "reference": str(tmp_path / "originals"),
        "queries": str(tmp_path / "uploads"),
        "truth": str(tmp_path / "truth.csv"),
        "out": str(tmp_path / "out"),
        "encoder": tiny_vae,
    }
    report = as_json(id2.evaluate(**given, transform=["none"]))
    [system] = report["systems"]
    assert system["accuracy"]["value"] == 1.0 and report["references"] == 14
    assert (system["counts"]["with_origin"], system["counts"]["not_in_truth"]) == (5, 2)
    commit = Dataset.open(str(tmp_path / "out/reference/embeddings"))
    assert commit.rows == 14 and commit.ids["transform_id"] == "identity"
    assert id2.evaluate(**given, transform=["none"]).resumed
    with pytest.raises(DatasetError, match="encoder_id"):
        id2.evaluate(**(given | {"encoder": "mini"}), transform=["none"])
