from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.runs import parts, units
from id2core.runs.parts import Lineage, Product
from id2core.runs.units import Record
from id2core.store import schemas, storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

OBJECTS = [Object(f"/in/{i:02d}", "g", 1) for i in range(10)]
SCHEMA = pa.schema([("uri", pa.string())])
LINEAGE = Lineage({"encoder_id": "e-1"}, "run-1", datetime(2026, 1, 1, tzinfo=UTC))


def fetch(obj: Object) -> str | Reject:
    """Every third object is rejected."""
    return Reject(Reason.CORRUPT) if int(obj.uri[-2:]) % 3 == 0 else obj.uri


def test_objects_are_read_ahead_in_order_and_not_too_far() -> None:
    running, most, lock = 0, 0, threading.Lock()
    consumed = 0

    def slow(obj: Object) -> str | Reject:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, int(obj.uri[-2:]) - consumed)
        time.sleep(0.002 * (10 - int(obj.uri[-2:])))  # the first ones take longest
        return fetch(obj)

    results = []
    for obj, result in parts.read_ahead(OBJECTS, slow, ahead=4, threads=4):
        results.append((obj, result))
        consumed += 1
    assert results == [(obj, fetch(obj)) for obj in OBJECTS]
    assert running == 10 and most <= 4


def test_a_fault_of_the_reader_stops_the_stream() -> None:
    def faulty(obj: Object) -> str | Reject:
        raise OSError("the disk was away")

    with pytest.raises(OSError, match="away"):
        list(parts.read_ahead(OBJECTS, faulty, ahead=4))


def test_batches_are_full_and_carry_the_rejects_met_on_the_way() -> None:
    gathered = list(parts.batches(((obj, fetch(obj)) for obj in OBJECTS), 4))
    assert [good for good, _ in gathered] == [["/in/01", "/in/02", "/in/04", "/in/05"], ["/in/07", "/in/08"]]
    assert [[obj.uri for obj, _ in bad] for _, bad in gathered] == [
        ["/in/00", "/in/03"],
        ["/in/06", "/in/09"],
    ]
    only_bad = [(obj, Reject(Reason.EMPTY)) for obj in OBJECTS]
    assert [(good, len(bad)) for good, bad in parts.batches(only_bad, 4)] == [([], 10)]
    assert list(parts.batches([], 4)) == []


def stream(lineage: Lineage = LINEAGE) -> Iterator[tuple[pa.RecordBatch | None, list[dict[str, str]]]]:
    for good, bad in parts.batches(((obj, fetch(obj)) for obj in OBJECTS), 4):
        rejected = [parts.reject_row(obj, reject, lineage.run_id) for obj, reject in bad]
        yield pa.RecordBatch.from_pydict({"uri": good}, SCHEMA), rejected


def test_a_part_leaves_its_two_files_and_then_its_record(tmp_path: Path) -> None:
    out = str(tmp_path)
    [record] = parts.write(out, Product("copies"), OBJECTS, LINEAGE, stream())
    assert record.counts == (6, 4) and record.rows and record.rejects
    written = tmp_path / units.STAGING / "files"
    assert pq.read_table(written / "copies" / record.rows.name)["uri"].to_pylist() == [
        f"/in/{i:02d}" for i in (1, 2, 4, 5, 7, 8)
    ]
    rejected = pq.read_table(written / "rejects" / record.rejects.name)
    assert rejected.schema == schemas.REJECTS and set(rejected["run_id"].to_pylist()) == {"run-1"}
    staged = storage.read_bytes(units.record_uri(out, record.key))
    assert Record.from_json(staged) == record
    assert (record.run_id, record.ids) == ("run-1", LINEAGE.ids)
    assert parts.write(out, Product("copies"), OBJECTS, LINEAGE, stream()) == [record]


def test_attempts_of_different_runs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    records = [
        parts.write(str(tmp_path), Product("copies"), OBJECTS, lineage, stream(lineage))[0]
        for lineage in (LINEAGE, Lineage(LINEAGE.ids, "run-2", LINEAGE.started))
    ]
    assert records[0].key == records[1].key
    names = {record.rejects.name for record in records if record.rejects}
    written = tmp_path / units.STAGING / "files" / "rejects"
    assert len(names) == 2 and names == {path.name for path in written.iterdir()}


def test_a_slow_part_leaves_records_on_its_way_and_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    out, product = str(tmp_path), Product("copies")
    whole = parts.write(str(tmp_path / "whole"), product, OBJECTS, LINEAGE, stream())

    def killed() -> Iterator[tuple[pa.RecordBatch | None, list[dict[str, str]]]]:
        yield next(stream())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(out, product, OBJECTS, LINEAGE, killed(), seconds=0)
    left = parts.remaining(out, OBJECTS, LINEAGE)
    assert left == OBJECTS[6:]  # 4 rows, and the 2 rejects between them
    later = Lineage(LINEAGE.ids, "run-2", LINEAGE.started)
    assert parts.remaining(out, OBJECTS, later) == OBJECTS
    rest = stream()
    next(rest)
    records = parts.write(out, product, left, LINEAGE, rest, seconds=0)
    assert parts.remaining(out, OBJECTS, LINEAGE) == []
    made = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "_staging/files/copies").iterdir())
    assert (
        sorted(made["uri"].to_pylist())
        == pq.read_table(tmp_path / "whole/_staging/files/copies")["uri"].to_pylist()
    )
    assert sum(r.objects for r in records) == len(left) and whole[0].objects == len(OBJECTS)
    next((tmp_path / "_staging/files/copies").iterdir()).unlink()
    assert parts.remaining(out, OBJECTS, LINEAGE)


def test_a_part_without_rows_or_without_rejects_has_no_such_file(tmp_path: Path) -> None:
    product = Product("copies")
    [one] = parts.write(str(tmp_path), product, OBJECTS[:1], LINEAGE, iter([(None, [])]))
    assert one.rows is None and one.rejects is None and not (tmp_path / "copies").exists()
    batch = pa.RecordBatch.from_pydict({"uri": ["/in/01"]}, SCHEMA)
    [two] = parts.write(str(tmp_path), product, OBJECTS[1:2], LINEAGE, iter([(batch, [])]))
    assert two.rows and two.rejects is None and two.files == [("copies", two.rows)]
    assert Record.from_json(two.to_json()) == two


def test_a_reason_outside_the_closed_list_is_a_bug(tmp_path: Path) -> None:
    row = parts.reject_row(OBJECTS[0], Reject(Reason.EMPTY), "run-1") | {"reason": "ugly"}
    with pytest.raises(ValueError, match="ugly"):
        parts.write(str(tmp_path), Product("copies"), OBJECTS[:1], LINEAGE, iter([(None, [row])]))


def test_the_key_names_the_objects_and_the_ids() -> None:
    one, other = (replace(LINEAGE, ids=ids) for ids in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}))
    looking = replace(one, options={"views": "auto"})
    key = parts.part_key(OBJECTS, one)
    assert key == parts.part_key(OBJECTS, other)
    others = [parts.part_key(OBJECTS[1:], one), *(parts.part_key(OBJECTS, x) for x in (LINEAGE, looking))]
    assert len({key, *others}) == 4


def test_details_that_are_no_text_are_stored_all_the_same() -> None:
    row = parts.reject_row(OBJECTS[0], Reject(Reason.CORRUPT, "bad \udcff byte"), "run-1")
    assert row["detail"] == "bad ? byte" and row["uri"] == "/in/00"
