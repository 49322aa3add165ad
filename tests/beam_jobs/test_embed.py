from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from beam_jobs import embed, parts, runners
from beam_jobs.embed import EmbedJob
from id2core.encoders import embedding
from id2core.encoders.images import Limits
from id2core.errors import DatasetError, LostRowsError, StorageError
from id2core.runs import planning
from id2core.store import datasets, schemas, storage
from id2core.store.rejects import Reason
from id2core.transforms.linear import Transform
from tests.broken import broken_files, good_files
from tests.drawing import draw_photos

TIMES = ["embedded_at"]


def rows(out: str, dataset: str) -> pa.Table:
    schema = schemas.REJECTS if dataset == "rejects" else schemas.embeddings_schema(1, 1)
    return datasets.read_all(storage.join(out, dataset), schema).sort_by("uri")


def job(images: Path | str, out: Path | str, vae: str, **more: object) -> EmbedJob:
    return EmbedJob(str(images), str(out), encoder=vae, dtype="float32", **more)  # type: ignore[arg-type]


def test_every_listed_object_ends_in_exactly_one_data_set(
    mixed_folder: Path, tiny_vae: str, tmp_path: Path
) -> None:
    summary = embed.run(job(mixed_folder, tmp_path, tiny_vae, part_size=20))
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
    summary = embed.run(spec)
    table = rows(spec.out, "embeddings")
    assert table.schema.metadata[b"id2.schema_version"] == schemas.SCHEMA_VERSION.encode()
    descriptors = schemas.column_to_vectors(table["descriptor"])
    latents = schemas.column_to_vectors(table["latent"]).astype(np.float32)
    assert descriptors.shape == (12, 7) and latents.shape == (12, 1024)
    expected = latents[:, :7] / np.linalg.norm(latents[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(descriptors, expected, atol=1e-5)
    assert table["encoder_id"].unique().to_pylist() == [summary.encoder_id]
    assert table["run_id"].unique().to_pylist() == [summary.run_id]
    assert table["width"].to_pylist() == [120] * 12 and table["format"].to_pylist() == ["jpeg"] * 12


def test_the_same_run_again_does_nothing(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path, tiny_vae)
    first = embed.run(spec)
    assert first.embedded == 12
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    assert embed.run(spec) == replace(first, resumed=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == stamps


def test_only_what_is_new_is_embedded_and_what_is_gone_is_dropped(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 6)
    (images / "broken.jpg").write_bytes(b"no picture")
    spec = job(images, tmp_path / "out", tiny_vae)
    embed.run(spec)
    before = rows(spec.out, "embeddings")
    draw_photos(images, 3, first_seed=100)
    (images / "p0000.jpg").unlink()
    (images / "broken.jpg").unlink()
    (images / "p0001.jpg").write_bytes((images / "p0100.jpg").read_bytes())
    summary = embed.run(spec)
    after = rows(spec.out, "embeddings")
    assert (summary.listed, summary.embedded, summary.rejected) == (8, 8, 0)
    assert [Path(u).name for u in after["uri"].to_pylist()] == sorted(p.name for p in images.iterdir())
    untouched = pc.is_in(after["uri"], before["uri"][2:].combine_chunks())
    assert after.filter(untouched).equals(before.slice(2))
    assert after["image_id"][0] == after["image_id"][5]  # p0001 now holds the picture of p0100


def test_another_encoder_or_transform_is_refused_with_the_reason(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    embed.run(spec)
    Transform(np.eye(1024, 7, dtype=np.float32)).save(tmp_path / "w.safetensors")
    with pytest.raises(DatasetError, match="transform_id identity, this run has"):
        embed.run(replace(spec, transform=str(tmp_path / "w.safetensors")))
    with pytest.raises(DatasetError, match=r"encoder_id tiny-.* this run has mini-"):
        embed.run(replace(spec, encoder="mini"))


def test_results_inside_the_image_folder_are_not_images(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 2)
    spec = job(images, images / "out", tiny_vae)
    first = embed.run(spec)
    assert embed.run(spec) == replace(first, resumed=True) and first.listed == 2


def test_an_empty_folder_gives_empty_data_sets_and_a_missing_one_an_error(
    tiny_vae: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    assert embed.run(job(tmp_path / "images", tmp_path / "out", tiny_vae)).listed == 0
    assert rows(str(tmp_path / "out"), "rejects").num_rows == 0
    with pytest.raises(StorageError, match="no such folder"):
        embed.run(job(tmp_path / "nowhere", tmp_path / "out2", tiny_vae))


def test_a_commit_that_would_lose_a_row_is_refused(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path, tiny_vae, part_size=5)
    plan = embed.plan(spec)
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0, 2]) | parts.MakeParts(embed.planned(spec, plan))
    with pytest.raises(LostRowsError, match="5 listed objects have too few rows"):
        planning.commit(plan)
    with pytest.raises(DatasetError, match="did not finish"):
        datasets.require_commit(str(tmp_path / "embeddings"))
    assert embed.run(spec).embedded == 12


def test_faults_of_the_store_are_tried_again_by_the_next_run(
    tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(draw_photos(tmp_path / "images", 4), tmp_path / "out", tiny_vae)
    with monkeypatch.context() as broken:
        fault = lambda obj: (_ for _ in ()).throw(OSError("the disk was away"))  # noqa: E731
        broken.setattr(storage, "_read_local", fault)
        assert embed.run(spec).rejected == 4
    again = embed.run(spec)
    assert (again.embedded, again.rejected, again.resumed) == (4, 0, False)
    assert embed.run(spec).resumed


def test_other_limits_judge_anew(tiny_vae: str, tmp_path: Path) -> None:
    spec = job(draw_photos(tmp_path / "images", 3), tmp_path / "out", tiny_vae)
    assert embed.run(replace(spec, limits=Limits(max_bytes=10))).rejected == 3
    assert embed.run(spec).embedded == 3


def test_an_unfinished_run_of_another_encoder_leaves_nothing_in_ours(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 6)
    ours, theirs = (job(images, tmp_path / "out", e, part_size=3) for e in (tiny_vae, "mini"))
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0]) | parts.MakeParts(embed.planned(ours, embed.plan(ours)))
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0, 1]) | parts.MakeParts(embed.planned(theirs, embed.plan(theirs)))
    summary = embed.run(ours)
    assert rows(ours.out, "embeddings")["encoder_id"].unique().to_pylist() == [summary.encoder_id]


