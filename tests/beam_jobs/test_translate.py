from __future__ import annotations

import hashlib
import io
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from beam_jobs import parts, translate
from beam_jobs.translate import TranslateJob
from id2core.errors import DatasetError, LostRowsError, PromptError, TranslatorError
from id2core.runs import listing, planning, units
from id2core.runs.execution import Execution
from id2core.runs.records import recorded
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason
from id2core.translation import models
from id2core.translation.config import TranslationConfig
from tests import tiny_pipelines
from tests.drawing import draw_photos
from tests.vision_server import Server, error, numbered

TIMES = ["translated_at"]
LINES = "a photo at night\nin the snow\nas an oil painting\nmade of gold\n"

TWICE = TranslationConfig(per_image=2)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("pipeline") / "tiny"))


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text(LINES)
    return str(path)


def job(images: Path | str, out: Path | str, pipeline: str, prompts: str, **more: object) -> TranslateJob:
    model = models.find(pipeline, strength=0.5, steps=2, size=32)
    return TranslateJob(str(images), str(out), model, prompts, dtype="float32", **more)  # type: ignore[arg-type]


def rows(out: Path | str, dataset: str = "translations") -> pa.Table:
    schema = schemas.TRANSLATIONS if dataset == "translations" else schemas.REJECTS
    table = Dataset.open(storage.join(str(out), dataset)).read(schema)
    return table.sort_by(
        [(name, "ascending") for name in ("origin_uri", "number")] if dataset != "rejects" else "uri"
    )


def pictures(out: Path | str) -> dict[str, bytes]:
    """Name → bytes of every file that a run left as a picture."""
    listed = storage.list_objects(storage.join(str(out), listing.PICTURES))
    return {o.uri.rsplit("/", 1)[-1]: storage.read_bytes(o.uri) for o in listed}


def make_part(job: parts.Job, part: int) -> None:
    job.maker.make(job.plan, planning.read_part(job.plan, part), lambda made, rejected: None)


def made(out: Path | str) -> dict[tuple[str, int, str], bytes]:
    """Origin, number and prompt → the bytes of the picture."""
    listed = rows(out).to_pylist()
    return {(r["origin_id"], r["number"], r["prompt"]): storage.read_bytes(r["uri"]) for r in listed}


