from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from id2core.runs import leftovers, parts, planning, units
from id2core.runs.records import recorded
from id2core.store import datasets, moves, schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason, Reject
from tests.id2core.runs.test_planning import FIRST, IDS, SECOND, source

__all__ = ["source"]
DAY = 24 * 3600
KEY, HASH, RUN = "0123456789abcdef", "01234567", "20260101T000000-abcdef"
COPIES = parts.Product("copies")
LEFT = [
    f"rejects/part-{KEY}-{HASH}.parquet",
    "rejects/.partial-abcd_123",
    "rejects/.partial-77-_SUCCESS",
    f"runs/{RUN}-{HASH}.parquet",
    f"matches/scan_date=2026-01-01/{KEY}-part-{KEY}-0000-{HASH}.parquet",
    f"_staging/manifest-{KEY}-{RUN}-{HASH}.parquet",
    f"_staging/listing-{KEY}-{RUN}-{HASH}.parquet",
    f"_staging/parts/{KEY}.json",
    f"_staging/files/rejects/part-{KEY}-{HASH}.parquet",
    "_staging/files/rejects/.partial-abcd_123",
    f"_staging/files/matches/scan_date=2026-01-01/{KEY}-part-{KEY}-0000-{HASH}.parquet",
    f"_staging/moves/rejects-{HASH}",
    f"_superseded/rejects/part-{KEY}-{HASH}.parquet",
    f"_superseded/matches/scan_date=2026-01-01/merged-{KEY}-{HASH}.parquet",
    ".partial-abcd_123",
]
THEIRS = [
    "rejects/part-1.parquet",
    "rejects/notes.txt",
    f"rejects/old/part-{KEY}-{HASH}.parquet",
    "matches/scan_date=2026-01-01/mine.parquet",
    "_staging/mine.json",
    "_staging/files/rejects/mine.parquet",
    "_superseded/rejects/mine.parquet",
    ".partial-mine",
    f"part-{KEY}-{HASH}.parquet",
    "photos/.partial-abcd_123",
    f"reference/embeddings/part-{KEY}-{HASH}.parquet",
]


