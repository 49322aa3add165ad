"""Corpora get descriptors of another W: beside those in use, then in their place. No scan mixes the two."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import id2
from beam_jobs import embed
from id2.results import NightlySummary
from id2core.encoders.embed_job import EmbedJob, plan_embed
from id2core.encoders.registry import load_encoder
from id2core.errors import CalibrationError, DatasetError, OptionError, RunInProgressError, TransformError
from id2core.runs import checkup, records
from id2core.runs.execution import Execution
from id2core.search import shards
from id2core.store.datasets import Dataset
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.verdicts.normalization import Normalization
from tests import latent_sets
from tests.calibrations import calibrated
from tests.drawing import draw_photos

NONE = "none"


def night(folder: Path, transform: str, **given: Any) -> NightlySummary:
    return id2.nightly(
        reference=[str(folder / "originals")],
        queries=[str(folder / "uploads")],
        out=str(folder / "out"),
        encoder="pdq",
        transform=transform,
        canary=False,
        **given,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five originals and three uploads, searched by raw latents in a night, and another transform."""
    draw_photos(tmp_path / "originals", 5)
    draw_photos(tmp_path / "uploads", 3)
    encoder = load_encoder("pdq")
    weights = np.random.default_rng(0).standard_normal((encoder.latent_size, 16)).astype(np.float32)
    Transform(weights, {"encoder_id": encoder.encoder_id}).save(tmp_path / "w.safetensors")
    night(tmp_path, NONE)
    return tmp_path


def reproject(folder: Path, **given: Any) -> id2.ReprojectReport:
    w = {"transform": str(folder / "w.safetensors")}
    return id2.reproject(out=str(folder / "out"), **w | given)


def rows_of(place: str | Path, without: tuple[str, ...] = ()) -> list[str]:
    """Every row of the embeddings of a place, in one order."""
    tables = Dataset.open(f"{place}/embeddings").tables()
    return sorted(repr(row) for table in tables for row in table.drop_columns(list(without)).to_pylist())


def test_rows_beside_are_those_of_an_embed_with_the_other_w_and_follow_the_corpus(folder: Path) -> None:
    used = folder / "out/reference"
    before, w = rows_of(used), str(folder / "w.safetensors")
    report = reproject(folder)
    done = [(corpus.corpus, corpus.projected, corpus.state) for corpus in report.corpora]
    assert done == [("reference", 5, "beside"), ("queries", 3, "beside")]
    id2.embed(images=str(folder / "originals"), out=str(folder / "fresh"), encoder="pdq", transform=w)
    places, run = [corpus.place for corpus in report.corpora], ("run_id", "embedded_at")
    assert rows_of(places[0], run) == rows_of(folder / "fresh", run)
    assert rows_of(used) == before
    trial = {"transform": w, "out": str(folder / "trial")}
    scanned = id2.scan(reference=f"dataset:{places[0]}", queries=f"dataset:{places[1]}", **trial)
    assert (scanned.counts.references, scanned.counts.queries) == (5, 3)
    with pytest.raises(DatasetError, match="id2 reproject"):
        night(folder, w)
    draw_photos(folder / "originals", 1, first_seed=90)
    sorted((folder / "originals").iterdir())[0].unlink()
    assert night(folder, NONE).new_references == 1
    again = reproject(folder)
    assert [(corpus.rows, corpus.projected) for corpus in again.corpora] == [(5, 5), (3, 0)]
    assert rows_of(places[0], ("descriptor", "transform_id")) == rows_of(used, ("descriptor", "transform_id"))
    assert not checkup.check(str(folder / "out")).findings


@pytest.mark.slow
def test_a_search_of_what_lies_beside_meets_a_picture_that_comes_back_once(folder: Path) -> None:
    places = [corpus.place for corpus in reproject(folder).corpora]
    trial = {"out": str(folder / "trial"), "transform": str(folder / "w.safetensors")}
    pairs, picture = f"'{folder}/trial/matches/**/*.parquet'", folder / "originals/p0000.jpg"
    for is_there in (True, False, True):
        picture.rename(folder / "away.jpg") if not is_there else None
        (folder / "away.jpg").rename(picture) if is_there and not picture.exists() else None
        night(folder, NONE)
        reproject(folder)
        id2.scan(reference=f"dataset:{places[0]}", queries=f"dataset:{places[1]}", **trial)
        assert duckdb.sql(f"select count(*) from {pairs}").fetchall() == [(15,)]
    assert not checkup.check(str(folder / "out")).findings


