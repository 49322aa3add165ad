"""Nights in a row: what each adds, what it searches, and what dashboards then see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

import id2
from id2.results import NightlySummary
from id2core.errors import DatasetError
from id2core.store import schemas
from id2core.store.datasets import Dataset
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
