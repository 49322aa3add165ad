from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image, ImageOps

import id2
from beam_jobs import embed
from flows.commands.scan import summary_lines
from id2 import searching
from id2.requests import ScanRequest
from id2core.encoders.registry import load_encoder
from id2core.encoders.views import FINDER
from id2core.errors import CalibrationError, DatasetError, OptionError, StorageError, TruthError
from id2core.runs import records
from id2core.runs.execution import Execution
from id2core.search import exact, looks, shards
from id2core.settings import Settings
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.transforms import files
from id2core.transforms.files import WEIGHTS, load_transform, save_half
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.normalization import Normalization
from tests import latent_sets
from tests.commands import as_json
from tests.conftest import run_until
from tests.drawing import draw_photos, scene
from tests.embedding import embed_job


def scan(**given: Any) -> dict[str, Any]:
    return as_json(id2.scan(**given))


def report(out: Path, **given: Any) -> dict[str, Any]:
    return as_json(id2.report(out=str(out), **given))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight references; four uploads: two resized copies, one stranger, one broken file."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_photos(folder / "references", 8)
    draw_photos(folder / "uploads", 1, first_seed=500)
    for seed in (2, 5):
        scene(seed).resize((60, 45), Image.Resampling.BILINEAR).save(folder / "uploads" / f"copy{seed}.png")
    (folder / "uploads" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    truth = ["query_uri,reference_uri,group", "uploads/p0500.jpg,,"]
    truth += [f"uploads/copy{seed}.png,references/p{seed:04d}.jpg,small" for seed in (2, 5)]
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    return folder


def arguments(pictures: Path | str, out: Path | str, vae: str) -> dict[str, object]:
    return {
        "reference": f"{pictures}/references",
        "queries": f"{pictures}/uploads",
        "out": str(out),
        "encoder": vae,
        "truth": f"{pictures}/truth.csv",
    }


def test_a_scan_finds_the_origins_and_reports_them(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    summary = scan(**arguments(pictures, tmp_path, tiny_vae))
    assert summary["accuracy"] == 1.0 and summary["accuracy_of"] == 2
    assert summary["counts"]["references"] == 8 and summary["counts"]["queries"] == 3
    assert summary["rejects"]["queries"] == {"truncated": 1}
    page = (tmp_path / "report.html").read_text()
    assert "copy5.png" in page and summary["encoder_id"] in page
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    [run] = records.read(str(tmp_path))
    assert (run.run_id, run.embedded, run.rejected) == (summary["run_id"], 11, 1)
    again = scan(**arguments(pictures, tmp_path, tiny_vae))
    assert again == summary and (tmp_path / "report.html").read_text() == page


def calibrated(ids: dict[str, str], score: float, normalization: Normalization | None = None) -> Calibration:
    """A calibration that asks for a little more than `score`; the review threshold is 0.1 below."""
    scores = np.repeat([score - 0.1, score, score + 0.01], [480, 510, 10])
    given = {"references": 8, "ids": ids, "normalization": normalization}
    return calibration.calibrate(scores, match=0.01, review=1 - 1e-9, **given)


@pytest.fixture
def bundled(tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Transform:
    """A W that belongs to the encoder, with its calibration, where the package's own would be."""
    encoder = load_encoder(tiny_vae)
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(files, "BUNDLED_FOLDER", folder)
    weights = np.random.default_rng(0).standard_normal((encoder.latent_size, 64)).astype(np.float32)
    w = save_half(Transform(weights, {"encoder_id": encoder.encoder_id}), folder / WEIGHTS)
    ids = {"encoder_id": encoder.encoder_id, "preprocess_id": encoder.preprocess.preprocess_id}
    calibrated(ids | {"transform_id": w.transform_id}, 0.9).save(str(folder / judging.FILE))
    return w


def test_a_scan_takes_what_belongs_to_its_encoder_and_says_so(
    pictures: Path, tiny_vae: str, tmp_path: Path, bundled: Transform
) -> None:
    given = arguments(pictures, tmp_path / "out", tiny_vae)
    summary = scan(**given)
    assert summary["transform"] == {"id": bundled.transform_id, "from": "bundled"}
    assert summary["calibration"]["from"] == "bundled" and sum(summary["verdicts"].values()) == 3
    assert summary["verdicts"]["match"] >= 2  # both copies
    assert summary["groups"]["small"]["accuracy"] == 1.0 and summary["groups"]["small"]["of"] == 2
    matches = id2.matches(str(tmp_path / "out"))
    assert matches["verdict"].null_count == 0
    assert matches["transform_id"].unique().to_pylist() == [bundled.transform_id]
    assert scan(**given) == summary
    assert report(tmp_path / "out")["calibration"] == summary["calibration"]
    raw = scan(**given | {"calibration": "none"})
    assert raw["run_id"] != summary["run_id"] and (raw["calibration"], raw["verdicts"]) == (None, {})
    file = str(files.BUNDLED_FOLDER / WEIGHTS)
    named = scan(**given | {"transform": file, "calibration": str(files.BUNDLED_FOLDER / judging.FILE)})
    assert named["plan_id"] == summary["plan_id"]
    plain = scan(**given | {"out": str(tmp_path / "plain"), "transform": "none"})
    assert plain["transform"] == {"id": "identity", "from": "none"} and plain["calibration"] is None


def test_a_data_set_of_another_transform_is_refused_before_any_work(
    pictures: Path, tiny_vae: str, tmp_path: Path, bundled: Transform
) -> None:
    for side in ("references", "uploads"):
        embed.run(
            embed_job(f"{pictures}/{side}", str(tmp_path / side), tiny_vae, transform="none"),
            Execution.begin(),
        )
    given = arguments(pictures, tmp_path / "out", tiny_vae) | {"reference": f"dataset:{tmp_path}/references"}
    hint = rf"transform_id identity, this scan asks for {bundled.transform_id} .*--transform `none`"
    both = given | {"queries": f"dataset:{tmp_path}/uploads"}
    for one in (given, both):
        with pytest.raises(DatasetError, match=hint):
            scan(**one)
    assert not (tmp_path / "out").exists()
    assert scan(**both | {"transform": "none"})["transform"] == {"id": "identity", "from": "none"}
    embed.run(embed_job(f"{pictures}/references", str(tmp_path / "w"), tiny_vae), Execution.begin())
    with pytest.raises(DatasetError, match="the file it was made with"):
        scan(**given | {"reference": f"dataset:{tmp_path}/w", "transform": "none"})


def test_scores_are_normalized_by_the_background_of_the_calibration(
    pictures: Path, tiny_vae: str, tmp_path: Path
) -> None:
    draw_photos(tmp_path / "background-photos", 5, first_seed=900)
    embed.run(embed_job(tmp_path / "background-photos", tmp_path / "b", tiny_vae), Execution.begin())
    held = Dataset.open(str(tmp_path / "b/embeddings"))
    normalization = Normalization(factor=0.5, k=2, background_id=shards.index_id(held))
    chosen = calibrated(held.ids, 0.5, normalization)
    chosen.save(str(tmp_path / "c.json"))
    given = arguments(pictures, tmp_path / "out", tiny_vae) | {"calibration": str(tmp_path / "c.json")}
    with pytest.raises(CalibrationError, match="--background"):
        scan(**given)
    with pytest.raises(CalibrationError, match="calibrated with the background"):
        embed.run(embed_job(pictures / "uploads", tmp_path / "u", tiny_vae), Execution.begin())
        scan(**given | {"background": f"dataset:{tmp_path}/u"})
    assert not (tmp_path / "out").exists()
    given |= {"background": str(tmp_path / "background-photos"), "out": str(tmp_path / "images")}
    summary = scan(**given)
    assert summary["calibration"]["calibration_id"] == chosen.calibration_id
    assert summary["calibration"]["background"] == str(tmp_path / "images/background/embeddings")
    matches = id2.matches(str(tmp_path / "images")).to_pylist()
    for row in matches:
        assert row["normalized_score"] == pytest.approx(row["score"] - 0.5 * row["background"], abs=1e-6)
        assert row["verdict"] in ("match", "review", "none")
    place = tmp_path / "images/queries/backgrounds"
    uploads = {row["uri"]: row for row in Dataset.open(str(place)).read(schemas.BACKGROUNDS).to_pylist()}
    assert {row["query_uri"]: row["background"] for row in matches} == {
        uri: row["background"] for uri, row in uploads.items()
    }
    latents = Dataset.open(str(tmp_path / "images/queries/embeddings")), held
    [alone] = exact.search(latents[1], latents[0], [load_transform("auto", held.ids["encoder_id"])], 2)
    beside = [row["score"] for row in alone.to_pylist() if row["query_uri"] == matches[0]["query_uri"]]
    assert len(beside) == 2 and matches[0]["background"] == pytest.approx(sum(beside) / 2)
    assert scan(**given) == summary


def test_a_new_upload_is_found_without_embedding_the_rest_again(
    pictures: Path, tiny_vae: str, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    scan(**arguments(tmp_path / "in", tmp_path / "out", tiny_vae))
    references = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/reference").rglob("*.parquet")}
    scene(7).save(tmp_path / "in/uploads/new.bmp")
    summary = scan(**arguments(tmp_path / "in", tmp_path / "out", tiny_vae))
    assert summary["counts"]["queries"] == 4
    matches = id2.matches(str(tmp_path / "out"))
    best = dict(
        zip(matches["query_uri"].to_pylist()[::8], matches["reference_uri"].to_pylist()[::8], strict=True)
    )
    assert best[str(tmp_path / "in/uploads/new.bmp")].endswith("references/p0007.jpg")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/reference").rglob("*.parquet")} == references


def test_an_embedded_corpus_is_taken_as_it_is(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    embed.run(embed_job(pictures / "references", tmp_path / "corpus", tiny_vae), Execution.begin())
    given = arguments(pictures, tmp_path / "out", tiny_vae) | {"reference": f"dataset:{tmp_path}/corpus"}
    summary = scan(**given)
    assert summary["accuracy"] == 1.0 and summary["truth_not_scanned"] == 0
    assert summary["counts"]["references"] == 8 and not (tmp_path / "out/reference").exists()
    assert report(tmp_path / "out", max_pairs=1)["run_id"] == summary["run_id"]
    assert "shown" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("marker", ["_SUCCESS", "embeddings/_SUCCESS"])
def test_an_upload_does_not_make_a_data_set_of_the_uploads(
    marker: str, pictures: Path, tiny_vae: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    made = embed.run(embed_job(f"{pictures}/references", str(tmp_path / "r"), tiny_vae), Execution.begin())
    planted = tmp_path / "in/uploads" / marker
    planted.parent.mkdir(exist_ok=True)
    shutil.copy(f"{made.embeddings.uri}/_SUCCESS", planted)
    summary = scan(**arguments(tmp_path / "in", tmp_path / "out", tiny_vae))
    assert summary["counts"]["queries"] == 3 and summary["accuracy"] == 1.0
    assert summary["rejects"]["queries"] == {"truncated": 1, "not_an_image": 1}
    [warning] = caplog.messages
    assert f"{tmp_path}/in/uploads has a file {marker}" in warning and "dataset:" in warning


def test_a_file_of_w_with_another_cohort_is_no_silent_search_of_whole_uploads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = load_transform(str(files.bundled_folder() / WEIGHTS))
    replace(bundled, cohort=None).save(tmp_path / WEIGHTS)
    shipped = judging.load("auto")
    assert shipped
    ids = {name: getattr(shipped, name) for name in schemas.ROW_IDS}
    views, chosen = searching.choose(Settings(), ids, None)
    assert views and chosen == shipped and not caplog.messages
    views, chosen = searching.choose(Settings(transform=str(tmp_path / WEIGHTS)), ids, None)
    assert views is None and chosen and chosen.views == looks.NONE
    [warning] = caplog.messages
    assert "whole uploads" in warning and "cohort" in warning


def test_from_bucket_to_bucket(pictures: Path, tiny_vae: str, tmp_path: Path, gcs: str) -> None:
    where = f"gs://{gcs}/{tmp_path.name}"
    for path in pictures.rglob("*.*"):
        storage.write_bytes(f"{where}/in/{path.relative_to(pictures)}", path.read_bytes())
    here = scan(**arguments(pictures, tmp_path / "local", tiny_vae))
    there = scan(**arguments(f"{where}/in", f"{where}/out", tiny_vae))
    assert there["counts"] == here["counts"] and there["accuracy"] == 1.0
    assert there["score_quantiles"] == here["score_quantiles"]
    assert storage.read_bytes(f"{where}/out/report.html").lower().startswith(b"<!doctype html>")
    assert scan(**arguments(f"{where}/in", f"{where}/out", tiny_vae)) == there


def test_the_report_follows_what_changed(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    given = arguments(tmp_path / "in", tmp_path / "results", tiny_vae)
    first = scan(**given)
    assert scan(**given) == first
    (tmp_path / "results/report.html").unlink()
    scan(**given)
    assert (tmp_path / "results/report.html").exists()
    (tmp_path / "in/uploads/second.jpg").write_bytes(b"no picture either")
    assert scan(**given)["counts"]["query_rejects"] == first["counts"]["query_rejects"] + 1


def test_a_folder_that_was_copied_is_read_where_it_is(tmp_path: Path) -> None:
    photos, out, copy = str(draw_photos(tmp_path / "photos", 3)), tmp_path / "out", str(tmp_path / "copy")
    id2.scan(reference=photos, queries=photos, encoder="pdq", transform="none", out=str(out))
    rows = id2.matches(str(out))
    shutil.copytree(out, copy)
    shutil.rmtree(out)

    assert rows.num_rows and id2.matches(copy).equals(rows)
    summary = id2.report(out=copy)
    places = [summary.config.out, summary.inputs.matches, summary.inputs.query_embeddings]
    assert places == [copy, f"{copy}/matches", f"{copy}/queries/embeddings"]
    assert not id2.doctor(out=copy).findings


def test_one_run_id_joins_matches_runs_rejects_and_summary(
    pictures: Path, tiny_vae: str, tmp_path: Path
) -> None:
    summary = scan(**arguments(pictures, tmp_path, tiny_vae))
    matches = id2.matches(str(tmp_path))
    joined = matches.join(
        Dataset.open(str(tmp_path / "runs")).read(schemas.RUNS), "run_id", join_type="inner"
    )
    assert joined.num_rows == matches.num_rows == 24
    tables = ("reference/embeddings", "queries/embeddings", "queries/rejects")
    ids = {row for name in tables for row in _run_ids(tmp_path / name)}
    assert ids == {summary["run_id"]} == set(matches["run_id"].to_pylist())
    [run] = records.read(str(tmp_path))
    assert (run.status, run.references, run.queries, run.matches) == ("done", 8, 3, 24)
    assert run.config["encoder"] == tiny_vae and run.seconds.keys() >= {"embed reference, queries", "search"}


def _run_ids(uri: Path) -> list[str]:
    return [row for table in Dataset.open(str(uri)).tables(["run_id"]) for row in table["run_id"].to_pylist()]


def test_what_can_be_refused_is_refused_before_any_work(
    pictures: Path, tiny_vae: str, tmp_path: Path
) -> None:
    given = arguments(pictures, tmp_path / "out", tiny_vae)
    (tmp_path / "empty").mkdir()
    draw_photos(tmp_path / "up/queries", 1)
    (tmp_path / "file").write_text("in the way")
    for name in ("wrong.csv", "wrong.parquet"):
        (tmp_path / name).write_text("upload,original\na,b\n")
    for change, error, message in (
        ({"reference": str(tmp_path / "nowhere")}, StorageError, "no such folder"),
        ({"reference": str(tmp_path / "empty")}, StorageError, "--reference .* is empty"),
        ({"queries": str(tmp_path / "empty")}, StorageError, "--queries .* is empty"),
        ({"out": str(tmp_path / "file/out")}, StorageError, "is a file"),
        ({"out": str(pictures / "uploads/out")}, OptionError, "is inside --queries"),
        ({"out": str(pictures)}, None, ""),
        ({"queries": f"{tmp_path}/up/queries", "out": f"{tmp_path}/up"}, OptionError, "inside --queries"),
        ({"reference": f"dataset:{pictures}/references"}, DatasetError, "holds no embeddings data set"),
        ({"reference": f"dataset:{tmp_path}/nowhere"}, StorageError, "no such folder"),
        ({"truth": str(tmp_path / "wrong.csv")}, TruthError, r"has columns \['upload', 'original'\]"),
        ({"truth": str(tmp_path / "none.csv")}, TruthError, "no such truth file"),
        ({"calibration": str(tmp_path / "none.json")}, CalibrationError, "no such file"),
        ({"truth": str(tmp_path / "wrong.parquet")}, TruthError, "not a Parquet file"),
        ({"out": str(tmp_path / "file")}, StorageError, "is a file: give a folder"),
        ({"out": ""}, StorageError, "empty"),
        ({"index": "tree"}, OptionError, "no index 'tree': choose flat"),
        ({"runner": "Treadmill"}, OptionError, "no Beam runner 'Treadmill': choose FnApiRunner"),
        ({"top_k": 0}, OptionError, "top_k is 0"),
    ):
        request = ScanRequest(**given | change)
        if error is None:  # a folder around the images, not inside
            request.check()
            continue
        with pytest.raises(error, match=message):
            request.check()


SCAN = (
    "scan",
    "--reference",
    "in/references",
    "--queries",
    "in/uploads",
    "--background",
    "dataset:background-id2",
    "--out",
)


def scanning(vae: str) -> dict[str, str]:
    return {"ID2_PART_SIZE": "8", "ID2_ENCODER": vae, "ID2_CALIBRATION": "calibration.json"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_vae: str, id2_command: str) -> Path:
    """A folder with images and, in `whole`, the judged results of a scan of them in parts of eight."""
    folder = tmp_path_factory.mktemp("undisturbed")
    draw_photos(folder / "in/references", 40)
    draw_photos(folder / "in/uploads", 12, first_seed=30)
    draw_photos(folder / "in/background", 6, first_seed=900)
    embed.run(
        embed_job(folder / "in/background", folder / "background-id2", tiny_vae),
        Execution.begin(),
    )
    held = Dataset.open(str(folder / "background-id2/embeddings"))
    normalization = Normalization(factor=0.5, k=3, background_id=shards.index_id(held))
    calibrated(held.ids, 0.5, normalization).save(str(folder / "calibration.json"))
    environment = os.environ | scanning(tiny_vae)
    subprocess.run(
        [id2_command, *SCAN, "whole"], cwd=folder, env=environment, check=True, capture_output=True
    )
    return folder


@pytest.mark.parametrize(
    "kill_at",
    [
        pytest.param("reference/_staging/files/embeddings/part-*", marks=pytest.mark.slow),
        pytest.param("queries/_staging/files/backgrounds/*/*.parquet", marks=pytest.mark.slow),
        pytest.param("_staging/files/candidates/*.parquet", marks=pytest.mark.slow),
        pytest.param("_staging/files/matches/*/*.parquet", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_gives_the_same_matches_bit_for_bit(
    kill_at: str, undisturbed: Path, tiny_vae: str, id2_command: str
) -> None:
    out = undisturbed / kill_at.replace("/", "-").replace("*", "x")
    environment = os.environ | scanning(tiny_vae)
    run_until(out, kill_at, [id2_command, *SCAN, str(out)], undisturbed, environment)
    assert not (out / "summary.json").exists(), "it ended before it could be killed"
    subprocess.run(
        [id2_command, *SCAN, out], cwd=undisturbed, env=environment, check=True, capture_output=True
    )
    resumed, whole = (id2.matches(str(o)) for o in (out, undisturbed / "whole"))
    assert resumed.num_rows == 120 and resumed["verdict"].null_count == 0
    assert resumed.drop(["scanned_at", "run_id"]).equals(whole.drop(["scanned_at", "run_id"]))
    for side in ("reference", "queries"):
        ours, theirs = (
            Dataset.open(str(o / side / "embeddings")).read(schemas.embeddings_schema(1024, 1024))
            for o in (out, undisturbed / "whole")
        )
        assert (
            ours.sort_by("uri")
            .drop(["embedded_at", "run_id"])
            .equals(theirs.sort_by("uri").drop(["embedded_at", "run_id"]))
        )


def draw_without_content(folder: Path, tones: list[int]) -> Path:
    folder.mkdir()
    for tone in tones:
        Image.new("RGB", (90, 90), (tone, 20, 20)).save(folder / f"blank{tone}.png")
    return folder


def test_a_photo_on_a_blank_page_is_judged_by_what_it_shows_itself(tmp_path: Path) -> None:
    draw_photos(tmp_path / "references", 6)
    (tmp_path / "uploads").mkdir()
    for file in (tmp_path / "references").iterdir():
        photo = Image.open(file)
        margins = [round(0.9 * side) for side in photo.size]
        ImageOps.expand(photo, (*margins, *margins), "white").save(tmp_path / "uploads" / file.name)
    chosen = judging.load("auto")
    assert chosen
    chosen.model_copy(update={"content": 0.15}).save(str(tmp_path / "calibration.json"))
    given = {"reference": str(tmp_path / "references"), "queries": str(tmp_path / "uploads")}
    id2.scan(**given, calibration=str(tmp_path / "calibration.json"), out=str(tmp_path / "out"))

    pages = Dataset.open(str(tmp_path / "out/queries/embeddings")).tables(["information"])
    assert all(pc.max(page["information"]).as_py() < 0.15 for page in pages)
    first = id2.matches(str(tmp_path / "out")).filter(pc.field("rank") == 1)
    assert set(zip(*(first[name].to_pylist() for name in ("view", "verdict")), strict=True)) == {
        ("inset", "match")
    }


@pytest.mark.parametrize(
    ("views", "finder", "warning"),
    [
        ("auto", FINDER, None),
        ("auto", "frames-v5", "by the rules frames-v5."),
        ("auto", None, "by the rules of an earlier version."),
        ("none", None, "by no rules (--views none)."),
    ],
)
def test_uploads_that_other_rules_looked_into_are_named(
    views: str, finder: str | None, warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, embeddings = str(draw_photos(tmp_path / "photos", 3)), f"{tmp_path}/uploads/embeddings"
    id2.embed(images=photos, out=str(tmp_path / "uploads"), views=views)
    latent_sets.with_columns(embeddings, {"finder": pa.array([finder] * 3, pa.string())})
    id2.scan(reference=photos, queries=f"dataset:{embeddings}", out=str(tmp_path / "out"))
    assert re.findall(r"looked for (by .*?\.)", caplog.text) == ([warning] if warning else [])


def test_an_upload_of_which_no_pair_is_stored_counts_as_none(tmp_path: Path) -> None:
    references, uploads = (str(tmp_path / name) for name in ("references", "uploads"))
    draw_photos(Path(references), 3)
    draw_photos(Path(uploads), 1)
    draw_photos(Path(uploads), 2, first_seed=50)
    encoder = load_encoder("pdq")
    ids = {"encoder_id": encoder.encoder_id, "preprocess_id": encoder.preprocess.preprocess_id}
    calibrated(ids | {"transform_id": "identity"}, 0.9).save(str(tmp_path / "calibration.json"))
    given = {"reference": references, "queries": uploads, "encoder": "pdq", "transform": "none"}

    id2.scan(**given, calibration=f"{tmp_path}/calibration.json", out=str(tmp_path / "out"))
    summary = id2.report(out=str(tmp_path / "out"))
    assert summary.counts.queries == 3 and summary.counts.queries_with_match == 1
    assert summary.verdicts == {"match": 1, "review": 0, "none": 2}


@pytest.mark.parametrize("least", [None, 0.5])
def test_pictures_without_content_match_none(least: float | None, tmp_path: Path) -> None:
    references = draw_without_content(tmp_path / "references", [20, 200])
    uploads = draw_without_content(tmp_path / "uploads", [24, 90])
    for folder in (references, uploads):
        draw_photos(folder, 1)
    encoder = load_encoder("pdq")
    ids = {"encoder_id": encoder.encoder_id, "preprocess_id": encoder.preprocess.preprocess_id}
    chosen = calibrated(ids | {"transform_id": "identity"}, 0.9).model_copy(update={"content": least})
    chosen.save(str(tmp_path / "calibration.json"))
    given = {"reference": str(references), "queries": str(uploads), "encoder": "pdq", "transform": "none"}
    given["keep"] = "all"
    summary = scan(**given, calibration=f"{tmp_path}/calibration.json", out=str(tmp_path / "out"))
    assert summary["verdicts"] == {"match": 1 if least else 3, "review": 0, "none": 2 if least else 0}
    assert summary["verdict_reasons"] == ({"no_content": 2} if least else {})
    found = id2.matches(str(tmp_path / "out"))
    reasons = set(zip(found["verdict"].to_pylist(), found["verdict_reason"].to_pylist(), strict=True))
    assert reasons == (
        {("match", None), ("none", "no_content")} if least else {("match", None), ("none", None)}
    )
    assert ("marked “no content”" in (tmp_path / "out" / "report.html").read_text()) == bool(least)


def rows_of(out: Path, run_id: str) -> list[tuple[str, int, str, float]]:
    found = id2.matches(str(out))
    columns = (found[name].to_pylist() for name in ("query_uri", "rank", "reference_uri", "score"))
    return list(zip(*columns, strict=True))


def test_parts_and_nights_do_not_change_which_of_equal_references_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references, uploads = (draw_photos(tmp_path / name, n) for name, n in (("references", 6), ("up", 4)))
    weights = np.random.default_rng(0).standard_normal((256, 48)).astype(np.float32)
    Transform(weights).save(tmp_path / "W.safetensors")
    for i in range(15):
        shutil.copy(references / "p0001.jpg", references / f"copy{i:02d}.jpg")
    given = {"queries": str(uploads), "encoder": "pdq", "transform": f"{tmp_path}/W.safetensors", "top_k": 5}
    found = []
    for size in ("4096", "7"):
        monkeypatch.setenv("ID2_PART_SIZE", size)
        out = tmp_path / f"parts-{size}"
        found.append(rows_of(out, scan(reference=str(references), out=str(out), **given)["run_id"]))
    growing, out = tmp_path / "growing", tmp_path / "nights"
    growing.mkdir()
    for night in range(3):
        for path in sorted(references.iterdir(), key=lambda path: path.name[::-1])[night::3]:
            shutil.copy(path, growing)
        run_id = scan(reference=str(growing), out=str(out), **given)["run_id"]
    nights = [(q, rank, r.replace("growing", "references"), s) for q, rank, r, s in rows_of(out, run_id)]
    assert found[0] == found[1] == nights


def test_a_truth_in_another_unicode_form_is_matched_and_what_it_names_in_vain_is_counted(
    tmp_path: Path,
) -> None:
    references, uploads = (draw_photos(tmp_path / name, 3) for name in ("references", "uploads"))
    nfc, nfd = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    (uploads / "p0000.jpg").rename(uploads / nfd)
    (references / "p0001.jpg").rename(references / nfc)
    rows = ["query_uri,reference_uri,group", f"{nfc},p0000.jpg,g", f"p0001.jpg,{nfd},g"]
    rows += ["p0002.jpg,gone.jpg,g", "gone.jpg,p0002.jpg,g"]
    (tmp_path / "truth.csv").write_text("\n".join(rows) + "\n")
    given = {"reference": str(references), "queries": str(uploads), "encoder": "pdq", "transform": "none"}
    summary = id2.scan(**given, out=str(tmp_path / "out"), truth=str(tmp_path / "truth.csv"))
    assert (summary.accuracy, summary.accuracy_of) == (pytest.approx(2 / 3), 3)
    assert (summary.truth_not_scanned, summary.truth_origins_not_held) == (1, 1)
    assert summary.groups["g"].model_dump()["verdicts"] == {}
    lines = [line for line in summary_lines(summary) if line.startswith("warning")]
    assert len(lines) == 2 and "names 1 upload that is not among" in lines[0]
    assert "1 upload an origin" in lines[1]
    again = report(tmp_path / "out")
    assert again["accuracy"] == summary.accuracy and again["truth_not_scanned"] == 1
    absolute = [
        ",".join(
            f"{folder}/{name}" for folder, name in zip((uploads, references), row.split(","), strict=False)
        )
        for row in rows[1:]
    ]
    (tmp_path / "absolute.csv").write_text("\n".join(["query_uri,reference_uri", *absolute]) + "\n")
    data = {side: f"dataset:{tmp_path}/out/{side}" for side in ("reference", "queries")}
    evaluated = id2.evaluate(
        **data, transform=["none"], truth=str(tmp_path / "absolute.csv"), out=str(tmp_path / "evaluated")
    )
    assert (evaluated.queries_not_found, evaluated.origins_not_in_reference) == (1, 1)
