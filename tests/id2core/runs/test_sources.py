"""Many sources feed one corpus: whose rows go, whose stay, and what the log says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from id2core.runs import accounting, keys, listing, parts, planning
from id2core.runs.execution import Execution
from id2core.runs.parts import Product
from id2core.runs.planning import Plan
from id2core.runs.units import REJECTS
from id2core.sources.base import Item, Mode, Source
from id2core.store import datasets
from id2core.store.datasets import Dataset, FileRecord, Segment
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

COPIES = Product("copies")
SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "uri", "generation", "run_id")])


@dataclass
class Drawn:
    """What a source lists: names below it → generations."""

    uri: str
    mode: str = "mirror"
    places: Sequence[str] = ()
    objects: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _DrawnSource(Source):
    drawn: Drawn = field(default_factory=lambda: Drawn("/in"))

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(self.drawn.places)

    def _items(self) -> Iterator[Item]:
        yield from (Item(Object(f"{self.place}/{name}", g, 1)) for name, g in self.drawn.objects.items())


def plan(source: Drawn, out: Path, run: int, **more: Any) -> Plan:
    execution = Execution(f"run-{run}", datetime(2026, 1, 1, tzinfo=UTC))
    place = _DrawnSource(source.uri, Mode(source.mode), drawn=source)
    more = {"add_source": True} | more
    return planning.make(COPIES, place, str(out), {"encoder_id": "e"}, {}, execution, 2, **more)


def make(work: Plan) -> None:
    """Make a row of each object, and a reject of each whose name begins with `bad`."""
    for index in range(work.parts):
        objects = planning.read_part(work, index)
        bad = [o for o in objects if "/bad" in o.uri]
        run_id = work.lineage.run_id
        rows = [
            {"image_id": o.uri[-1], "uri": o.uri, "generation": o.generation, "run_id": run_id}
            for o in objects
            if o not in bad
        ]
        batch = pa.RecordBatch.from_pylist(rows, SCHEMA) if rows else None
        rejected = [parts.reject_row(o, Reject(Reason.CORRUPT), run_id) for o in bad]
        parts.write(work.out, COPIES, objects, work.lineage, iter([(batch, rejected)]))


def run(source: Drawn, out: Path, number: int, **more: Any) -> Plan:
    work = plan(source, out, number, **more)
    make(work)
    planning.commit(work)
    return work


def rows(out: Path) -> list[str]:
    table = Dataset.open(str(out / "copies")).read(SCHEMA)
    columns = (table[name].to_pylist() for name in SCHEMA.names[1:])
    return sorted(" ".join(row) for row in zip(*columns, strict=True))


def removals(out: Path) -> list[tuple[Any, ...]]:
    commit = Dataset.open(str(out / "copies")).commit
    tables = datasets.read_each(str(out / "removals"), commit.removals, None)
    found = [row for table in tables for row in table.to_pylist()]
    return sorted((r["uri"], r["generation"], r["segment"], r["reason"], r["removed_in"]) for r in found)


def test_sources_of_one_corpus_do_not_touch_each_other(tmp_path: Path) -> None:
    one = Drawn("/one", objects={"a": "1", "b": "1", "bad": "1"})
    two = Drawn("/two", objects={"a": "1"})
    run(one, tmp_path, 1)
    run(two, tmp_path, 2)
    assert rows(tmp_path) == ["/one/a 1 run-1", "/one/b 1 run-1", "/two/a 1 run-2"]
    commit = Dataset.open(str(tmp_path / "copies")).commit
    assert commit.sources.keys() == {"/one", "/two"} and commit.version == 2
    assert plan(one, tmp_path, 3).committed and plan(two, tmp_path, 3).committed
    del one.objects["b"], one.objects["bad"]
    run(one, tmp_path, 4)
    assert rows(tmp_path) == ["/one/a 1 run-1", "/two/a 1 run-2"]
    assert Dataset.open(str(tmp_path / REJECTS)).rows == 0
    assert removals(tmp_path) == [("/one/b", "1", "run-1", "unlisted", 3)]


def test_sources_that_list_the_same_object_make_it_once(tmp_path: Path) -> None:
    outer = Drawn("/in", objects={"a": "1", "sub/b": "1"})
    inner = Drawn("/in/sub", objects={"b": "1", "c": "1"})
    first, second = plan(outer, tmp_path, 1), plan(inner, tmp_path, 2)
    make(first), make(second)
    planning.commit(first), planning.commit(second)  # side by side
    expected = ["/in/a 1 run-1", "/in/sub/b 1 run-1", "/in/sub/c 1 run-2"]
    assert rows(tmp_path) == expected
    assert plan(inner, tmp_path, 3).objects == 0
    assert removals(tmp_path) == []


def test_a_job_that_commits_after_a_newer_listing_drops_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    source = Drawn("/in", objects={"a": "1", "b": "1"})
    template = plan(source, tmp_path, 1)  # without a lease: it is started later
    source.objects = {"b": "1", "c": "1"}
    run(source, tmp_path, 2)
    make(template)
    assert planning.commit(template)
    assert rows(tmp_path) == ["/in/a 1 run-1", "/in/b 1 run-2", "/in/c 1 run-2"]
    assert Dataset.open(str(tmp_path / "copies")).commit.sources["/in"].mode is Mode.MIRROR
    assert planning.commit(template) is None, "it is started again"
    run(source, tmp_path, 3)
    assert rows(tmp_path) == ["/in/b 1 run-2", "/in/c 1 run-2"]
    assert [(uri, reason) for uri, _, _, reason, _ in removals(tmp_path)] == [("/in/a", "unlisted")]


def test_a_run_that_is_tried_again_behind_its_commit_adds_what_came_meanwhile(tmp_path: Path) -> None:
    source = Drawn("/in", "append", objects={"a": "1"})
    run(source, tmp_path, 1)
    assert plan(source, tmp_path, 1).committed
    source.objects["b"] = "1"
    second = run(source, tmp_path, 1).lineage.run_id
    assert second != "run-1"
    assert rows(tmp_path) == ["/in/a 1 run-1", f"/in/b 1 {second}"]


def test_a_mirror_logs_what_it_drops_and_an_appended_source_keeps_it(tmp_path: Path) -> None:
    for mode, left in (
        ("mirror", ["/in/a 2 run-2", "/in/c 1 run-1"]),
        ("append", ["/in/a 1 run-1", "/in/a 2 run-2", "/in/b 1 run-1", "/in/c 1 run-1"]),
    ):
        out, source = tmp_path / mode, Drawn("/in", mode, objects={"a": "1", "b": "1", "c": "1"})
        run(source, out, 1)
        source.objects = {"a": "2", "c": "1"}
        work = run(source, out, 2)
        assert (work.objects, rows(out)) == (1, left)
    assert removals(tmp_path / "append") == []
    assert removals(tmp_path / "mirror") == [
        ("/in/a", "1", "run-1", "replaced", 2),
        ("/in/b", "1", "run-1", "unlisted", 2),
    ]


def test_dates_that_are_not_listed_now_lose_nothing(tmp_path: Path) -> None:
    source = Drawn("/in", places=["/in/d1", "/in/d2"], objects={"d1/a": "1", "d2/b": "1", "d2/c": "1"})
    run(source, tmp_path, 1)
    source.places, source.objects = ["/in/d2", "/in/d3"], {"d2/b": "1", "d3/d": "1"}
    run(source, tmp_path, 2)
    assert rows(tmp_path) == ["/in/d1/a 1 run-1", "/in/d2/b 1 run-1", "/in/d3/d 1 run-2"]


def age(out: Path, run_id: str) -> None:
    """Let a segment be from 2020."""
    dataset = Dataset.open(str(out / "copies"))
    old = Segment(dataset.commit.segments[run_id].number, "2020-01-01T00:00:00+00:00")
    commit = replace(dataset.commit, segments=dataset.commit.segments | {run_id: old})
    assert datasets.replace_commit(dataset.uri, commit, dataset)


def test_rows_that_are_kept_no_longer_expire_and_are_not_made_again(tmp_path: Path) -> None:
    source = Drawn("/in", "append", objects={"a": "1", "b": "1"})
    run(source, tmp_path, 1)
    source.objects = {"b": "1", "c": "1"}
    run(source, tmp_path, 2)
    age(tmp_path, "run-1")
    assert plan(source, tmp_path, 3).committed  # without a limit
    work = run(source, tmp_path, 3, retention_days=30)
    assert (work.committed, work.objects) == (False, 0)
    assert rows(tmp_path) == ["/in/c 1 run-2"]
    assert [r[3] for r in removals(tmp_path)] == ["expired", "expired"]
    assert plan(source, tmp_path, 4, retention_days=30).committed
    source.objects = {"b": "1", "c": "1", "d": "1"}
    assert run(source, tmp_path, 5, retention_days=30).objects == 1
    source.objects["b"] = "2"  # another upload
    assert run(source, tmp_path, 6, retention_days=30).objects == 1
    assert rows(tmp_path) == ["/in/b 2 run-6", "/in/c 1 run-2", "/in/d 1 run-5"]


def test_a_night_reads_no_file_of_other_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Drawn("/in", "append")
    for night in range(1, 6):
        source.places, source.objects = [f"/in/{night}"], {f"{night}/{i}": "1" for i in range(5)}
        run(source, tmp_path, night)
    read: list[FileRecord] = []
    real = accounting.read_keys

    def read_keys(uri: str, files: Sequence[FileRecord], columns: list[str]) -> Iterator[pa.Table]:
        read.extend(files)
        return real(uri, files, columns)

    monkeypatch.setattr(accounting, "read_keys", read_keys)
    source.places, source.objects = ["/in/5", "/in/6"], {"5/0": "1", "6/0": "1"}
    assert run(source, tmp_path, 6).objects == 1
    assert {segment for file in read for segment in file.segments} == {"run-5", "run-6"}


def test_an_object_that_is_listed_twice_is_made_once(tmp_path: Path) -> None:
    source = Drawn("/in", objects={"b": "1", "a": "1"})
    work = run(source, tmp_path, 1, lister=lambda place: [*place.items(), *place.items()])
    assert (work.listed, work.objects) == (4, 2)
    assert rows(tmp_path) == ["/in/a 1 run-1", "/in/b 1 run-1"]


def test_a_listing_that_is_spilled_gives_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Drawn("/in", objects={f"{i:03d}": "1" for i in range(100)})
    whole = run(source, tmp_path / "whole", 1)
    monkeypatch.setattr(listing, "BATCH", 7)
    monkeypatch.setattr(listing, "ROW_GROUP", 21)
    monkeypatch.setattr(keys.Keys.__init__, "__defaults__", (13,))
    cut = run(source, tmp_path / "cut", 1)
    assert (whole.plan_id, whole.objects, whole.parts) == (cut.plan_id, cut.objects, cut.parts)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    del source.objects["050"]
    run(source, tmp_path / "cut", 2)
    assert len(rows(tmp_path / "cut")) == 99 and len(removals(tmp_path / "cut")) == 1
