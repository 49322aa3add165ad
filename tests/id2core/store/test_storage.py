from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from hypothesis import given
from hypothesis import strategies as st

from id2core.errors import StorageError
from id2core.store import names, storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object, Remark
from tests.toy_store import OBJECTS, ToyStore

LIMIT = 1 << 20


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same behavior is asked of a local folder and of a bucket."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"


def test_what_is_written_is_listed_and_read(root: str) -> None:
    for name in ("b/2.bin", "a.bin", "b/1.bin"):
        storage.write_bytes(storage.join(root, name), name.encode())
    objects = storage.list_objects(root)
    assert [o.uri for o in objects] == [storage.join(root, n) for n in ("a.bin", "b/1.bin", "b/2.bin")]
    assert [o.bytes for o in objects] == [5, 7, 7]
    assert storage.read_object(objects[1], LIMIT) == b"b/1.bin"
    assert storage.list_objects(storage.join(root, "a.bin")) == objects[:1]


def test_a_prefix_is_a_folder_not_a_beginning_of_names(root: str) -> None:
    storage.write_bytes(storage.join(root, "set/x"), b"1")
    storage.write_bytes(storage.join(root, "set-2/y"), b"2")
    assert [o.uri for o in storage.list_objects(storage.join(root, "set"))] == [storage.join(root, "set/x")]


def test_what_came_after_the_listing_is_not_read(root: str) -> None:
    unseen = Object(storage.join(root, "x"), storage.UNSEEN, 0)
    reasons = []
    for data in (None, b"new"):
        if data:
            storage.write_bytes(unseen.uri, data)
        read = storage.read_object(unseen, LIMIT)
        reasons += [read.reason] if isinstance(read, Reject) else [read]
    assert reasons == [Reason.VANISHED, Reason.CHANGED]


def test_only_the_listed_version_is_read(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"old")
    [listed] = storage.list_objects(root)
    storage.write_bytes(uri, b"newer")
    changed = storage.read_object(listed, LIMIT)
    assert isinstance(changed, Reject) and changed.reason == Reason.CHANGED
    storage.delete(uri)
    storage.delete(uri)
    vanished = storage.read_object(listed, LIMIT)
    assert isinstance(vanished, Reject) and vanished.reason == Reason.VANISHED


def test_a_move_takes_an_object_whole_over_what_is_there(root: str) -> None:
    source, target = (storage.join(root, name) for name in ("from/x", "to/below/x"))
    for data in (b"first", b"second" * 10_000):
        storage.write_bytes(source, data)
        storage.move(source, target)
        assert storage.read_bytes(target) == data and not storage.exists(source)
    with pytest.raises(FileNotFoundError):
        storage.move(source, target)
    assert [o.uri for o in storage.list_objects(root)] == [target]


def test_a_copy_outlives_what_it_is_of_and_can_be_made_again(root: str) -> None:
    source, target = (storage.join(root, name) for name in ("from/x", "to/below/x"))
    storage.write_bytes(target, b"before")
    storage.write_bytes(source, b"copied" * 10_000)
    for _ in range(2):
        storage.copy(source, target)
    storage.delete(source)
    assert storage.read_bytes(target) == b"copied" * 10_000
    with pytest.raises(FileNotFoundError):
        storage.copy(source, target)


