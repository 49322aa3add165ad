"""`id2 doctor --out` finds what is wrong, says what to do, and builds a lost ledger again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

import id2
from id2core.errors import DatasetError
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, Segment
from tests.commands import call
from tests.drawing import draw_photos

GIVEN = {"encoder": "pdq", "transform": "none", "calibration": "none"}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights."""
    folder = tmp_path_factory.mktemp("doctor")
    photos = draw_photos(folder / "photos", 4)
    asked = {"reference": str(photos), "queries": str(photos), "out": str(folder / "out"), **GIVEN}
    late = (photos / "p0003.jpg").rename(folder / "late.jpg")
    id2.scan(**asked)
    late.rename(photos / "p0003.jpg")
    id2.scan(**asked)
    return folder / "out"


@pytest.fixture
def out(scanned: Path, tmp_path: Path) -> Path:
    """A copy without summary.json, which names the original."""
    shutil.copytree(scanned, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    return tmp_path / "out"


def faults(out: Path) -> list[tuple[str, str]]:
    return [(str(f.fault), f.place.split("/")[-1]) for f in id2.doctor(out=str(out)).findings]


def change(uri: Path, how: Callable[[Commit], Commit]) -> None:
    """Commit something wrong."""
    dataset = Dataset.open(str(uri))
    assert datasets.replace_commit(str(uri), how(dataset.commit), dataset)


def first_file(uri: Path) -> Path:
    return sorted(uri.rglob("*.parquet"))[0]


def test_a_sound_place_has_no_findings(out: Path) -> None:
    report = id2.doctor(out=str(out))
    assert report.findings == [] and report.datasets >= 6 and report.files > 6
    done = call("doctor", "--out", out)
    assert done.returncode == 0 and "no findings" in done.stderr


def test_a_place_without_data_sets_is_not_sound(tmp_path: Path) -> None:
    draw_photos(tmp_path / "photos", 1)
    with pytest.raises(DatasetError, match="has no data set"):
        id2.doctor(out=str(tmp_path / "photos"))


def test_each_fault_is_named(out: Path) -> None:
    embeddings = out / "reference" / "embeddings"
    stray = out / "matches" / "scan_date=2026-01-01" / "stray.parquet"
    stray.parent.mkdir()
    shutil.copy(first_file(embeddings), stray)
    assert faults(out) == [("unlisted", "stray.parquet")]
    stray.unlink()
    moved = first_file(embeddings)
    staged = out / "reference" / "_staging" / "files" / "embeddings" / moved.name
    staged.parent.mkdir(parents=True, exist_ok=True)
    moved.rename(staged)
    assert faults(out) == [("unmoved", moved.name)]
    staged.rename(moved)
    data = moved.read_bytes()
    moved.write_bytes(data[:50] + b"x" + data[51:])
    assert faults(out) == [("file", moved.name)]
    done = call("doctor", "--out", out)
    assert done.returncode == 1 and "What to do: restore it from a copy" in done.stderr
    moved.write_bytes(data)
    assert faults(out) == []


def test_segments_and_events_that_cannot_be_are_named(out: Path) -> None:
    later = Segment(9, "2026-01-01T00:00:00+00:00")
    change(out / "queries" / "embeddings", lambda c: replace(c, segments=c.segments | {"r": later}))
    assert faults(out) == [("segments", "embeddings")]

    def forget(commit: Commit) -> Commit:
        first = next(iter(commit.runs))
        return replace(commit, runs={r: c if r != first else {} for r, c in commit.runs.items()})

    change(out / "matches", forget)
    assert ("uncovered", "matches") in faults(out)


def test_doubled_rows_are_counted(out: Path) -> None:
    uri = out / "matches"
    table = next(Dataset.open(str(uri)).tables())
    copy = datasets.write_file(str(uri), "copy", [table], schemas.MATCHES)
    change(uri, lambda c: replace(c, files=(*c.files, copy)))
    [finding] = id2.doctor(out=str(out)).findings
    assert finding.fault == "doubled" and f"{table.num_rows} rows" in finding.detail


def test_a_lost_commit_is_built_again(out: Path) -> None:
    runs = Dataset.open(str(out / "matches")).runs
    (out / "matches" / "_SUCCESS").write_text("{}")
    assert faults(out) == [("commit", "matches")]
    (out / "ledger").rename(out / "aside")
    with pytest.raises(DatasetError, match="no table ledger/"):
        id2.doctor(out=str(out), rebuild=True)
    (out / "aside").rename(out / "ledger")
    report = id2.doctor(out=str(out), rebuild=True)
    assert report.findings == [] and report.rebuilt and report.rebuilt.searches == 2
    assert Dataset.open(str(out / "matches")).runs == runs
    assert (out / "matches" / "_SUCCESS.damaged").exists()


def test_pairs_of_a_search_that_the_table_lacks_are_set_aside(out: Path) -> None:
    last = list(Dataset.open(str(out / "matches")).runs)[-1]
    uri = out / "ledger"
    table = Dataset.open(str(uri)).read(schemas.LEDGER)
    kept = table.filter(pc.not_equal(table["run_id"], last))
    file = datasets.write_file(str(uri), "short", [kept], schemas.LEDGER)
    change(uri, lambda c: replace(c, files=(file,)))
    (out / "matches" / "_SUCCESS").unlink()
    report = id2.doctor(out=str(out), rebuild=True)
    assert report.rebuilt and report.rebuilt.set_aside and report.findings == []
