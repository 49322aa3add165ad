"""Nights in a row: what each adds, what it searches, and what dashboards then see."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

import id2
from id2.results import NightlySummary
from id2core.errors import DatasetError, StorageError
from id2core.runs import health, records
from id2core.runs.health import Measure
from id2core.runs.records import COUNTS
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests.calibrations import calibrated
from tests.drawing import draw_photos


def night(out: Path, **given: Any) -> NightlySummary:
    return id2.nightly(out=str(out), encoder="pdq", transform="none", **{"canary": False} | given)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Six photos of which references and uploads are made: drawn, with names of their own."""
    return draw_photos(tmp_path / "photos", 6)


def put(photos: Path, folder: Path, *numbers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.jpg").write_bytes(sorted(photos.iterdir())[number].read_bytes())


def test_each_night_searches_what_is_new_on_either_side(inbox: Path, tmp_path: Path) -> None:
    originals, out = tmp_path / "originals", tmp_path / "out"
    put(inbox, originals, 0, 1)
    put(inbox, tmp_path / "up/1", 0, 2, 3)
    given = {"reference": [str(originals)], "queries": [str(tmp_path / "up/1")]}
    first = night(out, **given)
    assert (first.new_uploads, first.new_references, first.pairs, first.back_scan_open) == (3, 2, 6, 0)
    again = night(out, **given)
    assert (again.new_uploads, again.new_references, again.pairs, again.pairs_stored) == (0, 0, 0, 0)
    put(inbox, originals, 2)
    put(inbox, tmp_path / "up/2", 1, 4)
    both = [str(tmp_path / "up/1"), str(tmp_path / "up/2")]
    second = night(out, **given | {"queries": both})
    assert (second.new_uploads, second.new_references) == (2, 1)
    assert second.pairs == 2 * 3 + 3 * 1
    rows = Dataset.open(str(out / "matches")).read(schemas.MATCHES)
    assert rows.num_rows == 15
    counted = duckdb.sql(f"select count(*) from '{out}/matches/**/*.parquet'").fetchall()
    assert counted == [(15,)]
    searched = duckdb.sql(f"select sum(pairs) from '{out}/ledger/*.parquet'").fetchall()
    assert searched == [(15,)]
    segments = duckdb.sql(f"select corpus, sum(rows) from '{out}/segments/*.parquet' group by 1 order by 1")
    assert segments.fetchall() == [("queries", 5), ("reference", 3)]


def test_a_night_reads_its_dated_uploads_and_late_ones(inbox: Path, tmp_path: Path) -> None:
    put(inbox, tmp_path / "originals", 0, 1)
    put(inbox, tmp_path / "in/2026-11-24", 0, 2)
    out = tmp_path / "out"
    given = {"reference": [str(tmp_path / "originals")], "queries": [f"{tmp_path}/in/{{date}}"]}
    assert night(out, **given, date="2026-11-24").new_uploads == 2
    put(inbox, tmp_path / "in/2026-11-24", 3)
    put(inbox, tmp_path / "in/2026-11-25", 4)
    (tmp_path / "in/2026-11-24/0.jpg").unlink()
    second = night(out, **given, date="2026-11-25")
    assert (second.new_uploads, second.uploads, second.pairs) == (2, 4, 4)
    with pytest.raises(DatasetError, match="--add-source"):
        night(out, **given | {"queries": [str(tmp_path / "in/2026-11-24")]})


def test_uploads_that_are_still_to_come_make_a_night_without_uploads(
    inbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(inbox, tmp_path / "originals", 0, 1)
    out, uploads = tmp_path / "out", tmp_path / "up"
    given = {"reference": [str(tmp_path / "originals")], "queries": [str(uploads)]}
    with pytest.raises(StorageError, match="no such folder"):
        night(out, **given, mode="append")
    uploads.mkdir()
    with pytest.raises(StorageError, match="or --mode append"):
        night(out, **given)
    first = night(out, **given, mode="append")
    assert (first.new_references, first.uploads, first.pairs) == (2, 0, 0)
    assert f"{uploads} is empty: this run adds nothing of it" in caplog.text
    put(inbox, uploads, 0, 2)
    assert night(out, **given, mode="append").pairs == 4
    for path in uploads.iterdir():
        path.unlink()
    assert night(out, **given, mode="append").uploads == 2
    with pytest.raises(StorageError, match="is empty"):  # a mirror of what may not be mounted
        night(out, **given)


def counts(out: Path, run_id: str) -> dict[str, int]:
    """What a night counted in `runs/`, without what is 0."""
    [run] = [run for run in records.read(str(out)) if run.run_id == run_id]
    return {name: value for name in COUNTS if (value := getattr(run, name))}


def test_the_row_of_a_night_says_what_that_night_did(inbox: Path, tmp_path: Path) -> None:
    originals, uploads, out = tmp_path / "originals", tmp_path / "up", tmp_path / "out"
    calibrated(0.99).save(str(tmp_path / "calibration.json"))
    given = {"calibration": str(tmp_path / "calibration.json"), "reference": [str(originals)]}
    put(inbox, originals, 0, 1)
    put(inbox, uploads / "1", 0, 2)
    (uploads / "1/broken.jpg").write_bytes(b"no picture")
    made = night(out, **given, queries=[str(uploads / "1")])
    standing = {"references": 2, "queries": 2, "listed": 5}
    new = {"new_references": 2, "new_queries": 2, "embedded": 4, "rejected": 1}
    found = {"first_searched": 2, "first_matched": 1, "match_pairs": 1, "matches": 1}
    assert counts(out, made.run_id) == standing | new | found
    made = night(out, **given, queries=[str(uploads / "1")])
    assert counts(out, made.run_id) == standing
    assert made.rejected == 0
    put(inbox, originals, 2)
    made = night(out, **given, queries=[str(uploads / "1")])  # a back-scan, and no upload
    back_scan = {"new_references": 1, "embedded": 1, "match_pairs": 1, "matches": 1}
    assert counts(out, made.run_id) == {"references": 3, "queries": 2, "listed": 6} | back_scan
    put(inbox, uploads / "2", 1, 3)
    put(inbox, uploads / "3", 4)
    for number in (2, 3):
        (uploads / f"{number}/broken.jpg").write_bytes(b"nothing")
    made = night(out, **given, queries=[str(uploads / str(number)) for number in (1, 2, 3)])
    three_sources = {"new_queries": 3, "embedded": 3, "rejected": 2} | found | {"first_searched": 3}
    assert counts(out, made.run_id) == {"references": 3, "queries": 5, "listed": 11} | three_sources


@pytest.mark.slow
def test_only_the_night_with_many_rejects_is_off(tmp_path: Path) -> None:
    photos = sorted(draw_photos(tmp_path / "photos", 4).iterdir())
    (tmp_path / "in").mkdir()
    out, off = tmp_path / "out", {}
    for number in range(1, 17):  # the corpus grows, and no night re-counts what stands
        folder = tmp_path / f"in/2026-11-{number:02d}"
        folder.mkdir()
        for photo in () if number == 4 else photos:  # one night has no upload
            (folder / photo.name).write_bytes(photo.read_bytes() + bytes([number]))
        for broken in range(8 if number == 15 else 1):
            (folder / f"{broken}.gif").write_bytes(b"no picture")
        given = {"images": f"{tmp_path}/in/{{date}}", "date": f"2026-11-{number:02d}"}
        made = id2.embed(**given, out=str(out), encoder="pdq", transform="none")
        off[number] = [finding.measure for finding in health.check(records.read(str(out)), made.run_id)]
    assert {number: measures for number, measures in off.items() if measures} == {15: [Measure.REJECT_RATE]}


def test_another_corpus_in_place_of_one_that_was_searched_is_refused(inbox: Path, tmp_path: Path) -> None:
    """The ledger counts segments by number: what was never searched must not pass for searched."""
    given: dict[str, Any] = {"encoder": "pdq", "transform": "none"}
    for name, numbers in (("a", (0, 1)), ("b", (2, 3)), ("up", (2, 4))):
        put(inbox, tmp_path / name, *numbers)
    for name in ("a", "b"):
        id2.embed(images=str(tmp_path / name), out=str(tmp_path / f"id2-{name}"), **given)
    asked = {"queries": str(tmp_path / "up"), "out": str(tmp_path / "out"), "calibration": "none", **given}
    id2.scan(reference=f"dataset:{tmp_path}/id2-a", **asked)
    with pytest.raises(DatasetError, match=r"matches of other references than those in .*id2-b"):
        id2.scan(reference=f"dataset:{tmp_path}/id2-b", **asked)
    shutil.rmtree(tmp_path / "out/queries")
    with pytest.raises(DatasetError, match="matches of other uploads"):
        id2.scan(reference=f"dataset:{tmp_path}/id2-a", **asked)