def test_a_switch_searches_every_pair_once_and_the_step_back_only_what_is_missing(folder: Path) -> None:
    report = reproject(folder, switch=True)
    assert {corpus.state for corpus in report.corpora} == {"in use"}
    assert not list((folder / "out/reprojected").rglob("*.parquet"))
    with pytest.raises(DatasetError, match="transform_id"):
        night(folder, NONE)
    draw_photos(folder / "uploads", 1, first_seed=90)
    w = str(folder / "w.safetensors")
    first = night(folder, w)
    assert (first.new_uploads, first.new_references, first.pairs) == (1, 0, 4 * 5)
    assert night(folder, w).pairs == 0
    matches = f"select transform_id = 'identity', count(*) from '{folder}/out/matches/**/*.parquet'"
    assert duckdb.sql(f"{matches} group by 1 order by 1").fetchall() == [(False, 20), (True, 15)]
    assert set(id2.matches(str(folder / "out"))["transform_id"].to_pylist()) == {report.transform_id}
    assert not checkup.check(str(folder / "out")).findings
    reproject(folder, transform=NONE, switch=True)
    assert night(folder, NONE).pairs == 1 * 5


def test_a_background_has_a_calibration_for_each_w(folder: Path) -> None:
    draw_photos(folder / "photos", 6, first_seed=300)
    id2.embed(images=str(folder / "photos"), out=str(folder / "background"), encoder="pdq", transform=NONE)
    w, background = str(folder / "w.safetensors"), f"dataset:{folder}/background"

    def calibration(transform_id: str) -> str:
        background_id = shards.index_id(Dataset.open(f"{folder}/background/embeddings"))
        made = calibrated(
            0.5, Normalization(factor=0.5, k=2, background_id=background_id), None, transform_id
        )
        path = str(folder / f"{made.calibration_id}.json")
        made.save(path)
        return path

    former = calibration("identity")
    transform_id = reproject(folder, switch=True).transform_id
    mixed = calibration(transform_id)
    id2.reproject(out=str(folder / "background"), transform=w, switch=True)
    with pytest.raises(CalibrationError, match="calibrated for transform_id identity"):
        night(folder, w, calibration=former, background=background)
    with pytest.raises(CalibrationError, match="calibrated with the background"):
        night(folder, w, calibration=mixed, background=background)
    judged = night(folder, w, calibration=calibration(transform_id), background=background)
    assert (judged.pairs, judged.verdicts["match"]) == (15, 3)


def test_a_takedown_reaches_what_lies_beside_and_a_drop_leaves_nothing(folder: Path) -> None:
    reproject(folder)
    gone = id2.matches(str(folder / "out"))["reference_id"][0].as_py()
    id2.takedown(out=str(folder / "out"), image_id=[gone])
    files = [str(path) for path in (folder / "out").rglob("*.parquet") if "embeddings" in path.parts]
    left = duckdb.sql(f"select count(*) from read_parquet({files}) where image_id = '{gone}'").fetchall()
    assert (len(files) >= 4, left) == (True, [(0,)])
    assert reproject(folder).corpora[0].rows == 4
    notes = [folder / "out/reprojected/notes.txt", Path(reproject(folder).corpora[0].place, "notes.txt")]
    for path in notes:
        path.write_text("of somebody else")
    Path(notes[1].parent, "embeddings/_SUCCESS").write_text("{")
    dropped = reproject(folder, drop=True).corpora
    assert {corpus.state for corpus in dropped} == {"dropped"}
    assert all("/out/reprojected/" in corpus.place for corpus in dropped)
    assert all(path.exists() for path in notes)
    assert not list((folder / "out/reprojected").rglob("*.parquet"))


def test_a_picture_that_is_taken_down_meanwhile_is_in_nothing_that_was_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, apply = str(folder / "out"), Transform.apply
    gone = [id2.matches(out)["reference_id"][0].as_py()]

    def take_down_first(*given: Any) -> Any:
        if gone:
            id2.takedown(out=out, image_id=[gone.pop()])
        return apply(*given)

    [picture] = gone
    monkeypatch.setattr(Transform, "apply", take_down_first)
    with suppress(DatasetError):  # the file that it was in may be gone before another one is read
        reproject(folder)
    files = [str(path) for path in (folder / "out/reprojected").rglob("part-*.parquet")]
    held = f"select count(latent) from read_parquet({files}, union_by_name=true) where image_id = '{picture}'"
    assert (bool(files), duckdb.sql(held).fetchall()) == (True, [(0,)])
    assert reproject(folder).corpora[0].rows == 4


