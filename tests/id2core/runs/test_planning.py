from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from id2core.errors import DatasetError, LostRowsError, StorageError
from id2core.runs import parts, planning, units
from id2core.runs.execution import Execution
from id2core.runs.parts import Product
from id2core.runs.planning import Plan
from id2core.runs.units import REJECTS
from id2core.store import datasets, moves, schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

COPIES = Product("copies")
SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "generation", "run_id")])
IDS = {"encoder_id": "e-1"}
FIRST, SECOND, THIRD = (Execution(f"run-{i}", datetime(2026, 1, i, tzinfo=UTC)) for i in (1, 2, 3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven files; what is called `bad` is to be rejected."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "bad", "c", "d", "e", "f"):
        (folder / name).write_text(name)
    return folder


def plan(source: Path, execution: Execution = FIRST, product: Product = COPIES, **more: Any) -> Plan:
    given: dict[str, Any] = {"ids": IDS, "config": {}, "part_size": 3} | more
    out = str(source.parent / "out")
    return planning.make(product, str(source), out, execution=execution, **given)


def make(work: Plan, indices: Iterable[int] | None = None, reason: Reason = Reason.CORRUPT) -> None:
    """Do parts of the work (by default all): a row for every object, a reject for `bad`."""
    for index in range(work.parts) if indices is None else indices:
        objects = planning.read_part(work, index)
        good = [o for o in objects if not o.uri.endswith("bad")]
        write(work, objects, [o for o in good for _ in range(work.product.rows_each)], reason)


def write(work: Plan, objects: list[Object], good: list[Object], reason: Reason = Reason.CORRUPT) -> None:
    run_id = work.lineage.run_id
    rows = [{"uri": o.uri, "generation": o.generation, "run_id": run_id} for o in good]
    reject = Reject(reason, "no picture")
    bad = [parts.reject_row(o, reject, run_id) for o in objects if o.uri.endswith("bad")]
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA) if rows else None
    parts.write(work.out, work.product, objects, work.lineage, iter([(batch, bad)]))


def written(work: Plan) -> dict[str, str]:
    """Return the last letter of each row's URI → the run that wrote it."""
    table = Dataset.open(work.uri_of("copies")).read(SCHEMA)
    names = [uri.rsplit("/", 1)[-1] for uri in table["uri"].to_pylist()]
    assert len(names) == len(set(names))
    return dict(sorted(zip(names, table["run_id"].to_pylist(), strict=True)))


def rejects(work: Plan) -> list[dict[str, str]]:
    return Dataset.open(work.uri_of(REJECTS)).read(schemas.REJECTS).to_pylist()


def staged(work: Plan) -> list[str]:
    """Records, manifests and listings that are staged, and marks of commits; rows aside."""
    try:
        uris = [o.uri for o in storage.list_objects(storage.join(work.out, units.STAGING))]
    except StorageError:
        return []
    return [uri for uri in uris if f"/{moves.FILES}/" not in uri]


def commits(reads: list[str]) -> list[str]:
    return [uri for uri in reads if uri.endswith(datasets.SUCCESS) and "/takedowns/" not in uri]


def test_the_listing_is_cut_into_parts(source: Path) -> None:
    work = plan(source)
    assert (work.listed, work.objects, work.parts, work.committed) == (7, 7, 3, False)
    objects = [planning.read_part(work, i) for i in range(3)]
    assert [len(part) for part in objects] == [3, 3, 1]
    assert [o for part in objects for o in part] == storage.list_objects(str(source))
    assert plan(source, part_size=100).parts == 1
    assert plan(source, excluded=frozenset({f"{source}/a"})).listed == 6


def test_work_is_named_by_its_content_and_not_by_its_execution(source: Path) -> None:
    work = plan(source)
    assert plan(source, SECOND).plan_id == work.plan_id
    assert plan(source, SECOND).lineage.run_id == SECOND.run_id
    assert plan(source, config={"limit": 3}).plan_id != work.plan_id
    (source / "a").write_text("changed")
    assert plan(source).plan_id != work.plan_id


def test_a_finished_run_is_committed_and_leaves_nothing_staged(source: Path) -> None:
    work = plan(source)
    make(work)
    committed = planning.commit(work)
    assert committed == planning.Held.read(COPIES, work.out)
    assert written(work) == dict.fromkeys("abcdef", FIRST.run_id)
    [reject] = rejects(work)
    assert (reject["reason"], reject["run_id"]) == ("corrupt", FIRST.run_id)
    for name, rows in (("copies", 6), (REJECTS, 1)):
        commit = Dataset.open(work.uri_of(name)).commit
        counts = {"plan_id": work.plan_id, "source": str(source), "listed": 7, "transient": 0, "rows": rows}
        counts |= {"added": 6, "rejected": 1}
        assert (commit.run_id, commit.runs) == (FIRST.run_id, {FIRST.run_id: counts})
        assert (commit.ids, commit.source) == (IDS, str(source))
    assert staged(work) == []
    assert planning.commit(work) is None  # again
    assert written(work) == dict.fromkeys("abcdef", FIRST.run_id)


def test_the_same_work_again_writes_nothing_and_has_the_run_that_wrote_it(source: Path) -> None:
    first = plan(source)
    make(first)
    planning.commit(first)
    again = plan(source, SECOND)
    assert again.committed and (again.parts, again.objects, again.listed) == (0, 0, 7)
    assert again.lineage.run_id == FIRST.run_id and staged(again) == []


def test_a_run_adopts_the_parts_of_a_killed_one(source: Path) -> None:
    killed = plan(source)
    make(killed, [0, 2])  # a, b, bad and f
    resumed = plan(source, SECOND)
    assert (resumed.objects, resumed.parts) == (3, 1)
    make(resumed)
    planning.commit(resumed)
    commit = Dataset.open(resumed.uri_of("copies")).commit
    assert {run_id: s.number for run_id, s in commit.segments.items()} == {"run-1": 1, "run-2": 2}
    assert sorted(f.segments for f in commit.files) == [("run-1",), ("run-1",), ("run-2",)]
    assert written(resumed) == dict.fromkeys("abf", FIRST.run_id) | dict.fromkeys("cde", SECOND.run_id)
    assert [reject["run_id"] for reject in rejects(resumed)] == [FIRST.run_id]
    assert plan(source, THIRD).lineage.run_id == SECOND.run_id


def test_parts_that_were_made_with_other_ids_are_not_adopted(source: Path) -> None:
    make(plan(source, ids={"encoder_id": "e-2"}), [0])
    assert plan(source, SECOND).objects == 7


def test_new_objects_are_added_and_gone_ones_dropped(source: Path) -> None:
    first = plan(source)
    make(first)
    planning.commit(first)
    (source / "a").unlink()
    (source / "b").write_text("changed")
    (source / "g").write_text("g")
    second = plan(source, SECOND)
    assert (second.listed, second.objects) == (7, 2)
    make(second)
    planning.commit(second)
    old, new = dict.fromkeys("cdef", FIRST.run_id), dict.fromkeys("bg", SECOND.run_id)
    assert written(second) == dict(sorted((old | new).items()))
    assert set(Dataset.open(second.uri_of("copies")).runs) == {FIRST.run_id, SECOND.run_id}


@pytest.mark.parametrize(
    ("reason", "tried_by_equal", "tried_by_other"),
    [(Reason.CORRUPT, False, False), (Reason.UNREADABLE, True, True), (Reason.TOO_LARGE_FILE, False, True)],
)
def test_rejects_are_tried_again_where_that_may_help(
    source: Path, reason: Reason, tried_by_equal: bool, tried_by_other: bool
) -> None:
    first = plan(source)
    make(first, reason=reason)
    planning.commit(first)
    assert plan(source, SECOND).objects == tried_by_equal
    second = plan(source, SECOND, config={"limit": 3})
    assert second.objects == tried_by_other and not second.committed
    objects = [o for i in range(second.parts) for o in planning.read_part(second, i)]
    if objects:
        batch = pa.RecordBatch.from_pylist(
            [{"uri": o.uri, "generation": o.generation} for o in objects], SCHEMA
        )
        parts.write(second.out, COPIES, objects, second.lineage, iter([(batch, [])]))
    planning.commit(second)
    assert len(rejects(second)) == (not tried_by_other)  # the row supersedes the reject
    assert len(written(second)) == 6 + tried_by_other


def test_a_lost_row_is_noticed_and_nothing_is_committed(source: Path) -> None:
    work = plan(source)
    make(work, [0, 1])
    with pytest.raises(LostRowsError, match="1 listed objects have too few rows and 0 too many"):
        planning.commit(work)
    assert Dataset.find(work.uri_of("copies")) is Dataset.find(work.uri_of(REJECTS)) is None
    make(work, [2])
    planning.commit(work)
    assert len(written(work)) == 6


@pytest.mark.parametrize("rows_each", [1, 2])
def test_every_object_has_its_number_of_rows(source: Path, rows_each: int) -> None:
    work = plan(source, product=replace(COPIES, rows_each=rows_each))
    make(work, [0, 1])
    objects = planning.read_part(work, 2)
    for number in {0, rows_each - 1, rows_each + 1}:
        write(work, objects, objects * number)
        message = "1 listed objects have too few rows and 0" if number < rows_each else "0 .* and 1 too many"
        with pytest.raises(LostRowsError, match=message):
            planning.commit(work)
    write(work, objects, objects * rows_each)
    planning.commit(work)
    assert Dataset.open(work.uri_of("copies")).rows == 6 * rows_each


def test_a_commit_that_another_run_overtook_is_added_to_it(source: Path) -> None:
    late = plan(source)
    make(late, [0])
    early = plan(source, SECOND, config={"limit": 3})
    make(early)
    planning.commit(early)  # adopts the part of `late`, and removes what is staged
    make(late, [1, 2])
    planning.commit(late)  # its segment is committed, and nothing is added to it
    assert written(late) == dict.fromkeys("ab", FIRST.run_id) | dict.fromkeys("cdef", SECOND.run_id)
    assert set(Dataset.open(late.uri_of("copies")).runs) == {FIRST.run_id, SECOND.run_id}


def test_the_same_work_that_another_run_committed_meanwhile_is_left_as_it_is(source: Path) -> None:
    late, early = plan(source), plan(source, SECOND)
    make(early)
    planning.commit(early)
    planning.commit(late)
    assert set(written(late).values()) == {SECOND.run_id}
    assert list(Dataset.open(late.uri_of("copies")).runs) == [SECOND.run_id]


def test_what_must_not_be_mixed_or_dropped_is_refused(source: Path, tmp_path: Path) -> None:
    work = plan(source)
    make(work)
    planning.commit(work)
    with pytest.raises(DatasetError, match="encoder_id e-1, this run has e-2"):
        plan(source, ids={"encoder_id": "e-2"})
    source.rename(tmp_path / "others")
    source.mkdir()
    with pytest.raises(StorageError, match="is it mounted"):
        plan(source)
    assert len(written(work)) == 6


def test_a_new_run_reads_one_commit_and_writes_two(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = storage.read_marked
    monkeypatch.setattr(storage, "read_marked", lambda uri: (reads.append(uri), real(uri))[1])
    work = plan(source)
    make(work)
    planning.commit(work)
    assert commits(reads) == [f"{work.uri_of('copies')}/{datasets.SUCCESS}"]
    assert plan(source, SECOND).committed and len(commits(reads)) == 3


def finish(images: Path, out: Path, execution: Execution = FIRST, **more: Any) -> Plan:
    """Plan a run, do it, and commit it."""
    work = planning.make(COPIES, str(images), str(out), IDS, {}, execution, **more)
    make(work)
    planning.commit(work)
    return work


def listed(work: Plan) -> list[str]:
    """Return what a plan that is not committed has listed, below its images."""
    uris = [o.uri for i in range(work.parts) for o in planning.read_part(work, i)]
    return [uri.removeprefix(f"{work.source}/") for uri in uris]


def test_what_a_run_writes_is_never_listed(source: Path) -> None:
    finish(source, source)
    (source / "copies/.lock").touch()
    again = planning.make(COPIES, str(source), str(source), IDS, {}, SECOND)
    assert (again.listed, again.committed) == (7, True)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "gone":
        path.unlink()
        return
    else:
        data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("what", [f"{units.PARTS}/*.json", "files/copies/*.parquet"])
def test_a_staged_part_that_is_damaged_is_made_again(what: str, how: str, source: Path) -> None:
    killed = plan(source)
    make(killed, [0])
    [path] = Path(killed.out, units.STAGING).glob(what)
    damage(path, how)
    resumed = plan(source, SECOND)
    assert resumed.objects == 7
    make(resumed)
    planning.commit(resumed)
    assert written(resumed) == dict.fromkeys("abcdef", SECOND.run_id)


def test_a_manifest_that_is_damaged_is_an_error_and_made_anew_by_the_next_run(source: Path) -> None:
    work = plan(source)
    assert work.manifest and work.listing
    for file in (work.manifest, work.listing):
        damage(Path(work.out, file.name), "cut")
    with pytest.raises(DatasetError, match=rf"{work.manifest.name} .* start the run again"):
        planning.read_part(work, 0)
    with pytest.raises(DatasetError, match=f"{work.listing.name} .* start the run again"):
        planning.commit(work)
    again = plan(source, SECOND)
    make(again)
    planning.commit(again)
    assert len(written(again)) == 6


def test_a_commit_leaves_what_another_run_has_staged_of_other_objects(source: Path) -> None:
    early = plan(source)
    (source / "g").write_text("g")
    late = plan(source, SECOND)
    make(late, [2])  # f and g
    make(early)
    planning.commit(early)
    make(late, [0, 1])
    planning.commit(late)
    assert sorted(written(late)) == list("abcdefg")
    assert staged(late) == []


LIKE_OURS = [
    "copies/part-0123456789abcdef-01234567.parquet",
    "_staging/x.jpg",
    "_SUCCESS",
    "embeddings/_SUCCESS",
    "runs/20260101T000000-abcdef-01234567.parquet",
    "pictures/ab/" + 64 * "0" + "-0-01234567.jpg",
    "truth.csv",
    ".partial-x.jpg",
    ".lock",
]


def plant(folder: Path) -> None:
    for name in LIKE_OURS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize("out", ["out", "in/out", "."])
def test_a_name_like_ours_hides_no_upload(source: Path, out: str) -> None:
    plant(source)
    assert finish(source, source.parent / out).listed == 7 + len(LIKE_OURS)
    again = planning.make(COPIES, str(source), str(source.parent / out), IDS, {}, SECOND)
    assert again.committed


def test_what_is_left_out_is_said(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = source.parent / "out"
    finish(source, out)
    (source / "results").symlink_to(out)
    (source / "x").symlink_to(source / "a")
    plan(source, SECOND)
    [line] = caplog.messages
    assert line.startswith(f"{source}: ") and "4 files below --out are results" in line
    assert "2 links were followed" in line


@pytest.mark.parametrize("marker", ["_SUCCESS", "embeddings/_SUCCESS"])
def test_a_planted_marker_is_an_object_and_a_warning(
    source: Path, marker: str, caplog: pytest.LogCaptureFixture
) -> None:
    (source / marker).parent.mkdir(exist_ok=True)
    (source / marker).write_text("[" * 100_000)
    assert plan(source).listed == 8
    [line] = caplog.messages
    assert marker in line and f"write dataset:{source}" in line


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}").write_text("x")
    return folder


@pytest.mark.parametrize(("before", "gone", "fails"), [(100, 10, False), (100, 11, True), (99, 90, False)])
def test_a_corpus_that_shrinks_much_fails_the_run(
    tmp_path: Path, before: int, gone: int, fails: bool
) -> None:
    images, out = many(tmp_path / "in", before), tmp_path / "out"
    first = finish(images, out)
    for path in sorted(images.iterdir())[:gone]:
        path.unlink()
    if fails:
        files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(StorageError, match=r"100 pictures have rows .* 89 .*--allow-shrink"):
            finish(images, out, SECOND)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
        assert len(written(first)) == before
    finish(images, out, THIRD, allow_shrink=True)
    assert len(written(first)) == before - gone


def test_a_corpus_whose_new_files_cannot_be_read_is_not_committed(tmp_path: Path) -> None:
    images, out = many(tmp_path / "in", 100), tmp_path / "out"
    first = finish(images, out)
    for path in list(images.iterdir())[:20]:
        path.write_text("other")
    work = planning.make(COPIES, str(images), str(out), IDS, {}, SECOND)
    objects = planning.read_part(work, 0)
    bad = [parts.reject_row(o, Reject(Reason.UNREADABLE), SECOND.run_id) for o in objects]
    parts.write(work.out, COPIES, objects, work.lineage, iter([(None, bad)]))
    with pytest.raises(StorageError, match="80 at most"):
        planning.commit(work)
    assert len(written(first)) == 100
    planning.commit(replace(work, allow_shrink=True))
    assert len(written(first)) == 80


def write_by_kind(work: Plan) -> None:
    """Write one part: a reject for `bad` and for what cannot be looked at, a row for every other object."""
    objects = [o for i in range(work.parts) for o in planning.read_part(work, i)]
    good = [o for o in objects if o.generation and not o.uri.endswith("bad")]
    bad = [
        parts.reject_row(o, Reject(Reason.VANISHED), work.lineage.run_id) for o in objects if o not in good
    ]
    rows = [{"uri": o.uri, "generation": o.generation} for o in good]
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA) if rows else None
    parts.write(work.out, COPIES, objects, work.lineage, iter([(batch, bad)]))


def test_what_a_link_no_longer_shows_keeps_its_rows(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "more").mkdir(parents=True)
    for name in ("g", "more/h"):
        (disk / name).write_text(name)
    (source / "g").symlink_to(disk / "g")
    (source / "linked").symlink_to(disk / "more")
    (source / "never").symlink_to(tmp_path / "nowhere")
    first = plan(source)
    write_by_kind(first)
    planning.commit(first)
    disk.rename(tmp_path / "not-mounted")
    again = plan(source, SECOND)
    assert listed(again) == ["bad", "linked", "never"] and again.listed == 11
    write_by_kind(again)
    planning.commit(again)
    assert set(written(first)) == set("abcdefgh")


def test_hidden_files_do_not_stand_for_a_disk_that_is_not_mounted(source: Path) -> None:
    finish(source, source.parent / "out")
    for path in source.iterdir():
        path.unlink()
    (source / ".not-mounted").touch()
    with pytest.raises(StorageError, match="is it mounted"):
        plan(source, SECOND)
