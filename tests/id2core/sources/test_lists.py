"""Lists of URIs: what is allowed is looked up, and each bad line costs one row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.errors import StorageError
from id2core.sources import registry
from id2core.sources.base import Item
from id2core.store import storage
from id2core.store.base import UNSEEN
from id2core.store.rejects import Reason, Reject

LIMIT = 1 << 20


def listed(path: Path | str, *allowed: str) -> list[Item]:
    items = list(registry.parse(f"list:{path}", allowed_places=allowed).items())
    keys = {(i.obj.uri, i.obj.generation) for i in items if isinstance(i, Item)}
    assert len(keys) == len(items)
    return [item for item in items if isinstance(item, Item)]


def outcome(item: Item) -> bytes | Reason:
    read = storage.read_object(item.obj, LIMIT)
    return read.reason if isinstance(read, Reject) else read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("in/a.jpg", "in/sub/b#c.jpg", "other/o.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "other/o.jpg")
    (tmp_path / "in/circle.jpg").symlink_to(tmp_path / "in/circle.jpg")
    return tmp_path / "in"


def test_each_line_ends_in_one_row(folder: Path) -> None:
    other = folder.parent / "other/o.jpg"
    lines = [
        b"\xef\xbb\xbfa.jpg\r",
        b"",
        str(folder / "sub/b#c.jpg").encode(),
        b"./a.jpg",
        b"gone.jpg",
        b"file:///etc/passwd",
        b"../other/o.jpg",
        b"sub/../../other/o.jpg",
        str(other).encode(),
        b"link.jpg",
        b"http://example.com/x.jpg",
        b"gs://bucket/x.jpg",
        b"x" * 10_000_000,
        b"\xff\xfe.jpg",
        b"n\0.jpg",
        b"tab\t\x1b[31m.jpg",
        b"y" * 5000,
        b"a" * 300,
        b"sub",
        b"circle.jpg",
    ]
    path = folder / "list.txt"
    path.write_bytes(b"\n".join(lines))
    items = listed(path)
    names = [item.obj.uri for item in items]
    assert len(items) == len(lines) - 1
    assert names[:3] == [f"{folder}/a.jpg", f"{folder}/sub/b#c.jpg", "./a.jpg"]
    assert names[11] == f"{path}#line-13"
    assert [outcome(item) for item in items] == [
        b"in/a.jpg",
        b"in/sub/b#c.jpg",
        Reason.DUPLICATE,
        Reason.VANISHED,
        *[Reason.NOT_ALLOWED] * 7,
        *[Reason.CORRUPT] * 3,
        *[Reason.UNSAFE_MEMBER] * 2,
        *[Reason.UNREADABLE] * 3,
    ]
    assert items[3].obj.generation == UNSEEN


def test_other_places_are_read_where_they_are_allowed(folder: Path) -> None:
    other = folder.parent / "other"
    (folder / "list.txt").write_text(f"{other}/o.jpg\n{other}-2/o.jpg\n../other/o.jpg\n")
    results = [outcome(item) for item in listed(folder / "list.txt", str(other))]
    assert results == [b"other/o.jpg", Reason.NOT_ALLOWED, Reason.DUPLICATE]


def test_a_csv_file_gives_fields_and_versions(folder: Path) -> None:
    present = storage.find(f"{folder}/a.jpg").generation
    text = f"""\ufeffpost, uri ,generation,caption
p1,a.jpg,{present},"two
lines, and a ""quote\"""
p2,sub/b#c.jpg,1-2,
p3,"open.jpg,,
p4,gone.jpg,,x
p5,too,few

p6,x.jpg,1#tar:0+9,
p7,,,
"""
    path = folder / "list.csv"
    path.write_text(text)
    items = listed(path)
    assert [outcome(item) for item in items] == [
        b"in/a.jpg",
        Reason.CHANGED,
        Reason.CORRUPT,
        Reason.VANISHED,
        Reason.CORRUPT,
        Reason.UNSAFE_MEMBER,
        Reason.CORRUPT,
    ]
    assert items[0].fields == {"post": "p1", "caption": 'two\nlines, and a "quote"'}
    assert items[2].obj.uri == f"{path}#line-5" and items[3].fields == {"post": "p4", "caption": "x"}


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.csv", b"a,b\n1,2\n"), ("x.csv", b""), ("x.csv", b"uri,uri\n"), ("x.parquet", b"none")],
)
def test_a_list_without_a_column_of_uris_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StorageError, match=name):
        listed(tmp_path / name)
    with pytest.raises(StorageError, match="no such list"):
        listed(tmp_path / "none.txt")


def test_a_parquet_list_in_a_bucket_names_its_bucket_alone(gcs: str, tmp_path: Path) -> None:
    place = f"gs://{gcs}/lists"
    for name in ("a.jpg", "b.jpg"):
        storage.write_bytes(f"{place}/{name}", name.encode())
    old = storage.find(f"{place}/b.jpg").generation
    storage.write_bytes(f"{place}/b.jpg", b"newer")
    table = pa.table(
        {
            "uri": ["a.jpg", f"{place}/b.jpg", "../c.jpg", "/etc/passwd", "gs://other/x.jpg", None],
            "generation": [None, old, None, None, None, None],
            "score": [1.5, None, None, None, None, None],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    storage.write_bytes(f"{place}/x.parquet", (tmp_path / "x.parquet").read_bytes())
    items = listed(f"{place}/x.parquet")
    assert [outcome(item) for item in items] == [
        b"a.jpg",
        Reason.CHANGED,
        *[Reason.NOT_ALLOWED] * 3,
        Reason.CORRUPT,
    ]
    assert items[0].fields == {"score": 1.5} and items[1].fields is None
