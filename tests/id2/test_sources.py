"""Corpora from tar, Parquet, lists and dated places, by `id2.embed` and `id2.scan`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import id2
from id2core.errors import DatasetError, OptionError, StorageError
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from tests.drawing import scene


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    scene(seed, (60, 45)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(place: Path | str, data: bytes) -> str:
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(str(place), data)
    return str(place)


def names(out: Path | str, dataset: str = "embeddings") -> list[str]:
    """What is below the last `/` of the URIs of rows, sorted."""
    schema = schemas.REJECTS if dataset == "rejects" else schemas.embeddings_schema(1, 1)
    uris = Dataset.open(f"{out}/{dataset}").read(schema, ["uri"])["uri"].to_pylist()
    return sorted(uri.rsplit("/", 1)[-1] for uri in uris)


@pytest.fixture
def embed(tiny_vae: str, tmp_path: Path) -> Any:
    """`id2.embed` into `out` below the folder of the test."""

    def run(images: str, **more: Any) -> Any:
        return id2.embed(**{"images": images, "out": str(tmp_path / "out"), "encoder": tiny_vae} | more)

    return run


def test_members_of_shards_are_rows_what_is_refused_is_rejects_and_fields_are_posts(
    embed: Any, tmp_path: Path
) -> None:
    post = json.dumps({"post_id": 7, "user": "ann", "likes": 3}).encode()
    put(tmp_path / "in/1.tar", tar_of({"a.jpg": jpeg(1), "a.json": post, "../b.jpg": jpeg(2)}))
    whole = -(-len(jpeg(3)) // 512) * 512 + 512
    put(tmp_path / "in/2.tar", tar_of({"c.jpg": jpeg(3), "d.jpg": jpeg(4)})[: whole + 600])
    made = embed(f"tar:{tmp_path}/in")
    assert names(tmp_path / "out") == ["1.tar#a.jpg", "2.tar#c.jpg"]
    assert (made.listed, made.embedded, made.rejected) == (4, 2, 2)
    rejects = Dataset.open(f"{tmp_path}/out/rejects").read(schemas.REJECTS).sort_by("uri")
    assert rejects["reason"].to_pylist() == ["unsafe_member", "truncated"]
    rows = Dataset.open(f"{tmp_path}/out/embeddings").read(schemas.embeddings_schema(1, 1)).sort_by("uri")
    posts = Dataset.open(f"{tmp_path}/out/posts").read(schemas.POSTS).to_pylist()
    assert [(p["uri"], p["generation"]) for p in posts] == [
        (rows["uri"][0].as_py(), rows["generation"][0].as_py())
    ]
    assert [(p["post_id"], p["uploader"], json.loads(p["extra"])) for p in posts] == [
        ("7", "ann", {"likes": 3})
    ]
    assert embed(f"tar:{tmp_path}/in").resumed
    assert Dataset.open(f"{tmp_path}/out/posts").rows == 1
    put(tmp_path / "in/2.tar", tar_of({"d.jpg": jpeg(4)}))
    embed(f"tar:{tmp_path}/in")
    assert names(tmp_path / "out") == ["1.tar#a.jpg", "2.tar#d.jpg"]


def test_rows_of_a_parquet_file_and_of_a_list_are_embedded(embed: Any, tmp_path: Path) -> None:
    table = pa.table({"uri": ["a", "b"], "image": [jpeg(1), b"none"], "user": ["ann", "bob"]})
    pq.write_table(table, tmp_path / "up.parquet")
    assert embed(f"parquet:{tmp_path}/up.parquet").rejected == 1
    assert names(tmp_path / "out") == ["up.parquet#a"] and names(tmp_path / "out", "rejects") == [
        "up.parquet#b"
    ]
    assert Dataset.open(f"{tmp_path}/out/posts").rows == 2
    for i in (1, 2):
        put(tmp_path / f"pictures/{i}.jpg", jpeg(i))
    put(tmp_path / "elsewhere.jpg", jpeg(3))
    put(tmp_path / "pictures/all.csv", b"uri,user\n1.jpg,ann\n2.jpg,bob\n../elsewhere.jpg,eve\n3.jpg,late\n")
    out = tmp_path / "listed"
    made = embed(f"list:{tmp_path}/pictures/all.csv", out=str(out))
    assert (made.embedded, names(out), names(out, "rejects")) == (
        2,
        ["1.jpg", "2.jpg"],
        ["3.jpg", "elsewhere.jpg"],
    )
    put(tmp_path / "pictures/3.jpg", jpeg(3))
    assert embed(f"list:{tmp_path}/pictures/all.csv", out=str(out)).embedded == 3


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_dated_source_takes_late_objects_and_keeps_what_the_place_forgets(
    embed: Any, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path / "in")
    if where == "bucket":
        place = f"gs://{request.getfixturevalue('gcs')}/dated"
    out = f"{place}-out"

    def shard(night: str, name: str, seed: int) -> str:
        uri = f"{place}/{night}/{name}.tar"
        if where == "disk":
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        return put(uri, tar_of({"p.jpg": jpeg(seed), "p.json": b'{"user": "ann"}'}))

    dated = {"images": f"tar:{place}/{{date}}", "out": out}
    old, first = shard("2026-11-20", "old", 0), shard("2026-11-24", "a", 1)
    assert embed(**dated, date="2026-11-24").embedded == 1
    storage.delete(first)
    shard("2026-11-24", "late", 2), shard("2026-11-25", "b", 3)
    assert embed(**dated, date="2026-11-25", late_days=1).embedded == 3
    assert names(out) == ["a.tar#p.jpg", "b.tar#p.jpg", "late.tar#p.jpg"]
    assert embed(**dated, date="2026-12-24").embedded == 3  # nothing has come
    commit = Dataset.open(f"{out}/embeddings").commit
    assert list(commit.sources) == [f"tar:{place}/{{date}}"] and storage.exists(old)
    posts = Dataset.open(f"{out}/posts").read(schemas.POSTS)
    assert sorted(posts["source"].to_pylist()) == [f"tar:{place}/2026-11-{d}" for d in (24, 24, 25)]
    mirrored = embed(**dated, date="2026-11-25", late_days=1, mode="mirror")
    assert mirrored.embedded == 2 and names(out) == ["b.tar#p.jpg", "late.tar#p.jpg"]


def test_rows_of_an_appended_folder_stay_until_they_expire(embed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i in range(3):
        put(folder / f"{i}.jpg", jpeg(i))
    embed(str(folder), mode="append")
    (folder / "0.jpg").unlink()
    assert embed(str(folder), mode="append").embedded == 3
    for path in folder.iterdir():
        path.unlink()
    assert embed(str(folder), mode="append").embedded == 3  # a place that is emptied every night
    put(folder / "4.jpg", jpeg(4))
    embed(str(folder), mode="append", retention_days=30)
    assert names(tmp_path / "out") == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert embed(str(folder), mode="append", retention_days=1e-9).embedded == 0
    assert embed(str(folder), mode="mirror", allow_shrink=True).embedded == 0  # what has expired stays away


def test_a_second_source_must_be_asked_for(embed: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / name / f"{name}.jpg", jpeg(len(name)))
    embed(f"{tmp_path}/one")
    with pytest.raises(DatasetError, match=r"holds rows of .*/one, and none of .*/two: give --add-source"):
        embed(f"{tmp_path}/two")
    assert names(tmp_path / "out") == ["one.jpg"]
    embed(f"{tmp_path}/two", add_source=True)
    assert embed(f"{tmp_path}/one/").resumed and embed(f"{tmp_path}/two", mode="append").resumed
    assert names(tmp_path / "out") == ["one.jpg", "two.jpg"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": "list:none.txt"}, StorageError, "none.txt"),
        ({"images": "tar:none"}, StorageError, "none"),
        ({"images": "tar:empty"}, StorageError, "--images tar:empty is empty"),
        ({"images": "missing/{date}"}, StorageError, "missing"),
        ({"images": "parquet:in", "out": "in/out"}, OptionError, "inside --images parquet:in"),
        ({"images": "in/{date}", "date": "yesterday"}, OptionError, "2026-11-25"),
        ({"images": "list:{date}.txt", "mode": "mirror"}, OptionError, "append"),
    ],
)
def test_what_cannot_be_a_source_is_refused(
    embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, error: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty/readme.txt", b"no shard")
    pq.write_table(pa.table({"image": [jpeg(1)]}), Path(put(tmp_path / "in/x.parquet", b"")))
    with pytest.raises(error, match=message):
        embed(**given)
    assert not (tmp_path / "out").exists()


def test_rows_of_a_shard_stay_while_it_cannot_be_seen(embed: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    put(disk / "1.tar", tar_of({"x/a.jpg": jpeg(1), "b.jpg": jpeg(2)}))
    put(tmp_path / "in/2.tar", tar_of({"c.jpg": jpeg(3)}))
    (tmp_path / "in/1.tar").symlink_to(disk / "1.tar")
    source = f"tar:{tmp_path}/in"
    assert embed(source).embedded == 3
    disk.rename(tmp_path / "unmounted")
    assert (embed(source).embedded, names(tmp_path / "out", "rejects")) == (3, ["1.tar"])
    (tmp_path / "unmounted").rename(disk)
    assert (embed(source).embedded, names(tmp_path / "out", "rejects")) == (3, [])
    (tmp_path / "in/1.tar").unlink()
    assert embed(source).embedded == 1


def test_a_scan_of_shards_and_of_dated_uploads(tiny_vae: str, tmp_path: Path) -> None:
    put(tmp_path / "references/1.tar", tar_of({f"{i}.jpg": jpeg(i) for i in range(6)}))
    given = {
        "reference": f"tar:{tmp_path}/references",
        "queries": f"{tmp_path}/inbox/{{date}}",
        "out": str(tmp_path / "out"),
        "encoder": tiny_vae,
        "truth": str(tmp_path / "truth.csv"),
    }
    put(tmp_path / "truth.csv", b"query_uri,reference_uri\n2026-11-24/x.jpg,1.tar#2.jpg\n")
    for night, seed in (("2026-11-24", 2), ("2026-11-25", 4)):
        small = scene(seed, (60, 45)).resize((40, 30), Image.Resampling.BILINEAR)
        (tmp_path / "inbox" / night).mkdir(parents=True)
        small.save(tmp_path / "inbox" / night / "x.jpg")
    first = id2.scan(**given, date="2026-11-24")
    assert (first.counts.references, first.counts.queries, first.accuracy) == (6, 1, 1.0)
    (tmp_path / "inbox/2026-11-24/x.jpg").unlink()
    second = id2.scan(**given, date="2026-11-26")
    assert second.counts.queries == 2
    best = {
        m["query_uri"]: m["reference_uri"]
        for m in id2.matches(str(tmp_path / "out")).to_pylist()
        if m["rank"] == 1
    }
    assert best == {
        f"{tmp_path}/inbox/2026-11-{24 + i}/x.jpg": f"{tmp_path}/references/1.tar#{2 + 2 * i}.jpg"
        for i in (0, 1)
    }
    with pytest.raises(DatasetError, match="--add-source"):
        id2.scan(**given | {"reference": str(tmp_path / "inbox/2026-11-25")})
