from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from id2core.errors import DatasetError
from id2core.runs import units
from id2core.runs.units import Record
from id2core.store import datasets, moves, storage

SCHEMA = pa.schema([("number", pa.int64())])


def leave(place: Path, start: int, size: int, run_id: str = "r") -> Record:
    """Make numbers of a unit of ten, and their record."""
    table = pa.table({"number": list(range(start, start + size))}, SCHEMA)
    rows = datasets.write_file(str(place / "numbers"), f"from-{start}", [table], SCHEMA)
    return units.leave(str(place), Record(key(start), run_id, {"a": "1"}, size, "numbers", rows))


def key(start: int) -> str:
    return datasets.digest_of("numbers", start)


def stood(place: Path) -> list[int]:
    return [record.objects for record in units.chain(str(place), 10, key)]


def test_a_unit_is_taken_up_behind_the_records_that_stand(tmp_path: Path) -> None:
    assert stood(tmp_path) == []
    leave(tmp_path, 0, 4)
    leave(tmp_path, 4, 3, run_id="other")
    leave(tmp_path, 8, 2)  # of an attempt that was cut elsewhere
    assert stood(tmp_path) == [4, 3]
    assert sum(r.objects for r in units.chain(str(tmp_path), 10, key, lambda r: r.run_id == "r")) == 4
    leave(tmp_path, 7, 4)  # more than there is
    assert stood(tmp_path) == [4, 3]


@pytest.mark.parametrize("damage", ["cut", "another byte", "gone", "record"])
def test_a_record_counts_only_if_it_can_be_read_and_its_file_is_whole(damage: str, tmp_path: Path) -> None:
    record = leave(tmp_path, 0, 10)
    assert units.find(str(tmp_path), key(0)) == record and record.rows
    path = Path(moves.staged(str(tmp_path / "numbers")), record.rows.name)
    if damage == "record":
        path = storage.local_path(units.record_uri(str(tmp_path), key(0)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-9] if damage == "cut" else data)
    assert units.find(str(tmp_path), key(0)) is None and stood(tmp_path) == []


def test_staged_records_are_those_that_can_be_read(tmp_path: Path) -> None:
    assert units.staged(str(tmp_path)) == {}
    first, second = leave(tmp_path, 0, 4), leave(tmp_path, 4, 3)
    storage.write_bytes(units.record_uri(str(tmp_path), "damaged"), b"{}")
    uri = units.record_uri(str(tmp_path), first.key)
    assert units.staged(str(tmp_path))[uri] == first
    assert list(units.staged(str(tmp_path), {uri}).values()) == [second]
    units.delete(units.staged(str(tmp_path)))
    assert units.staged(str(tmp_path)) == {}


def test_a_record_of_an_earlier_version_is_read() -> None:
    record = Record("k", "r", {}, 3, "numbers", None, notes={"pairs": [1, 2]})
    assert Record.from_json(record.to_json()) == record and record.counts == (3, 0)
    raw = {"key": "k", "run_id": "r", "ids": {}, "objects": 3, "dataset": "n", "rows": None, "rejects": None}
    earlier = Record.from_json(json.dumps(raw | {"checksum": datasets.digest_of(raw)}).encode())
    assert earlier == Record("k", "r", {}, 3, "n", None)
    with pytest.raises(DatasetError, match="not the record"):
        Record.from_json(b"[]")
