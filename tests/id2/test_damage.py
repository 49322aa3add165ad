"""Damage to what earlier runs left: an error that names the file, or made again; never other rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from tests.commands import call
from tests.drawing import draw_photos

SETTINGS = {"ID2_PART_SIZE": "8", "ID2_ENCODER": "pdq", "ID2_CALIBRATION": "none"}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scan of 24 references in three parts, and a copy of its output."""
    folder = tmp_path_factory.mktemp("scanned")
    draw_photos(folder / "references", 24)
    draw_photos(folder / "uploads", 3, first_seed=4)
    assert scan(folder) == ""
    shutil.copytree(folder / "out", folder / "whole")
    return folder


@pytest.fixture
def folder(scanned: Path) -> Iterator[Path]:
    """The scan, whose output is put back after it was damaged."""
    yield scanned
    shutil.rmtree(scanned / "out")
    shutil.copytree(scanned / "whole", scanned / "out")
    (scanned / "uploads" / "new.jpg").unlink(missing_ok=True)


def scan_more(folder: Path) -> str:
    """Add an upload and scan, which reads the references."""
    shutil.copy(folder / "references" / "p0000.jpg", folder / "uploads" / "new.jpg")
    return scan(folder)


def scan(folder: Path) -> str:
    """Scan; return the last line of what went wrong, empty for nothing."""
    places = ["--reference", folder / "references", "--queries", folder / "uploads"]
    done = call("scan", *places, "--top-k", 2, "--out", folder / "out", environment=SETTINGS)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def matches(folder: Path) -> pa.Table:
    return Dataset.open(str(folder / "out" / "matches")).read(schemas.MATCHES)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "reference" / "embeddings").glob("*.parquet"))


def test_a_part_in_the_place_of_another_is_named(folder: Path) -> None:
    first, second, _ = parts(folder)
    shutil.copy(first, second)
    before = matches(folder)
    assert f"{second} is damaged" in scan_more(folder)
    assert matches(folder) == before


def test_a_flipped_bit_of_a_footer_is_named(folder: Path) -> None:
    part = parts(folder)[1]
    whole = part.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    for place in (len(whole) - 8 - length, len(whole) - 9 - length // 2, len(whole) - 7):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert f"{part} is damaged" in scan_more(folder)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema_version": "1", "files": []'])
def test_damaged_matches_keep_their_earlier_runs(damage: bytes, folder: Path) -> None:
    success = folder / "out" / "matches" / datasets.SUCCESS
    success.write_bytes(damage)
    assert str(success) in scan_more(folder)
    assert success.read_bytes() == damage
    assert set(success.parent.rglob("*.parquet")) == {
        folder / "out" / path.relative_to(folder / "whole")
        for path in (folder / "whole" / "matches").rglob("*.parquet")
    }


@pytest.mark.parametrize("name", ["summary.json", "report.html"])
def test_a_damaged_report_is_made_again(name: str, folder: Path) -> None:
    path = folder / "out" / name
    whole = path.read_text()
    for damaged in (whole.replace("24", "25", 1), whole[:100], ""):
        path.write_text(damaged)
        assert scan(folder) == ""
        assert path.read_text() not in (damaged, "") and len(path.read_text()) > len(whole) // 2