def test_what_goes_to_another_disk_is_copied(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        source, target = tmp_path / "x", Path(elsewhere) / "below" / "x"
        source.write_bytes(b"content")
        storage.copy(str(source), str(target))
        assert target.read_bytes() == source.read_bytes()
        storage.move(str(source), str(target))
        assert target.read_bytes() == b"content" and not source.exists()
        assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_too_large_is_rejected_by_its_listed_size_alone(root: str) -> None:
    reject = storage.read_object(Object(storage.join(root, "never-written"), "1", LIMIT + 1), LIMIT)
    assert isinstance(reject, Reject) and reject.reason == Reason.TOO_LARGE_FILE


def test_a_file_that_grows_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "grows.jpg"
    path.write_bytes(b"x" * 1000)
    (listed,) = storage.list_objects(str(tmp_path))
    os.truncate(path, 3 * 2**30)
    tracemalloc.start()
    reject = storage.read_object(listed, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(reject, Reject) and reject.reason == Reason.CHANGED
    assert peak < 2**20


def test_a_hidden_name_hides_nothing(root: str) -> None:
    for name in (".x.jpg", ".hidden/y.jpg", ".partial-z.jpg", ".lock"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.require(root)
    assert not storage.is_empty(root)
    listed = [o.uri.removeprefix(f"{root}/") for o in storage.survey(root).objects]
    assert listed == [".hidden/y.jpg", ".lock", ".partial-z.jpg", ".x.jpg"]
    ours = [o.uri.removeprefix(f"{root}/") for o in storage.list_objects(root)]
    assert ours == [".hidden/y.jpg", ".x.jpg"]
    with pytest.raises(StorageError):
        storage.require(storage.join(root, "nowhere"))


def test_ranges_can_be_read(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, bytes(range(100)))
    with storage.open_input(uri) as file:
        file.seek(90)
        assert file.read() == bytes(range(90, 100))
    assert storage.exists(uri) and not storage.exists(uri + "y")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri + "y")


def test_an_interrupted_write_leaves_the_old_object(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.replacing(uri) as path:
        path.write_bytes(b"half of the new")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"old"
    assert len(storage.list_objects(root)) == 1


def test_odd_local_files_are_rejects_and_never_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "past-a-file").symlink_to(tmp_path / "pipe/x")
    objects = storage.list_objects(str(tmp_path))
    reads = {Path(o.uri).name: storage.read_object(o, LIMIT) for o in objects}
    assert {name: read.reason for name, read in reads.items() if isinstance(read, Reject)} == {
        "dangling": Reason.VANISHED,
        "loop": Reason.UNREADABLE,
        "past-a-file": Reason.UNREADABLE,
        "pipe": Reason.UNREADABLE,
    }
    for name in ("dangling", "loop", "past-a-file"):
        assert next(o for o in objects if o.uri.endswith(name)).generation == storage.UNSEEN
    with pytest.raises(StorageError, match="not a regular file"):
        storage.read_bytes(str(tmp_path / "pipe"))


NAMES = [
    b"plain.jpg",
    b"latin-\xe9.jpg",
    b"utf-8-\xc3\xa9.jpg",
    b"decomposed-e\xcc\x81.jpg",
    b"decomposed-\xc3\xa9.jpg",
    b"x\xff.jpg",
    b"x\\xff.jpg",
    b"x\\x5cxff.jpg",
    b"x\\x41.jpg",
    b"a\\b.jpg",
    b"surrogate-\xed\xa0\x80.jpg",
    b"line\nbreak\r\t\x1b[31m.jpg",
    "gpj.\u202eexe.jpg".encode(),
    b"n" * 255,
    b" .jpg",
    b"gs:",
    b"~",
]


def test_every_name_has_a_spelling_of_its_own_and_is_read_by_its_bytes(tmp_path: Path) -> None:
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    objects = storage.list_objects(str(tmp_path))
    assert {storage.read_object(o, LIMIT) for o in objects} == set(NAMES)
    assert len({o.uri for o in objects}) == len(NAMES)
    for obj in objects:
        obj.uri.encode()
        assert storage.normalize(obj.uri) == obj.uri and storage.list_objects(obj.uri) == [obj]
    assert f"{tmp_path}/latin-\\xe9.jpg" in {o.uri for o in objects}


@given(
    st.lists(st.sampled_from([b"\\", b"x", b"5", b"c", b"f", b"\xff", b"\xc3", b"\xa9", b"\n"]), max_size=9)
)
def test_a_spelling_leads_back_to_the_name(parts: list[bytes]) -> None:
    path = os.fsdecode(b"".join(parts))
    spelled = names.spell(path)
    assert names.native(spelled) == path and names.spell(names.native(spelled)) == spelled
    spelled.encode()


def test_a_path_that_no_call_takes_is_listed_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=deep)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = deeper
    os.close(os.open("b.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=deep))
    os.close(deep)
    first, long = storage.list_objects(str(tmp_path))
    assert storage.read_object(first, LIMIT) == b"a" and long.generation == storage.UNSEEN
    unread = storage.read_object(long, LIMIT)
    assert isinstance(unread, Reject) and unread.reason == Reason.UNREADABLE


AS_NOBODY = """
import os, sys
from id2core.errors import StorageError
from id2core.store import storage
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    print(len(storage.list_objects(sys.argv[1])))
except StorageError as error:
    print("error:", error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's privileges")
@pytest.mark.parametrize(("mode", "words"), [(0o444, "locked/a.jpg"), (0o311, "locked "), (0o000, "locked ")])
def test_a_folder_that_cannot_be_looked_into_fails_the_listing(mode: int, words: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        root = Path(place)
        root.chmod(0o755)
        for folder in ("open", "locked"):
            (root / folder).mkdir()
            (root / folder / "a.jpg").write_bytes(b"a")
        (root / "elsewhere").symlink_to("/root/nothing")
        (root / "locked").chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, place], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"error: {root}/{words}") and "Permission denied" in done.stdout
        (root / "locked").chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, place], capture_output=True, text=True, check=True
        )
        assert done.stdout == "3\n"  # a link that leads nowhere for this user is a row


@pytest.mark.parametrize("uri", ["s3://bucket/x", "gs:///x", "gs://", "http://host/x"])
def test_foreign_uris_are_refused_by_name(uri: str) -> None:
    with pytest.raises(StorageError, match="gs://"):
        storage.normalize(uri)


def test_a_missing_folder_is_an_error(root: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        storage.list_objects("gs://no-such-bucket/x" if storage.is_remote(root) else str(tmp_path / "no"))


def test_a_conditional_write_never_overwrites_what_was_not_read(root: str) -> None:
    uri = storage.join(root, "x")
    assert storage.write_if(uri, b"first", "") and not storage.write_if(uri, b"other", "")
    data, mark = storage.read_marked(uri)
    assert data == b"first" and storage.write_if(uri, b"next!", mark)
    assert not storage.write_if(uri, b"other", mark)
    storage.delete(uri)
    assert not storage.write_if(uri, b"other", mark)
    with pytest.raises(FileNotFoundError):
        storage.read_marked(uri)


def test_links_to_folders_are_followed_and_loops_are_seen(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "own", elsewhere / "deep"):
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(b"x")
    (root / "a-link-within").symlink_to(root / "own")
    (root / "linked").symlink_to(elsewhere)
    (root / "own" / "loop").symlink_to(root)
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    (root / "up").symlink_to(tmp_path)
    (root / "deep.jpg").symlink_to(elsewhere / "deep/x.jpg")
    listing = storage.survey(str(root))
    assert [o.uri for o in listing.objects] == [
        str(root / name) for name in ("deep.jpg", "linked/deep/x.jpg", "own/x.jpg")
    ]
    assert listing.remarks == {Remark.LINK: 2, Remark.SAME_FOLDER: 3, Remark.FOLDER_ABOVE: 1}


def test_an_object_that_bears_the_name_of_a_prefix_hides_nothing(gcs: str, tmp_path: Path) -> None:
    root = f"gs://{gcs}/{tmp_path.name}/corpus"
    for name in ("00.jpg", "01.jpg"):
        storage.write_bytes(f"{root}/{name}", b"x")
    before = storage.list_objects(root)
    storage.write_bytes(root, b"planted")
    listing = storage.survey(root)
    assert listing.objects == before and listing.remarks == {Remark.NAMESAKE: 1}
    for obj in before:
        storage.delete(obj.uri)
    assert [o.uri for o in storage.list_objects(root)] == [root]


def test_odd_names_in_a_bucket_are_objects(gcs: str, tmp_path: Path) -> None:
    from google.cloud import storage as client

    root = f"gs://{gcs}/{tmp_path.name}"
    bucket = client.Client(project="t", credentials=AnonymousCredentials()).bucket(gcs)
    odd = ["a//b.jpg", "/c.jpg", "../d.jpg", "./e.jpg", ".f.jpg", "x\\xff.jpg", "é.jpg", "slash/"]
    for name in odd:
        bucket.blob(f"{tmp_path.name}/{name}").upload_from_string(name.encode())
    bucket.blob(f"{tmp_path.name}/marker/").upload_from_string(b"")
    listing = storage.survey(root)
    assert {o.uri.removeprefix(f"{root}/") for o in listing.objects} == set(odd)
    assert listing.remarks == {Remark.FOLDER_MARKER: 1}
    assert {storage.read_object(o, LIMIT) for o in listing.objects} == {name.encode() for name in odd}


def test_a_new_source_of_images_is_a_store_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage.STORES, "toy", ToyStore)
    monkeypatch.setitem(OBJECTS, "toy://photos/a.jpg", b"a")
    root = storage.normalize("toy://photos/")
    storage.require(root)
    [listed] = storage.list_objects(root)
    assert storage.read_object(listed, LIMIT) == b"a" and storage.read_bytes(listed.uri) == b"a"
    with storage.open_input(listed.uri) as file:
        assert file.read() == b"a"
    assert storage.is_remote(root) and storage.is_absolute(root) and storage.exists(listed.uri)
    gone = storage.read_object(Object("toy://photos/b.jpg", "1", 1), LIMIT)
    assert isinstance(gone, Reject) and gone.reason == Reason.VANISHED
    with pytest.raises(StorageError, match="can only be read"):
        storage.write_bytes(f"{root}/c.jpg", b"c")
    with pytest.raises(StorageError, match="can only be read"):
        storage.update(listed.uri, lambda old: b"c")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for write in (
        lambda uri: storage.write_bytes(uri, b"x"),
        lambda uri: storage.write_if(uri, b"x", ""),
        lambda uri: storage.update(uri, lambda _: b"x"),
    ):
        with pytest.raises(StorageError, match=r"x\.txt|file"):
            write(f"{tmp_path}/file/below/x.txt")
    with pytest.raises(StorageError, match="No space left"), storage.replacing(f"{tmp_path}/full") as path:
        path.unlink()
        path.symlink_to("/dev/full")
        path.write_bytes(b"x" * 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalize("~no-such-user/x") == f"{tmp_path}/~no-such-user/x"
