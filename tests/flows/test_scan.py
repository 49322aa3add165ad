from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from beam_jobs import embed
from flows import scan as flow
from id2core import datasets, encoders, matching, storage, tables
from tests.conftest import run_until
from tests.drawing import draw_photos, scene

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight references; four uploads: two resized copies, one stranger, one broken file."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_photos(folder / "references", 8)
    draw_photos(folder / "uploads", 1, first_seed=500)
    for seed in (2, 5):
        scene(seed).resize((60, 45), Image.Resampling.BILINEAR).save(folder / "uploads" / f"copy{seed}.png")
    (folder / "uploads" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    truth = ["query_uri,reference_uri", "uploads/p0500.jpg,"]
    truth += [f"uploads/copy{seed}.png,references/p{seed:04d}.jpg" for seed in (2, 5)]
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    return folder


def arguments(pictures: Path | str, out: Path | str, vae: str) -> dict[str, object]:
    return {
        "reference": f"{pictures}/references",
        "queries": f"{pictures}/uploads",
        "out": str(out),
        "encoder": vae,
        "truth_file": f"{pictures}/truth.csv",
    }


def test_a_scan_finds_the_origins_and_reports_them(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    summary = flow.scan(**arguments(pictures, tmp_path, tiny_vae))
    assert summary["accuracy"] == 1.0 and summary["accuracy_of"] == 2
    assert summary["counts"]["references"] == 8 and summary["counts"]["queries"] == 3
    assert summary["rejects"]["queries"] == {"truncated": 1}
    page = (tmp_path / "report.html").read_text()
    assert "copy5.png" in page and summary["encoder_id"] in page
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    [run] = datasets.read_all(str(tmp_path / "runs"), tables.RUNS).to_pylist()
    assert run["run_id"] == summary["run_id"] and run["embedded"] == 11 and run["rejected"] == 1
    again = flow.scan(**arguments(pictures, tmp_path, tiny_vae))
    assert again == summary and (tmp_path / "report.html").read_text() == page


def test_a_new_upload_is_found_without_embedding_the_rest_again(
    pictures: Path, tiny_vae: str, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    flow.scan(**arguments(tmp_path / "in", tmp_path / "out", tiny_vae))
    references = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/reference").rglob("*.parquet")}
    scene(7).save(tmp_path / "in/uploads/new.bmp")
    summary = flow.scan(**arguments(tmp_path / "in", tmp_path / "out", tiny_vae))
    assert summary["counts"]["queries"] == 4
    found = matching.read_run(str(tmp_path / "out/matches"))
    best = dict(
        zip(found["query_uri"].to_pylist()[::8], found["reference_uri"].to_pylist()[::8], strict=True)
    )
    assert best[str(tmp_path / "in/uploads/new.bmp")].endswith("references/p0007.jpg")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/reference").rglob("*.parquet")} == references


def test_an_embedded_corpus_is_taken_as_it_is(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    embed.run(embed.EmbedJob(str(pictures / "references"), str(tmp_path / "corpus"), tiny_vae))
    given = arguments(pictures, tmp_path / "out", tiny_vae) | {"reference": str(tmp_path / "corpus")}
    summary = flow.scan(**given)
    assert summary["accuracy"] == 1.0 and summary["truth_not_scanned"] == 0
    assert summary["counts"]["references"] == 8 and not (tmp_path / "out/reference").exists()
    assert flow.rewrite_report(str(tmp_path / "out"), max_pairs=1)["run_id"] == summary["run_id"]
    assert "shown" in (tmp_path / "out/report.html").read_text()


def test_from_bucket_to_bucket(pictures: Path, tiny_vae: str, tmp_path: Path, gcs: str) -> None:
    where = f"gs://{gcs}/{tmp_path.name}"
    for path in pictures.rglob("*.*"):
        storage.write_bytes(f"{where}/in/{path.relative_to(pictures)}", path.read_bytes())
    here = flow.scan(**arguments(pictures, tmp_path / "local", tiny_vae))
    there = flow.scan(**arguments(f"{where}/in", f"{where}/out", tiny_vae))
    assert there["counts"] == here["counts"] and there["accuracy"] == 1.0
    assert there["score_quantiles"] == here["score_quantiles"]
    assert storage.read_bytes(f"{where}/out/report.html").lower().startswith(b"<!doctype html>")
    assert flow.scan(**arguments(f"{where}/in", f"{where}/out", tiny_vae)) == there


def test_a_fault_that_passes_is_retried_and_a_bad_name_is_not(
    pictures: Path, tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = flow.embed_job.run

    def unreliable(job: embed.EmbedJob, arguments: list[str]) -> embed.EmbedSummary:
        asked.append(job.encoder)
        if len(asked) == 1:
            raise ConnectionError("the network was away for a moment")
        return real(job, arguments)

    monkeypatch.setattr(flow.embed_job, "run", unreliable)
    quick = flow.embed_side.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(flow, "embed_side", quick)
    assert flow.scan(**arguments(pictures, tmp_path, tiny_vae))["accuracy"] == 1.0
    assert len(asked) == 3
    asked[:] = ["counted from here"]
    with pytest.raises(encoders.EncoderError, match="short name"):
        flow.scan(**arguments(pictures, tmp_path / "other", "no-such-encoder"))
    assert asked[1:] == ["no-such-encoder"]


def test_the_report_follows_what_changed(pictures: Path, tiny_vae: str, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    given = arguments(tmp_path / "in", tmp_path / "in/uploads/results", tiny_vae)  # results among the images
    first = flow.scan(**given)
    assert flow.scan(**given) == first
    (tmp_path / "in/uploads/results/report.html").unlink()
    flow.scan(**given)
    assert (tmp_path / "in/uploads/results/report.html").exists()
    (tmp_path / "in/uploads/second.jpg").write_bytes(b"no picture either")
    assert flow.scan(**given)["counts"]["query_rejects"] == first["counts"]["query_rejects"] + 1


SCAN = ("scan", "--reference", "in/references", "--queries", "in/uploads", "--out")


def scanning(vae: str, api: str) -> dict[str, str]:
    return {"ID2_PART_SIZE": "8", "ID2_ENCODER": vae, "PREFECT_API_URL": api}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_vae: str, id2: str, prefect_api: str) -> Path:
    """A folder with images and, in `whole`, the results of a scan of them in parts of eight."""
    folder = tmp_path_factory.mktemp("undisturbed")
    draw_photos(folder / "in/references", 40)
    draw_photos(folder / "in/uploads", 12, first_seed=30)
    environment = os.environ | scanning(tiny_vae, prefect_api)
    subprocess.run([id2, *SCAN, "whole"], cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("kill_at", ["reference/embeddings/part-*", "matches/*/*.parquet"])
def test_killed_and_run_again_gives_the_same_matches_bit_for_bit(
    kill_at: str, undisturbed: Path, tiny_vae: str, id2: str, prefect_api: str
) -> None:
    out = undisturbed / kill_at.split("/")[0]
    environment = os.environ | scanning(tiny_vae, prefect_api)
    run_until(out, kill_at, [id2, *SCAN, str(out)], undisturbed, environment)
    assert not (out / "summary.json").exists(), "it ended before it could be killed"
    subprocess.run([id2, *SCAN, out], cwd=undisturbed, env=environment, check=True, capture_output=True)
    resumed, whole = (matching.read_run(str(o / "matches")) for o in (out, undisturbed / "whole"))
    assert resumed.num_rows == 120 and resumed.drop(["scanned_at"]).equals(whole.drop(["scanned_at"]))
    for side in ("reference", "queries"):
        ours, theirs = (
            datasets.read_all(str(o / side / "embeddings"), tables.embeddings_schema(1024, 1024))
            for o in (out, undisturbed / "whole")
        )
        assert ours.sort_by("uri").drop(["embedded_at"]).equals(theirs.sort_by("uri").drop(["embedded_at"]))
