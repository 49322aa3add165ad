from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from beam_jobs import embed, parts, runners
from id2core.encoders import embedding
from id2core.encoders.embed_job import EmbedJob, plan_embed
from id2core.encoders.images import Limits
from id2core.errors import DatasetError, LostRowsError, StorageError, TransformError
from id2core.runs import leases, planning
from id2core.runs import parts as run_parts
from id2core.runs.execution import Execution
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.local import LocalStore
from id2core.store.rejects import Reason
from id2core.transforms.linear import Transform
from tests.bombs import scans_jpeg
from tests.broken import broken_files, good_files
from tests.drawing import draw_photos
from tests.embedding import embed_job

TIMES = ["embedded_at"]


def rows(out: str, dataset: str) -> pa.Table:
    schema = schemas.REJECTS if dataset == "rejects" else schemas.embeddings_schema(1, 1)
    return Dataset.open(storage.join(out, dataset)).read(schema).sort_by("uri")


def job(images: Path | str, out: Path | str, vae: str, **more: object) -> EmbedJob:
    return embed_job(str(images), str(out), encoder=vae, dtype="float32", **more)  # type: ignore[arg-type]


def test_every_listed_object_ends_in_exactly_one_data_set(
    mixed_folder: Path, tiny_vae: str, tmp_path: Path
) -> None:
    summary = embed.run(job(mixed_folder, tmp_path, tiny_vae, part_size=20), Execution.begin())
    good, bad = rows(str(tmp_path), "embeddings"), rows(str(tmp_path), "rejects")
    listed = [o.uri for o in storage.list_objects(str(mixed_folder))]
    assert sorted(good["uri"].to_pylist() + bad["uri"].to_pylist()) == listed
    assert (summary.listed, summary.embedded, summary.rejected) == (len(listed), len(good), len(bad))
    assert {Path(u).name for u in good["uri"].to_pylist()} == set(good_files())
    assert {Path(u).name for u in bad["uri"].to_pylist()} == set(broken_files())
    assert len(broken_files()) >= 25 and set(bad["reason"].to_pylist()) <= set(Reason)