def touch(out: Path, names: list[str], age: float) -> None:
    for name in names:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left")
        os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place with data sets that a run has committed, and files of others beside them."""
    out = tmp_path / "place"
    for name in ("rejects", "matches"):
        schema = schemas.TABLES[name]
        record = datasets.write_file(str(out / name), f"part-{KEY}", [], schema)
        datasets.add_files(str(out / name), name, RUN, KEY, [record], {})
    touch(out, THEIRS, 9 * DAY)
    yield out
    assert all((out / name).exists() for name in THEIRS)
    for name in ("rejects", "matches"):
        Dataset.open(str(out / name)).read(schemas.TABLES[name])


def left(out: Path) -> list[str]:
    return [name for name in LEFT if (out / name).exists()]


def test_a_later_run_removes_what_is_older_than_the_grace_period(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(out, LEFT, DAY / 2)
    with recorded(str(out), "scan", {}):
        pass
    assert left(out) == LEFT
    monkeypatch.setenv("ID2_LEFTOVER_HOURS", "11")
    with recorded(str(out), "scan", {}):
        assert left(out) == LEFT  # not before the end
    assert left(out) == []


def test_nothing_is_removed_by_a_run_that_fails_or_beside_another_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(out, LEFT, 2 * DAY)
    with pytest.raises(KeyboardInterrupt), recorded(str(out), "scan", {}):
        raise KeyboardInterrupt
    with recorded(str(out), "scan", {}):
        with recorded(str(out), "embed", {}):
            pass
        assert left(out) == LEFT
    assert left(out) == []


def test_what_is_young_keeps_what_lies_beside_it(out: Path) -> None:
    touch(out, LEFT, 2 * DAY)
    touch(out, [f"rejects/part-{KEY[::-1]}-{HASH}.parquet", f"_staging/parts/{KEY[::-1]}.json"], 0)
    leftovers.sweep(str(out), time.time() - DAY)
    folders = {name.split("/")[0] for name in left(out)}
    assert folders == {"rejects", "_staging", "runs"}  # `runs/` has no commit here


def test_a_superseded_part_stays_for_the_grace_period(out: Path) -> None:
    uri = str(out / "rejects")
    last = Dataset.open(uri)
    [file] = last.files
    os.utime(out / "rejects" / file.name, (1, 1))
    datasets.update_commit(uri, lambda _: replace(last.commit, files=()), last)
    assert not (out / "rejects" / file.name).exists()
    superseded = Path(moves.superseded(uri), file.name)
    leftovers.sweep(str(out), time.time() - 60)
    assert superseded.exists() and last.read(schemas.REJECTS).num_rows == 0
    leftovers.sweep(str(out), time.time() + 60)
    assert not superseded.exists()


def test_a_staged_record_keeps_its_part(source: Path) -> None:
    out = source.parent / "out"
    work = planning.make(COPIES, str(source), str(out), IDS, {}, FIRST)
    rejected = [parts.reject_row(o, Reject(Reason.EMPTY), "r") for o in planning.read_part(work, 0)]
    [record] = parts.write(
        str(out), COPIES, planning.read_part(work, 0), work.lineage, iter([(None, rejected)])
    )
    assert record.rejects
    datasets.add_files(str(out / "rejects"), "rejects", RUN, KEY, [], {})
    part = Path(moves.staged(str(out / "rejects")), record.rejects.name)
    staged = Path(units.record_uri(str(out), record.key))
    for path in (part, *Path(out, "_staging").glob("*")):
        if path.is_file():
            os.utime(path, (1, 1))
    leftovers.sweep(str(out), time.time() - 60)
    assert part.exists() and staged.exists()
    os.utime(staged, (1, 1))
    leftovers.sweep(str(out), time.time() - 60)
    assert not part.exists() and not staged.exists()


def test_the_manifest_of_a_template_stays_until_its_job_commits(source: Path) -> None:
    out = source.parent / "out"
    datasets.add_files(str(out / "rejects"), "rejects", RUN, KEY, [], {})
    first, second = (replace(e, run_id=f"20260101T000000-{e.started:%d%H%M}") for e in (FIRST, SECOND))
    kept, lost = (planning.make(COPIES, str(source), str(out), IDS, {}, e) for e in (first, second))
    planning.keep_staged(kept)
    leftovers.sweep(str(out), time.time() + 60)
    assert kept.manifest and lost.manifest
    assert storage.exists(storage.join(str(out), kept.manifest.name)) and planning.read_part(kept, 0)
    assert not storage.exists(storage.join(str(out), lost.manifest.name))


def test_pictures_that_no_row_names_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [f"pictures/{i:02x}/{i:064x}-0-{HASH}.jpeg" for i in range(4)]
    touch(out, names, 2 * DAY)
    schema = schemas.TRANSLATIONS
    rows = [{"uri": str(out / name)} for name in names[:2]]
    record = datasets.write_file(
        str(out / "translations"), f"part-{KEY}", [pa.Table.from_pylist(rows, schema)], schema
    )
    datasets.add_files(str(out / "translations"), "translations", RUN, KEY, [record], {})
    touch(out, [f"translations/part-{KEY}-{HASH}.parquet", "pictures/00/mine.jpeg"], 2 * DAY)
    leftovers.sweep(str(out), time.time() - DAY)
    assert [name for name in names if (out / name).exists()] == names[:2]
    assert (out / "pictures/00/mine.jpeg").exists()


def test_a_second_copy_of_a_committed_file_goes_and_the_file_stays(out: Path) -> None:
    [record] = Dataset.open(str(out / "rejects")).files
    copy = f"_staging/files/rejects/{record.name}"
    touch(out, [copy], 2 * DAY)
    leftovers.sweep(str(out), time.time() - DAY)
    assert not (out / copy).exists() and (out / "rejects" / record.name).exists()