def test_a_late_attempt_that_read_less_and_died_breaks_nothing(
    photos: Path, tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    plan = embed.plan(spec)
    with runners.pipeline() as pipeline:
        _ = pipeline | beam.Create([0]) | parts.MakeParts(embed.planned(spec, plan))
    objects, (encoder, identity) = planning.read_part(plan, 0), spec.load()
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_bytes", lambda uri, data: (_ for _ in ()).throw(OSError("killed")))
        (photos / "p0003.jpg").rename(tmp_path / "away.jpg")
        with pytest.raises(OSError, match="killed"):
            embedding.embed_part(plan.out, objects, encoder, identity, plan.lineage)
    (tmp_path / "away.jpg").rename(photos / "p0003.jpg")
    assert embed.run(spec).embedded == 12


def test_what_would_drop_a_corpus_is_refused(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 2)
    spec = job(images, tmp_path / "out", tiny_vae)
    embed.run(spec)
    with pytest.raises(DatasetError, match="would drop those rows"):
        embed.run(job(draw_photos(tmp_path / "others", 2), tmp_path / "out", tiny_vae))
    for photo in images.iterdir():
        photo.unlink()
    with pytest.raises(StorageError, match="is it mounted"):
        embed.run(spec)
    assert rows(spec.out, "embeddings").num_rows == 2


def test_a_worker_with_another_model_than_planned_stops(tiny_vae: str, tmp_path: Path) -> None:
    spec = job(draw_photos(tmp_path / "images", 2), tmp_path / "out", tiny_vae)
    plan = embed.plan(spec)
    with pytest.raises(Exception, match="the run was planned with"), runners.pipeline() as pipeline:
        parts.build(pipeline, embed.planned(replace(spec, encoder="mini"), plan))


def test_a_commit_can_be_repeated(photos: Path, tiny_vae: str, tmp_path: Path) -> None:
    spec = job(photos, tmp_path / "out", tiny_vae)
    plan = embed.plan(spec)
    with runners.pipeline() as pipeline:
        parts.build(pipeline, embed.planned(spec, plan))
    planning.commit(plan)
    assert embed.run(spec).resumed


class _Bright(torch.nn.Module):
    """Overflows float16 where a picture is nearly white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(14 * x.mean(dim=(2, 3)))


def test_a_picture_whose_latent_overflows_is_a_reject_and_stops_nothing(tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 3)
    Image.new("RGB", (40, 40), "white").save(images / "white.png")
    torch.jit.script(_Bright()).save(str(tmp_path / "bright.pt"))
    summary = embed.run(job(images, tmp_path / "out", str(tmp_path / "bright.pt")))
    assert (summary.embedded, summary.rejected) == (3, 1)
    assert rows(str(tmp_path / "out"), "rejects")["reason"].to_pylist() == [Reason.NOT_ENCODABLE]
    for photo in images.glob("p*"):
        Image.new("RGB", (40, 40), "white").save(photo)
    with pytest.raises(Exception, match="float32"):
        embed.run(job(images, tmp_path / "none", str(tmp_path / "bright.pt")))