def test_rows_say_where_they_come_from_and_how_they_were_made(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    Transform(np.eye(1024, 7, dtype=np.float32)).save(tmp_path / "w.safetensors")
    spec = job(photos, tmp_path / "out", tiny_vae, transform=str(tmp_path / "w.safetensors"))
    summary = embed.run(spec, Execution.begin())
    table = rows(spec.out, "embeddings")
    assert int(table.schema.metadata[b"id2.schema_version"]) == schemas.version_of("embeddings")
    descriptors = schemas.column_to_vectors(table["descriptor"])
    latents = schemas.column_to_vectors(table["latent"]).astype(np.float32)
    assert descriptors.shape == (12, 7) and latents.shape == (12, 1024)
    expected = latents[:, :7] / np.linalg.norm(latents[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(descriptors, expected, atol=1e-5)
    assert table["encoder_id"].unique().to_pylist() == [summary.encoder_id]
    assert table["run_id"].unique().to_pylist() == [summary.run_id]
    assert table["width"].to_pylist() == [120] * 12 and table["format"].to_pylist() == ["jpeg"] * 12


def test_the_example_of_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    [example] = doctest.DocTestFinder().find(EmbedJob, "EmbedJob", globs={**globals(), "embed": embed})[:1]
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_the_same_run_again_does_nothing(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path, tiny_vae)
    first = embed.run(spec, Execution.begin())
    assert first.embedded == 12
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    assert embed.run(spec, Execution.begin()) == replace(first, resumed=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == stamps


def test_rows_carry_the_run_and_the_time_of_the_execution_that_wrote_them(
    tiny_vae: str, tmp_path: Path
) -> None:
    images = draw_photos(tmp_path / "images", 3)
    (images / "broken.jpg").write_bytes(b"no picture")
    spec = job(images, tmp_path / "out", tiny_vae, part_size=2)
    first, second = (Execution(f"run-{i}", datetime(2026, 1, i, tzinfo=UTC)) for i in (1, 2))
    plan = plan_embed(spec, first)
    with runners.pipeline() as pipeline:  # broken.jpg and p0000.jpg, and the first run is killed
        _ = pipeline | beam.Create([0]) | parts.MakeParts(embed.planned(spec, plan))
    summary = embed.run(spec, second)
    table = rows(spec.out, "embeddings")
    assert table["run_id"].to_pylist() == [first.run_id, second.run_id, second.run_id]
    assert table["embedded_at"].to_pylist() == [first.started, second.started, second.started]
    assert rows(spec.out, "rejects")["run_id"].to_pylist() == [first.run_id]
    assert summary.run_id == second.run_id
    assert plan_embed(spec, Execution.begin()).lineage.run_id == second.run_id


def test_only_what_is_new_is_embedded_and_what_is_gone_is_dropped(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 6)
    (images / "broken.jpg").write_bytes(b"no picture")
    spec = job(images, tmp_path / "out", tiny_vae)
    embed.run(spec, Execution.begin())
    before = rows(spec.out, "embeddings")
    draw_photos(images, 3, first_seed=100)
    (images / "p0000.jpg").unlink()
    (images / "broken.jpg").unlink()
    (images / "p0001.jpg").write_bytes((images / "p0100.jpg").read_bytes())
    summary = embed.run(spec, Execution.begin())
    after = rows(spec.out, "embeddings")
    assert (summary.listed, summary.embedded, summary.rejected) == (8, 8, 0)
    assert [Path(u).name for u in after["uri"].to_pylist()] == sorted(p.name for p in images.iterdir())
    untouched = pc.is_in(after["uri"], before["uri"][2:].combine_chunks())
    assert after.filter(untouched).equals(before.slice(2))
    assert after["image_id"][0] == after["image_id"][5]  # p0001 now holds the picture of p0100


def test_a_name_that_is_no_utf_8_is_embedded_like_others(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "in", 2)
    for photo, name in zip(sorted(images.iterdir()), (b"x\xff.jpg", b"x\\xff.jpg"), strict=True):
        photo.rename(os.fsdecode(os.fsencode(images) + b"/" + name))
        os.utime(os.fsdecode(os.fsencode(images) + b"/" + name), (1_700_000_000, 1_700_000_000))
    spec = job(images, tmp_path / "out", tiny_vae)
    assert embed.run(spec, Execution.begin()).embedded == 2
    uris = rows(spec.out, "embeddings")["uri"].to_pylist()
    assert uris == [f"{images}/x\\x5cxff.jpg", f"{images}/x\\xff.jpg"]
    assert embed.run(spec, Execution.begin()).resumed


def test_another_encoder_or_transform_is_refused_with_the_reason(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    embed.run(spec, Execution.begin())
    Transform(np.eye(1024, 7, dtype=np.float32)).save(tmp_path / "w.safetensors")
    with pytest.raises(DatasetError, match="transform_id identity, this run has"):
        embed.run(replace(spec, transform=str(tmp_path / "w.safetensors")), Execution.begin())
    with pytest.raises(DatasetError, match=r"encoder_id tiny-.* this run has mini-"):
        embed.run(replace(spec, encoder="mini"), Execution.begin())


def test_results_inside_the_image_folder_are_not_images(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 2)
    spec = job(images, images / "out", tiny_vae)
    first = embed.run(spec, Execution.begin())
    assert embed.run(spec, Execution.begin()) == replace(first, resumed=True) and first.listed == 2


def test_an_empty_folder_gives_empty_data_sets_and_a_missing_one_an_error(
    tiny_vae: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    assert embed.run(job(tmp_path / "images", tmp_path / "out", tiny_vae), Execution.begin()).listed == 0
    assert rows(str(tmp_path / "out"), "rejects").num_rows == 0
    with pytest.raises(StorageError, match="no such folder"):
        embed.run(job(tmp_path / "nowhere", tmp_path / "out2", tiny_vae), Execution.begin())


def test_a_commit_that_would_lose_a_row_is_refused(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path, tiny_vae, part_size=5)
    plan = plan_embed(spec, Execution.begin())
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0, 2]) | parts.MakeParts(embed.planned(spec, plan))
    with pytest.raises(LostRowsError, match="5 listed objects have too few rows"):
        planning.commit(plan)
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(str(tmp_path / "embeddings"))
    assert embed.run(spec, Execution.begin()).embedded == 12


def test_faults_of_the_store_are_tried_again_by_the_next_run(
    tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(draw_photos(tmp_path / "images", 4), tmp_path / "out", tiny_vae)
    with monkeypatch.context() as broken:
        fault = lambda self, obj: (_ for _ in ()).throw(OSError("the disk was away"))  # noqa: E731
        broken.setattr(LocalStore, "read", fault)
        assert embed.run(spec, Execution.begin()).rejected == 4
    again = embed.run(spec, Execution.begin())
    assert (again.embedded, again.rejected, again.resumed) == (4, 0, False)
    assert embed.run(spec, Execution.begin()).resumed


def test_other_limits_judge_anew(tiny_vae: str, tmp_path: Path) -> None:
    spec = job(draw_photos(tmp_path / "images", 3), tmp_path / "out", tiny_vae)
    assert embed.run(replace(spec, limits=Limits(max_bytes=10)), Execution.begin()).rejected == 3
    assert embed.run(spec, Execution.begin()).embedded == 3


def test_a_file_over_budget_costs_its_own_row_and_is_judged_anew(tiny_vae: str, tmp_path: Path) -> None:
    spec = job(draw_photos(tmp_path / "images", 3), tmp_path / "out", tiny_vae)
    Path(spec.images, "slow.jpg").write_bytes(scans_jpeg(6000, 90))
    first = embed.run(replace(spec, limits=Limits(max_seconds=0.1)), Execution.begin())
    assert (first.embedded, first.rejected) == (3, 1)
    assert first.rejects.read(schemas.REJECTS)["reason"].to_pylist() == [Reason.OVER_BUDGET]
    assert embed.run(spec, Execution.begin()).embedded == 4


def test_an_unfinished_run_of_another_encoder_leaves_nothing_in_ours(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 6)
    ours, theirs = (job(images, tmp_path / "out", e, part_size=3) for e in (tiny_vae, "mini"))
    with runners.pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create([0])
            | parts.MakeParts(embed.planned(ours, plan_embed(ours, Execution.begin())))
        )
    with runners.pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create([0, 1])
            | parts.MakeParts(embed.planned(theirs, plan_embed(theirs, Execution.begin())))
        )
    summary = embed.run(ours, Execution.begin())
    assert rows(ours.out, "embeddings")["encoder_id"].unique().to_pylist() == [summary.encoder_id]


def test_a_late_attempt_that_read_less_and_died_breaks_nothing(
    photos: Path, tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    plan = plan_embed(spec, Execution.begin())
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0]) | parts.MakeParts(embed.planned(spec, plan))
    objects, (encoder, identity) = planning.read_part(plan, 0), spec.load()
    with monkeypatch.context() as broken:
        broken.setattr(run_parts, "remaining", lambda out, objects, lineage: objects)  # no record yet
        broken.setattr(storage, "write_bytes", lambda uri, data: (_ for _ in ()).throw(OSError("killed")))
        (photos / "p0003.jpg").rename(tmp_path / "away.jpg")
        with pytest.raises(OSError, match="killed"):
            embedding.embed_part(plan.out, objects, encoder, identity, plan.lineage)
    (tmp_path / "away.jpg").rename(photos / "p0003.jpg")
    assert embed.run(spec, Execution.begin()).embedded == 12


def test_what_would_drop_a_corpus_is_refused(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 2)
    spec = job(images, tmp_path / "out", tiny_vae)
    embed.run(spec, Execution.begin())
    for photo in images.iterdir():
        photo.unlink()
    with pytest.raises(StorageError, match="is it mounted"):
        embed.run(spec, Execution.begin())
    assert rows(spec.out, "embeddings").num_rows == 2


def test_a_worker_with_another_model_than_planned_stops(tiny_vae: str, tmp_path: Path) -> None:
    spec = job(draw_photos(tmp_path / "images", 2), tmp_path / "out", tiny_vae)
    plan = plan_embed(spec, Execution.begin())
    with pytest.raises(Exception, match="the run was planned with"), runners.pipeline() as pipeline:
        parts.build(pipeline, [embed.planned(replace(spec, encoder="mini"), plan)])


def test_a_job_can_be_repeated_after_its_commit(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    plan = plan_embed(spec, Execution.begin())
    for _ in range(2):  # as an engine does that loses a machine at the very end
        with runners.pipeline() as pipeline:
            parts.build(pipeline, [embed.planned(spec, plan)])
    planning.commit(plan)
    assert embed.run(spec, Execution.begin()).resumed
    other = job(photos, tmp_path / "other", tiny_vae)
    uncommitted = plan_embed(other, Execution.begin())
    shutil.rmtree(tmp_path / "other/_staging")
    with pytest.raises(DatasetError, match="start the run again"):
        planning.commit(uncommitted)


def test_a_job_that_outlives_its_run_makes_no_more_once_a_later_run_took_over(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    early, late = (Execution(f"{second}-run", datetime.now(UTC)) for second in (1, 2))
    plan = plan_embed(spec, early)

    def go_on(plan: planning.Plan) -> None:
        with runners.pipeline() as pipeline:
            parts.build(pipeline, [embed.planned(spec, plan)])

    with leases.held(spec.out, spec.images, late):
        later = plan_embed(spec, late)
        go_on(plan)
        assert not list(tmp_path.glob("out/**/part-*"))
        go_on(later)
    go_on(plan)  # the later run has ended, and its lease says so
    assert rows(spec.out, "embeddings")["run_id"].unique().to_pylist() == [late.run_id]
    assert {path.parent.name for path in tmp_path.glob("out/**/part-*")} == {"embeddings"}
    assert embed.run(spec, Execution.begin()).resumed


class _Bright(torch.nn.Module):
    """Overflows float16 where a picture is nearly white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(14 * x.mean(dim=(2, 3)))


def test_a_picture_whose_latent_overflows_is_a_reject_and_stops_nothing(tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 3)
    Image.new("RGB", (40, 40), "white").save(images / "white.png")
    torch.jit.script(_Bright()).save(str(tmp_path / "bright.pt"))
    summary = embed.run(job(images, tmp_path / "out", str(tmp_path / "bright.pt")), Execution.begin())
    assert (summary.embedded, summary.rejected) == (3, 1)
    assert rows(str(tmp_path / "out"), "rejects")["reason"].to_pylist() == [Reason.NOT_ENCODABLE]
    for photo in images.glob("p*"):
        Image.new("RGB", (40, 40), "white").save(photo)
    with pytest.raises(Exception, match="float32"):
        embed.run(job(images, tmp_path / "none", str(tmp_path / "bright.pt")), Execution.begin())


def test_in_process_no_commit_is_read_that_the_run_has_written(
    photos: Path, tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = storage.read_marked
    monkeypatch.setattr(storage, "read_marked", lambda uri: (reads.append(uri), real(uri))[1])
    result = embed.run(job(photos, tmp_path / "out", tiny_vae), Execution.begin())
    commits = [uri for uri in reads if uri.endswith("_SUCCESS") and "/takedowns/" not in uri]
    assert commits == [f"{result.embeddings.uri}/_SUCCESS"]
    assert result.embeddings == Dataset.open(result.embeddings.uri)
    assert result.rejects == Dataset.open(result.rejects.uri)


NO_WEIGHTS = """
import sys
import beam_jobs.search, id2core.verdicts.judging  # what a worker of a search has
from beam_jobs import embed
from id2core.encoders.embed_job import EmbedJob
from id2core.runs.execution import Execution
result = embed.run(EmbedJob(sys.argv[1], sys.argv[2], "mini"), Execution.begin())
assert result.resumed and result.embedded == 2
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""


def test_with_nothing_to_do_and_for_a_search_no_weights_are_loaded(tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 2)
    embed.run(embed_job(str(images), str(tmp_path / "out"), "mini"), Execution.begin())
    command = [sys.executable, "-c", NO_WEIGHTS, str(images), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def test_a_transform_that_does_not_fit_is_a_mistake_and_not_a_fault_of_the_job(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    Transform(np.eye(5, 3, dtype=np.float32)).save(tmp_path / "w.safetensors")
    spec = job(photos, tmp_path / "out", tiny_vae, transform=str(tmp_path / "w.safetensors"))
    with pytest.raises(TransformError, match="5"):
        embed.run(spec, Execution.begin())