def test_what_must_not_be_mixed_is_refused_by_name(folder: Path) -> None:
    wrong = folder / "wrong.safetensors"
    Transform(np.ones((3, 2), np.float32), {"encoder_id": "other-000000000000"}).save(wrong)
    with pytest.raises(TransformError, match="trained for other"):
        reproject(folder, transform=str(wrong))
    with pytest.raises(TransformError, match="no such file"):
        reproject(folder, transform=str(folder / "missing.safetensors"))
    with pytest.raises(OptionError, match="give either"):
        reproject(folder, switch=True, drop=True)
    with pytest.raises(DatasetError, match="no command of id2 has run"):
        id2.reproject(out=str(folder / "nowhere"), transform=NONE)
    out = str(folder / "out")
    with records.recorded(out, "nightly", {}), pytest.raises(RunInProgressError, match="at work"):
        reproject(folder, switch=True)
    draw_photos(folder / "originals", 1, first_seed=90)
    late = EmbedJob(str(folder / "originals"), f"{out}/reference", "pdq", NONE, results=out)
    work = plan_embed(late, Execution.begin())
    reproject(folder, switch=True)
    with pytest.raises(DatasetError, match="transform_id"):
        embed.run_planned([(late, work)])
    assert night(folder, str(folder / "w.safetensors")).new_references == 1


@pytest.mark.parametrize(
    ("views", "lacking"), [("none", "without rows"), ("auto", "rows for the views of another")]
)
def test_the_w_in_use_fills_in_what_rows_lack(views: str, lacking: str, tmp_path: Path) -> None:
    photos, lacks, whole = (str(tmp_path / name) for name in ("in", "lacks", "whole"))
    draw_photos(tmp_path / "in", 3)
    id2.embed(images=photos, out=whole)
    id2.embed(images=photos, out=lacks, views=views)
    if views == "auto":
        shorter = pa.array([b"row of another version"] * 3, pa.binary())
        (embedded,) = Dataset.open(f"{lacks}/embeddings").files
        latent_sets.with_columns(f"{lacks}/embeddings", {"crops": shorter})
        Path(lacks, "embeddings", embedded.name).unlink()
    apart = ("run_id", "embedded_at", "insets", "inset_information", "finder")
    assert rows_of(lacks, apart) != rows_of(whole, apart)
    with pytest.raises(DatasetError, match=f"{lacking}.*id2 reproject --out OUT --transform W --switch"):
        id2.scan(reference=f"dataset:{lacks}/embeddings", queries=photos, out=str(tmp_path / "scan"))
    assert not (tmp_path / "scan/queries").exists()
    Path(tmp_path, "again/reference").parent.mkdir()
    Path(tmp_path, "again/reference").symlink_to(lacks)
    with pytest.raises(DatasetError, match=lacking):  # embedded there before anything was searched
        id2.scan(reference=photos, queries=photos, out=str(tmp_path / "again"))
    assert not (tmp_path / "again/queries").exists()
    states = []
    for switch in (False, True, True):
        report = id2.reproject(out=lacks, transform="auto", switch=switch)
        states += [(corpus.projected, corpus.state) for corpus in report.corpora]
    assert states == [(3, "beside"), (0, "in use"), (0, "in use")]
    assert rows_of(lacks, apart) == rows_of(whole, apart)
    assert not checkup.check(lacks).findings


def test_a_w_for_the_views_of_another_version_is_named_before_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw_photos(tmp_path / "in", 2)
    id2.embed(images=str(tmp_path / "in"), out=str(tmp_path / "out"))
    shipped = load_transform("auto", load_encoder("mini").encoder_id)
    assert shipped.cohort and shipped.cohort.crops is not None
    earlier = replace(shipped.cohort, crops=np.ascontiguousarray(shipped.cohort.crops[:, 64:]))
    replace(shipped, cohort=earlier).save(tmp_path / "w.safetensors")

    id2.reproject(out=str(tmp_path / "out"), transform=str(tmp_path / "w.safetensors"))
    assert "has a cohort for the views of another version" in caplog.text
