"""A picture is taken down: nothing of it stays, and it is refused until it is reinstated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import id2
from beam_jobs import embed
from id2core.errors import DatasetError, OptionError
from id2core.runs import takedowns
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests.drawing import draw_photos
from tests.id2core.sources.test_tars import tar

# Tables that say of a picture that it is gone.
AUDIT = ("takedowns/", "removals/", "runs/")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four uploads, each of which is one of six references; `out` has superseded files of each."""
    folder = tmp_path_factory.mktemp("takedown")
    draw_photos(folder / "references", 6)
    draw_photos(folder / "uploads", 4)
    (folder / "references" / "p0005.jpg").rename(folder / "late.jpg")
    scan(folder)
    (folder / "late.jpg").rename(folder / "references" / "p0005.jpg")
    (folder / "references" / "p0004.jpg").unlink()
    scan(folder)
    return folder


def scan(folder: Path) -> id2.ScanSummary:
    return id2.scan(
        reference=str(folder / "references"),
        queries=str(folder / "uploads"),
        encoder="pdq",
        transform="none",
        calibration="none",
        top_k=3,
        out=str(folder / "out"),
        allow_shrink=True,
    )


def holding(out: Path, text: str) -> set[str]:
    """Parquet files that have a text in a column."""
    found = set()
    for path in out.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        names = [f.name for f in table.schema if str(f.type) == "string"]
        if any(text in str(table[name].to_pylist()) for name in names):
            found.add(str(path.relative_to(out)))
    return {name for name in found if not any(audit in name for audit in AUDIT)}


def pairs(out: Path) -> set[tuple[str, str, float]]:
    rows = id2.matches(str(out)).to_pylist()
    return {(row["query_uri"], row["reference_uri"], row["score"]) for row in rows}


def reasons(out: Path, corpus: str) -> list[str]:
    rejects = Dataset.open(str(out / corpus / "rejects")).read(schemas.REJECTS)
    return list(rejects["reason"].to_pylist())


def test_a_picture_goes_is_refused_and_comes_back(scanned: Path) -> None:
    out, reference = scanned / "out", scanned / "references" / "p0001.jpg"
    image_id = hashlib.sha256(reference.read_bytes()).hexdigest()
    foreign = out / "notes" / "report.html"
    foreign.parent.mkdir()
    foreign.write_text("of another program")
    before = pairs(out)
    assert len(holding(out, image_id)) >= 3
    report = id2.takedown(out=str(out), uri=[str(reference)], reason="request 1")
    assert list(report.pictures) == [image_id]
    assert str(scanned / "uploads" / "p0001.jpg") in report.pictures[image_id]
    assert report.rows["reference/embeddings"] == report.rows["queries/embeddings"] == 1
    assert report.reports == {str(out): "written again"} and not report.elsewhere
    assert holding(out, image_id) == set() and foreign.read_text() == "of another program"
    rest = {pair for pair in before if not any("p0001" in str(value) for value in pair)}
    assert rest <= pairs(out) and not any("p0001" in str(pair) for pair in pairs(out))
    assert "p0001" not in (out / "report.html").read_text()
    again = id2.takedown(out=str(out), uri=[str(reference)])
    assert not again.rows and not again.files
    [row] = takedowns.read(str(out))
    assert (row.image_id, row.reason, row.reinstated_at) == (image_id, "request 1", None)

    summary = scan(scanned)
    assert summary.rejects == {"reference": {"taken_down": 1}, "queries": {"taken_down": 1}}
    assert holding(out, image_id) == set() and "p0001" not in {Path(q).stem for q, _, _ in pairs(out)}
    scan(scanned)

    assert id2.takedown(out=str(out), image_id=[image_id], reinstate=True).reinstated
    scan(scanned)
    assert reasons(out, "queries") == reasons(out, "reference") == []
    found = id2.matches(str(out)).to_pylist()
    keys = [(row["query_uri"], row["reference_id"]) for row in found]
    assert len(set(keys)) == len(keys) == 4 * 3
    upload = str(scanned / "uploads" / "p0001.jpg")
    assert (upload, str(reference), 1.0) in pairs(out)
    [row] = takedowns.read(str(out))
    assert row.reinstated_at is not None and row.reason == "request 1"


def test_what_cannot_be_meant_is_refused(scanned: Path, tmp_path: Path) -> None:
    out = str(scanned / "out")
    with pytest.raises(DatasetError, match="knows no picture at /nowhere"):
        id2.takedown(out=out, uri=["/nowhere.jpg"])
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        id2.takedown(out=out, image_id=["abc"])
    with pytest.raises(OptionError, match="give --image-id or --uri"):
        id2.takedown(out=out)
    with pytest.raises(DatasetError, match="nothing to undo"):
        id2.takedown(out=out, image_id=["0" * 64], reinstate=True)
    with pytest.raises(DatasetError, match="no command of id2 has run there"):
        id2.takedown(out=str(tmp_path), image_id=["0" * 64])


