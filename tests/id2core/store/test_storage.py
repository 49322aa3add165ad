from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from id2core.errors import StorageError
from id2core.store import storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
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


def test_a_place_is_there_even_if_all_in_it_is_hidden(root: str) -> None:
    storage.write_bytes(storage.join(root, ".hidden"), b"x")
    storage.require(root)
    assert storage.list_objects(root) == []
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
    (tmp_path / ".hidden").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9.jpg")).write_bytes(b"x")
    objects = storage.list_objects(str(tmp_path))
    assert [Path(o.uri).name for o in objects] == ["dangling", "latin-\\xe9.jpg", "pipe"]
    reasons = [storage.read_object(o, LIMIT) for o in objects]
    assert [r.reason for r in reasons if isinstance(r, Reject)] == [
        Reason.VANISHED,
        Reason.VANISHED,
        Reason.UNREADABLE,
    ]


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
    uris = [o.uri for o in storage.list_objects(str(root))]
    assert uris == [str(root / "linked/deep/x.jpg"), str(root / "own/x.jpg")]


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
