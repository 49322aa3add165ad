"""Rows have what uploads and references meet by under more views than the whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from beam_jobs import embed, parts, runners
from id2core.encoders import embedding, images, views
from id2core.encoders.base import Encoder
from id2core.encoders.embed_job import plan_embed
from id2core.encoders.images import Decoded
from id2core.encoders.preprocess import Preprocess
from id2core.runs.execution import Execution
from id2core.runs.parts import Lineage
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows
from tests import inset_columns
from tests.drawing import collage, draw_photos, framed, scene
from tests.embedding import embed_job

LINEAGE = Lineage(dict.fromkeys(schemas.ROW_IDS, "i"), "r", datetime(2026, 1, 1, tzinfo=UTC))


def rows(out: Path) -> pa.Table:
    return Dataset.open(str(out / "embeddings")).read(schemas.embeddings_schema(1, 1)).sort_by("uri")


def batches(
    folder: Path, network: Any, batch_size: int = 4, dtype: torch.dtype = torch.float32
) -> list[pa.RecordBatch]:
    """Row groups of the pictures in a folder, by an encoder of mean colors that calls a network."""
    encoder = Encoder("toy", "0" * 64, network, torch.device("cpu"), dtype, Preprocess(256), batch_size)
    assert encoder.latent_size == 3  # as every job asks first
    stream = embedding.embed_objects(storage.list_objects(str(folder)), encoder, Transform(), LINEAGE)
    made = list(stream)
    assert not any(rejected for _, rejected in made)
    return [group for group, _ in made if group is not None]


def save_all(folder: Path, pictures: list[Image.Image]) -> Path:
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:02d}.jpg", quality=90)
    return folder


def test_rows_have_crops_detail_and_the_pictures_that_are_seen_inside(tmp_path: Path) -> None:
    folder = save_all(tmp_path / "in", [collage(1, 2), framed(scene(3, (400, 300))), scene(4, (400, 300))])
    job = embed_job(folder, tmp_path / "auto")
    embed.run(job, Execution.begin())
    table, (encoder, w) = rows(tmp_path / "auto"), job.load()

    latents = schemas.column_to_vectors(table["latent"])
    expected = ReferenceRows.of(w, latents.shape[1])
    assert expected
    crops, detail = expected(latents)
    assert table["crops"].to_pylist() == [row.tobytes() for row in crops]
    assert table["detail"].to_pylist() == [row.tobytes() for row in detail]
    seen = table["insets"].to_pylist()
    assert [[one["view"] for one in own] for own in seen] == [["half-1", "half-2"], ["inset"], []]
    for path, own in zip(sorted(folder.iterdir()), seen, strict=True):
        decoded = images.decode(path.read_bytes(), look=views.insets)
        assert isinstance(decoded, Decoded)
        for one, inset in zip(own, decoded.insets, strict=True):
            box = inset.box
            assert [one[s] for s in ("left", "top", "right", "bottom")] == pytest.approx(
                [box.left, box.top, box.right, box.bottom]
            )
            assert np.array_equal(np.array(one["latent"]), encoder.encode(inset.pixels[None])[0])

    (folder / "02.jpg").unlink()
    embed.run(job, Execution.begin())  # the file is written anew, without one row
    assert rows(tmp_path / "auto") == table.slice(0, 2)

    scene(4, (400, 300)).save(folder / "02.jpg", quality=90)
    embed.run(embed_job(folder, tmp_path / "none", views="none"), Execution.begin())
    plain = rows(tmp_path / "none")
    assert all(plain[name].null_count == 3 for name in inset_columns.NAMES)
    for name in ("latent", "descriptor", "information", "image_id"):
        assert plain[name] == table[name]


def test_raw_latents_have_insets_and_nothing_that_needs_a_w(tmp_path: Path) -> None:
    folder = save_all(tmp_path / "in", [framed(scene(3, (400, 300)))])
    embed.run(embed_job(folder, tmp_path / "out", transform="none"), Execution.begin())
    table = rows(tmp_path / "out")
    assert table["crops"].null_count == table["detail"].null_count == 1
    assert [one["view"] for one in table["insets"][0].as_py()] == ["inset"]


def test_a_picture_and_its_insets_share_a_batch_with_others(tmp_path: Path) -> None:
    calls: list[int] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x.mean(dim=(2, 3))

    two, one = collage(1, 2), scene(3, (240, 160))
    folder = save_all(tmp_path / "in", [two, one, one, one, one, one, two])
    [group] = batches(folder, network)
    assert calls == [4] + 3 * [4]
    assert [len(own) for own in group["insets"].to_pylist()] == [2, 0, 0, 0, 0, 0, 2]
    calls.clear()
    [alone] = batches(folder, network, batch_size=1)  # a picture and its insets are more than a batch
    assert calls == [1] * 13 and alone["insets"] == group["insets"] and alone["latent"] == group["latent"]


def test_a_row_group_with_many_insets_has_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "ROW_GROUP", 8)
    folder = save_all(tmp_path / "in", [collage(i, i + 1) for i in range(7)])
    groups = batches(folder, lambda x: x.mean(dim=(2, 3)))
    assert [len(group) for group in groups] == [3, 3, 1]
    assert all(len(own) == 2 for group in groups for own in group["insets"].to_pylist())
    whole = [latent for group in groups for latent in group["latent"].to_pylist()]
    halves = [one["latent"] for group in groups for own in group["insets"].to_pylist() for one in own]
    assert len({*map(tuple, whole), *map(tuple, halves)}) >= 7 + 8  # neighbors share a scene


def test_a_blank_picture_inside_a_frame_is_no_inset(tmp_path: Path) -> None:
    blank = framed(Image.new("RGB", (400, 300), "cyan"))
    folder = save_all(tmp_path / "in", [blank, framed(scene(3, (400, 300)))])
    decoded = images.decode((folder / "00.jpg").read_bytes(), look=views.insets)
    assert isinstance(decoded, Decoded) and len(decoded.insets) == 1
    [group] = batches(folder, lambda x: x.mean(dim=(2, 3)))
    assert [[one["view"] for one in own] for own in group["insets"].to_pylist()] == [[], ["inset"]]


def test_an_inset_whose_latent_overflows_is_left_out(tmp_path: Path) -> None:
    bright = Image.fromarray((190 + np.asarray(scene(3, (400, 300)), np.uint16) // 4).astype(np.uint8))
    folder = save_all(tmp_path / "in", [framed(bright, "black"), framed(scene(3, (400, 300)), "black")])
    [group] = batches(folder, lambda x: torch.exp(18 * x.mean(dim=(2, 3))), dtype=torch.float32)
    assert [[one["view"] for one in own] for own in group["insets"].to_pylist()] == [[], ["inset"]]


def test_what_a_killed_run_made_under_other_views_is_made_again(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "in", 4)
    plain, looking = (
        embed_job(folder, tmp_path / "out", views=name, part_size=2) for name in ("none", "auto")
    )

    def kill_after_a_part() -> None:
        planned = embed.planned(plain, plan_embed(plain, Execution.begin()))
        with runners.pipeline() as pipeline:
            _ = pipeline | beam.Create([0]) | parts.MakeParts(planned)

    kill_after_a_part()
    assert embed.run(looking, Execution.begin()).embedded == 4
    assert rows(tmp_path / "out")["insets"].null_count == 0
    assert embed.run(plain, Execution.begin()).embedded == 4  # rows stay as they are
    assert rows(tmp_path / "out")["insets"].null_count == 0

    draw_photos(folder, 4, first_seed=4)
    kill_after_a_part()
    assert embed.run(plain, Execution.begin()).embedded == 8
    assert rows(tmp_path / "out")["insets"].null_count == 4
    assert embed.run(looking, Execution.begin()).embedded == 8
    assert rows(tmp_path / "out")["insets"].null_count == 4