def test_a_picture_that_was_never_seen_is_refused_when_it_comes(tmp_path: Path) -> None:
    photos, out = draw_photos(tmp_path / "photos", 3), tmp_path / "out"
    given: dict[str, Any] = {"images": str(photos), "out": str(out), "encoder": "pdq", "transform": "none"}
    id2.embed(**given)
    data = (photos / "p0000.jpg").read_bytes() + b"another file"
    image_id = hashlib.sha256(data).hexdigest()
    assert id2.takedown(out=str(out), image_id=[image_id.upper()]).pictures == {image_id: []}
    (photos / "new.jpg").write_bytes(data)
    summary = id2.embed(**given)
    assert (summary.embedded, summary.rejected) == (3, 1)
    assert Dataset.open(str(out / "rejects")).read(schemas.REJECTS)["reason"].to_pylist() == ["taken_down"]


def test_a_corpus_in_another_place_is_named(tmp_path: Path) -> None:
    photos, out = draw_photos(tmp_path / "photos", 3), tmp_path / "out"
    given: dict[str, Any] = {"encoder": "pdq", "transform": "none"}
    id2.embed(images=str(photos), out=str(tmp_path / "embedded"), **given)
    asked = {"reference": f"dataset:{tmp_path}/embedded", "queries": str(photos), "calibration": "none"}
    id2.scan(**asked, out=str(out), **given)
    uri = str(photos / "p0000.jpg")
    report = id2.takedown(out=str(out), uri=[uri])
    assert report.elsewhere == [f"{tmp_path}/embedded/embeddings"] and report.rows["matches"] == 5
    assert not id2.takedown(out=str(tmp_path / "embedded"), uri=[uri]).elsewhere
    assert not id2.takedown(out=str(out), uri=[uri]).elsewhere


def _interrupt_after(work: Callable[..., Any], *given: Any) -> None:
    work(*given)
    raise KeyboardInterrupt


def test_posts_of_a_refused_picture_do_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_photos(tmp_path / "photos", 2)
    picture = (data / "p0000.jpg").read_bytes()
    shards, out = tmp_path / "in", tmp_path / "out"
    shards.mkdir()

    def night(name: str) -> list[str]:
        members = [(f"{name}.jpg", picture), (f"{name}.json", b'{"caption": "a secret"}')]
        (shards / f"{name}.tar").write_bytes(tar(members))
        id2.embed(images=f"tar:{shards}", out=str(out), encoder="pdq", transform="none")
        posts = Dataset.open(str(out / "posts")).read(schemas.POSTS)["uri"].to_pylist()
        return sorted(uri.rpartition("#")[2] for uri in posts)

    assert night("1") == ["1.jpg"]
    image_id = hashlib.sha256(picture).hexdigest()
    assert id2.takedown(out=str(out), image_id=[image_id]).rows["posts"] == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        run_planned = embed.run_planned
        patch.setattr(embed, "run_planned", lambda *given: _interrupt_after(run_planned, *given))
        night("2")
    assert holding(out, "a secret")
    assert night("2") == night("2") == []
    assert holding(out, "a secret") == set()
    id2.takedown(out=str(out), image_id=[image_id], reinstate=True)
    assert night("2") == ["1.jpg", "2.jpg"]


def test_posts_of_a_refused_picture_that_goes_and_comes_back_stay_away(tmp_path: Path) -> None:
    picture = (draw_photos(tmp_path / "photos", 1) / "p0000.jpg").read_bytes()
    shards, away, out = tmp_path / "in", tmp_path / "away", tmp_path / "out"
    shards.mkdir()
    for file, text in ((shards / "1.tar", b"honest"), (away, b"a secret")):
        members = [("a.jpg", picture + text), ("a.json", b'{"caption": "%s"}' % text)]
        file.write_bytes(tar(members))

    def night() -> None:
        id2.embed(images=f"tar:{shards}", out=str(out), encoder="pdq", transform="none")

    night()
    id2.takedown(out=str(out), image_id=[hashlib.sha256(picture + b"a secret").hexdigest()])
    for _ in range(2):  # the same object, refused, gone, and back
        away.rename(shards / "2.tar")
        night()
        assert holding(out, "a secret") == set() and holding(out, "honest")
        (shards / "2.tar").rename(away)
        night()