def test_every_origin_has_its_pictures_with_full_lineage_or_a_reject(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (photos / "notes.txt").write_text("no picture")
    spec = job(photos, tmp_path / "out", pipeline, lines, config=TranslationConfig(per_image=3), part_size=5)
    summary = translate.run(spec, Execution.begin())
    assert (summary.listed, summary.translated, summary.rejected, summary.pictures) == (14, 12, 2, 36)
    rejects = rows(tmp_path / "out", "rejects")
    assert rejects["reason"].to_pylist() == ["truncated", "not_an_image"]
    every = rows(tmp_path / "out").to_pylist()
    assert len(every) == 36 and len({row["uri"] for row in every}) == 36
    assert {row["uri"].rsplit("/", 1)[-1] for row in every} == set(pictures(tmp_path / "out"))
    for row in every:
        data = Path(row["uri"]).read_bytes()
        assert row["image_id"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        assert row["origin_id"] == hashlib.sha256(Path(row["origin_uri"]).read_bytes()).hexdigest()
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (row["width"], row["height"]) == (32, 32)
        assert row["prompt"] in LINES.splitlines()
        assert (row["model"], row["revision"]) == (spec.model.name, summary.revision)
        assert (row["paradigm"], row["strength"], row["steps"]) == ("sdedit", 0.5, 2)
    of_one = [row for row in every if row["origin_uri"] == every[0]["origin_uri"]]
    assert [row["number"] for row in of_one] == [0, 1, 2]
    assert len({row["seed"] for row in of_one}) == len({row["prompt"] for row in of_one}) == 3
    assert translate.run(spec, Execution.begin()) == replace(summary, resumed=True)


def test_any_subset_run_again_gives_the_same_pictures(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    config = TranslationConfig(per_image=2, format="png")
    translate.run(job(photos, tmp_path / "whole", pipeline, lines, config=config), Execution.begin())
    subset = tmp_path / "some"
    subset.mkdir()
    for name in ("p0007.jpg", "p0002.jpg", "p0011.jpg"):
        shutil.copy(photos / name, subset / name)
    translate.run(
        job(subset, tmp_path / "part", pipeline, lines, config=config, part_size=2), Execution.begin()
    )
    whole, part = made(tmp_path / "whole"), made(tmp_path / "part")
    assert len(part) == 6 and part.items() <= whole.items()
    translate.run(
        job(subset, tmp_path / "other", pipeline, lines, config=config.replace(seed=1)), Execution.begin()
    )
    assert not set(made(tmp_path / "other").values()) & set(part.values())


def test_a_new_origin_is_translated_without_the_others(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    spec = job(photos, tmp_path / "out", pipeline, lines)
    translate.run(spec, Execution.begin())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/pictures").rglob("*.jpeg")}
    draw_photos(photos, 1, first_seed=99)
    (photos / "p0003.jpg").unlink()
    summary = translate.run(spec, Execution.begin())
    assert (summary.listed, summary.translated) == (12, 12)
    left = rows(tmp_path / "out")
    assert left.num_rows == 12 and not any("p0003" in uri for uri in left["origin_uri"].to_pylist())
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/pictures").rglob("*.jpeg")}
    assert len(after) == 13 and before.items() <= after.items()


def test_a_run_cut_off_between_parts_gives_the_rows_of_an_undisturbed_one(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    def spec(out: str) -> TranslateJob:
        seconds = 1e-6 if out == "cut" else 60.0
        return job(photos, tmp_path / out, pipeline, lines, config=TWICE, part_size=5, record_seconds=seconds)

    planned = translate.plan(spec("cut"), Execution.begin())
    for part in (2, 0):
        make_part(planned, part)
    assert len(units.staged(str(tmp_path / "cut"))) > 2, "a slow part leaves several records"
    with pytest.raises(LostRowsError, match="5 listed objects have too few rows"):
        planning.commit(planned.plan)
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut/pictures").rglob("*.jpeg")}
    assert len(first) == 14
    for out in ("cut", "whole"):
        translate.run(spec(out), Execution.begin())
    assert made(tmp_path / "cut") == made(tmp_path / "whole")
    assert {p: p.stat().st_mtime_ns for p in first} == first
    drop = [*TIMES, "uri", "run_id"]
    cut, whole = (rows(tmp_path / out).drop(drop) for out in ("cut", "whole"))
    assert cut.num_rows == 24 and cut.equals(whole)


def test_what_was_made_otherwise_is_not_mixed(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    spec = job(photos, tmp_path / "out", pipeline, lines)
    translate.run(spec, Execution.begin())
    stronger = replace(spec, model=spec.model.replace(strength=1.0))
    for other in (
        stronger,
        replace(spec, config=TWICE),
        replace(spec, prompts="empty"),
    ):
        with pytest.raises(DatasetError, match="recipe_id"):
            translate.run(other, Execution.begin())
    assert rows(tmp_path / "out").num_rows == 12


PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.mark.parametrize("beam", [[], pytest.param(PROCESSES, marks=pytest.mark.slow)], ids=["here", "there"])
def test_in_a_bucket_and_in_worker_processes(
    beam: list[str], photos: Path, pipeline: str, lines: str, tmp_path: Path, gcs: str
) -> None:
    where = f"gs://{gcs}/{tmp_path.name}"
    for path in photos.iterdir():
        storage.write_bytes(f"{where}/in/{path.name}", path.read_bytes())
    here = job(photos, tmp_path / "out", pipeline, lines, part_size=3)
    there = job(f"{where}/in", f"{where}/out", pipeline, lines, part_size=3)
    translate.run(here, Execution.begin())
    summary = translate.run(there, Execution.begin(), beam)
    assert (summary.translated, summary.rejected) == (12, 0)
    assert made(f"{where}/out") == made(tmp_path / "out") and len(made(tmp_path / "out")) == 12


def test_an_origin_without_prompt_is_a_reject_and_is_tried_again(
    photos: Path, pipeline: str, tmp_path: Path
) -> None:
    names = sorted(p.name for p in photos.iterdir())
    table = ["uri,prompt", *(f"{name},in the snow" for name in names[:-2])]
    (tmp_path / "some.csv").write_text("\n".join(table) + "\n")
    summary = translate.run(
        job(photos, tmp_path / "out", pipeline, str(tmp_path / "some.csv")), Execution.begin()
    )
    assert (summary.translated, summary.rejected) == (10, 2)
    assert set(rows(tmp_path / "out", "rejects")["reason"].to_pylist()) == {Reason.NO_PROMPT}
    with pytest.raises(PromptError, match="captions"):
        translate.run(job(photos, tmp_path / "none", pipeline, "captions"), Execution.begin())


def test_numbers_that_overflow_are_rejects_and_an_error_when_all_do(
    photos: Path, pipeline: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from id2core.translation.translators import SDEdit

    real = SDEdit._impl

    def overflowing(self: SDEdit, images, prompts, generators):  # type: ignore[no-untyped-def]
        pixels = real(self, images, prompts, generators)
        pixels[1] = np.nan
        return pixels

    monkeypatch.setattr(SDEdit, "_impl", overflowing)
    out = tmp_path / "out"
    summary = translate.run(job(photos, out, pipeline, lines, config=TWICE), Execution.begin())
    assert (summary.translated, summary.rejected) == (9, 3)  # 24 pictures in three batches
    assert set(rows(out, "rejects")["reason"].to_pylist()) == {Reason.NOT_TRANSLATABLE}
    assert {row["uri"].rsplit("/", 1)[-1] for row in rows(out).to_pylist()} == set(pictures(out))
    monkeypatch.setattr(SDEdit, "_impl", lambda *args: real(*args) * np.nan)
    with pytest.raises(TranslatorError, match="float32"):
        translate.run(job(photos, tmp_path / "all", pipeline, lines), Execution.begin())


def test_copies_have_their_own_pictures_and_recipes_do_not_overwrite_each_other(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    shutil.copy(photos / "p0001.jpg", photos / "copy.jpg")
    spec = job(photos, tmp_path / "out", pipeline, lines)
    planned = translate.plan(spec, Execution.begin())
    make_part(planned, 0)  # and killed before the commit
    stronger = translate.plan(replace(spec, model=spec.model.replace(strength=1.0)), Execution.begin())
    make_part(stronger, 0)
    summary = translate.run(spec, Execution.begin())
    assert summary.pictures == 13 and rows(spec.out).num_rows == 13
    for row in rows(spec.out).to_pylist():
        assert row["image_id"] == hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest()
    assert len(set(rows(spec.out)["uri"].to_pylist())) == 13


def test_prompts_may_grow_and_lie_among_the_images(photos: Path, pipeline: str, tmp_path: Path) -> None:
    names = sorted(p.name for p in photos.iterdir())
    captions = photos / "captions.csv"
    captions.write_text("\n".join(["file,caption", *(f"{n},a house" for n in names[:-1])]) + "\n")
    spec = job(photos, tmp_path / "out", pipeline, "captions")
    first = translate.run(spec, Execution.begin())
    assert (first.listed, first.translated, first.rejected) == (12, 11, 1)
    captions.write_text(captions.read_text() + f"{names[-1]},a tree\n")
    second = translate.run(spec, Execution.begin())
    assert (second.translated, second.rejected) == (12, 0)
    assert sorted(set(rows(spec.out)["prompt"].to_pylist())) == ["a house", "a tree"]


def test_results_may_lie_in_the_folder_of_the_images(
    photos: Path, pipeline: str, lines: str, tmp_path: Path
) -> None:
    from id2.jobs.translate import write_truth

    spec = job(photos, photos, pipeline, lines)
    with recorded(spec.out, "translate", {}) as recorder:
        first = translate.run(spec, recorder.execution)
        write_truth(first.translations, spec.out)
    assert first.listed == 12
    assert translate.run(spec, Execution.begin()) == replace(first, resumed=True)


def test_an_endpoint_that_fails_a_fifth_of_the_time_loses_nothing_and_is_paid_once(
    photos: Path, pipeline: str, tmp_path: Path, vision_server: Server
) -> None:
    doubtful = random.Random(4)

    def reply(body: dict[str, Any]) -> Any:
        return error(500) if doubtful.random() < 0.2 else numbered(body)

    vision_server.reply = reply
    spec = job(photos, tmp_path / "out", pipeline, "endpoint", config=TWICE, part_size=4)
    summary = translate.run(spec, Execution.begin())
    assert (summary.translated, summary.rejected) == (12, 0)
    assert len(vision_server.requests) > vision_server.answered == 12
    assert all(prompt.startswith("Translation") for prompt in rows(tmp_path / "out")["prompt"].to_pylist())
    shutil.copytree(tmp_path / "out/_prompts", tmp_path / "again/_prompts")
    translate.run(
        replace(spec, out=str(tmp_path / "again"), config=TranslationConfig(per_image=3)), Execution.begin()
    )
    assert vision_server.answered == 12 and rows(tmp_path / "again").num_rows == 36
