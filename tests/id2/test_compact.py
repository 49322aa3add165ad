"""`id2 compact`: fewer files, the same rows, and nothing superseded left without a grace period."""

from __future__ import annotations

from pathlib import Path

import pytest

import id2
from id2.jobs import compact as compact_job
from id2core.errors import DatasetError
from tests.drawing import draw_photos

GIVEN = {"encoder": "pdq", "transform": "none", "calibration": "none"}


def test_small_files_are_merged_and_superseded_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ID2_LEFTOVER_HOURS", "0")
    photos, out = draw_photos(tmp_path / "photos", 9), tmp_path / "out"
    asked = {"reference": str(photos), "queries": str(photos), "out": str(out), **GIVEN}
    monkeypatch.setenv("ID2_PART_SIZE", "1")
    id2.scan(**asked)
    before = id2.matches(str(out))
    assert set(compact_job.compact_if_needed(str(out))) == {
        f"{out}/reference/embeddings",
        f"{out}/queries/embeddings",
    }
    report = id2.compact(out=str(out), everything=True)
    files = {d.dataset: (d.files_before, d.files_after) for d in report.datasets}
    assert files["reference/embeddings"] == (1, 1) and files["runs"][1] <= 2
    assert report.kept_files == 0 and not list(out.rglob("_superseded/*/*"))
    assert id2.matches(str(out)).equals(before)
    assert sum(1 for _ in (out / "queries" / "embeddings").glob("*.parquet")) == 1
    again = id2.compact(out=str(out), everything=True)
    assert again.files_after <= report.files_after + 1 and not id2.doctor(out=str(out)).findings
    assert id2.scan(**asked).counts.matches == before.num_rows


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no command of id2 has run there"):
        id2.compact(out=str(tmp_path))
