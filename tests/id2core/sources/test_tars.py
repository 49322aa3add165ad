"""Tar files as anybody may make them: honest ones are listed whole, hostile members cost one row each."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.errors import StorageError
from id2core.sources import registry
from id2core.sources.base import Item
from id2core.store import storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

LIMIT = 1 << 20
Member = tuple[str, bytes]


def tar(members: list[Member | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def items(uri: str) -> list[Item]:
    return [item for item in registry.parse(uri).items() if isinstance(item, Item)]


def below(shard: str, obj: Object) -> str:
    return obj.uri.removeprefix(f"{shard}#")


def outcomes(folder: Path, data: bytes, name: str = "x.tar") -> dict[str, bytes | Reason]:
    """What becomes of each listed name, by a shard that is written first."""
    path = folder / name
    path.write_bytes(data)
    results: dict[str, bytes | Reason] = {}
    for item in items(f"tar:{path}"):
        read = storage.read_object(item.obj, LIMIT)
        key = below(str(path), item.obj)
        assert key not in results
        results[key] = read.reason if isinstance(read, Reject) else read
    return results


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_member_is_read_with_its_fields(
    tmp_path: Path, form: int, pack: Callable[[bytes], bytes]
) -> None:
    long = f"{'d' * 90}/{'e' * 60}/7.jpg"
    fields = {"post": "p1", "likes": 3}
    data = pack(
        tar(
            [
                special("folder", tarfile.DIRTYPE),
                ("./a/1.jpg", b"one"),
                ("./a/1.json", json.dumps(fields).encode()),
                (long, b"long" * 300),
                ("a/2.json", b"{}"),
                ("a/3.json", b"\xff\xd8 a picture"),
                ("empty.png", b""),
            ],
            form,
        )
    )
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    listed = {below(str(path), item.obj): item for item in items(f"tar:{path}")}
    read = {name: storage.read_object(item.obj, LIMIT) for name, item in listed.items()}
    assert read == {
        "a/1.jpg": b"one",
        long: b"long" * 300,
        "a/2.json": b"{}",
        "a/3.json": b"\xff\xd8 a picture",
        "empty.png": b"",
    }
    assert listed["a/1.jpg"].fields == fields and listed[long].fields is None
    assert listed[long].obj.bytes == 1200


def test_a_folder_of_shards_is_listed_in_order(tmp_path: Path) -> None:
    for number in (2, 1):
        (tmp_path / f"{number}.tar").write_bytes(tar([("x.jpg", b"%d" % number)]))
    (tmp_path / "stats.json").write_text("{}")
    (tmp_path / "3.tar.zst").write_bytes(b"?")
    source = registry.parse(f"tar:{tmp_path}")
    everything = list(source.list())
    assert everything == list(source.list())
    objects = [item for item in everything if isinstance(item, Object)]
    names = [o.uri.removeprefix(f"{tmp_path}/") for o in objects]
    assert names == ["1.tar#x.jpg", "2.tar#x.jpg", "3.tar.zst"]
    assert len(everything) - len(objects) == 1
    last = storage.read_object(objects[-1], LIMIT)
    assert isinstance(last, Reject) and last.reason == Reason.UNSUPPORTED


def test_a_shard_in_a_bucket_is_read_by_ranges_of_its_generation(gcs: str) -> None:
    uri = f"gs://{gcs}/tars/s#1.tar"
    storage.write_bytes(uri, tar([(f"{i}.jpg", b"%d" % i * 1000) for i in range(20)]))
    objects = [item.obj for item in items(f"tar:gs://{gcs}/tars")]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda obj: storage.read_object(obj, LIMIT), objects))
    assert read == [b"%d" % i * 1000 for i in range(20)]
    assert objects[3].uri == f"{uri}#3.jpg"
    storage.write_bytes(uri, tar([("0.jpg", b"other")]))
    changed = storage.read_object(objects[0], LIMIT)
    assert isinstance(changed, Reject) and changed.reason == Reason.CHANGED


def test_what_is_no_plain_file_with_a_plain_name_is_refused_by_name(tmp_path: Path) -> None:
    hostile = [
        ("../x.jpg", b"1"),
        ("a/../../y.jpg", b"2"),
        ("/etc/passwd", b"3"),
        ("a\nb.jpg", b"4"),
        ("n" * 5000, b"5"),
        special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
        special("fifo", tarfile.FIFOTYPE),
        special("device", tarfile.CHRTYPE),
        special("odd", b"Q"),
    ]
    data = tar([("good.jpg", b"good"), *hostile, ("good.jpg", b"again"), ("last.jpg", b"last")])
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    listed = items(f"tar:{path}")
    results = [storage.read_object(item.obj, LIMIT) for item in listed]
    reasons = Counter(r.reason for r in results if isinstance(r, Reject))
    assert reasons == {Reason.UNSAFE_MEMBER: len(hostile), Reason.DUPLICATE: 1}
    assert [r for r in results if isinstance(r, bytes)] == [b"good", b"last"]
    assert len({(i.obj.uri, i.obj.generation) for i in listed}) == len(listed)
    assert all(i.obj.uri.isprintable() and len(i.obj.uri) < 5000 for i in listed)
    assert any(i.obj.uri.endswith("#../x.jpg") for i in listed)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(kind: bytes, data: bytes) -> bytes:
    return header("x", b"%011o\0" % len(data), kind) + data + bytes(-len(data) % 512)


GOOD = tar([("good.jpg", b"good")])[:1024]
HUGE = b"\x80" + (10**13).to_bytes(11)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b"", Reason.TRUNCATED),
        (header("x", b"%011o\0" % 900) + b"short", Reason.TRUNCATED),
        (header("x", HUGE) + bytes(5000), Reason.TRUNCATED),
        (header("x", b"\xff" * 12) + bytes(5000), Reason.CORRUPT),
        (header("x", b"-0000000001\0") + bytes(5000), Reason.CORRUPT),
        (header("x", b"\x80" + b"\xff" * 11) + bytes(5000), Reason.CORRUPT),
        (header("x", HUGE, b"x") + bytes(5000), Reason.OVER_BUDGET),
        (header("x", HUGE, b"L") + bytes(5000), Reason.OVER_BUDGET),
        (header("x", b"%011o\0" % 9, b"x") + b"99999 a=b".ljust(512, b"\0") + bytes(1024), Reason.CORRUPT),
        (
            header("x", b"%011o\0" % 20, b"x")
            + b"20 size=-9999999999\n".ljust(512, b"\0")
            + header("x", b"%011o\0" % 0),
            Reason.CORRUPT,
        ),
        (extension(b"x", b"6 a=b\n" * 2000), Reason.OVER_BUDGET),
        (extension(b"x", b"6 a=b\n") * 20, Reason.OVER_BUDGET),
        (b"noise" * 400, Reason.CORRUPT),
        (bytes(1024) + b"hidden" * 300_000, Reason.CORRUPT),
        (bytes(9000), None),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_was_whole_is_kept_and_the_rest_is_one_row(
    tmp_path: Path, rest: bytes, reason: Reason | None, pack: Callable[[bytes], bytes]
) -> None:
    results = outcomes(tmp_path, pack(GOOD + rest))
    assert results.pop("good.jpg") == b"good"
    assert list(results.values()) == ([reason] if reason else [])
    assert set(results) <= {str(tmp_path / "x.tar")}


def test_a_name_of_a_million_dots_costs_no_time(tmp_path: Path) -> None:
    data = GOOD + extension(b"L", b"./" * (1 << 19)) + header("x", b"%011o\0" % 0) + bytes(1024)
    began = time.process_time()
    assert outcomes(tmp_path, data) == {"good.jpg": b"good", "": Reason.UNSAFE_MEMBER}
    assert time.process_time() - began < 5  # it took 20 s where each `./` was cut off for itself


def test_fields_of_one_name_have_a_budget(tmp_path: Path) -> None:
    heavy = b'{"x": "%s"}' % (b"y" * (700 << 10))
    data = tar([("a.1.json", heavy), ("a.2.json", heavy), ("a.3.json", b'{"p": 1}'), ("a.jpg", b"a")])
    (tmp_path / "x.tar").write_bytes(data)
    listed = {below(str(tmp_path / "x.tar"), item.obj): item for item in items(f"tar:{tmp_path}/x.tar")}
    assert listed.keys() == {"a.2.json", "a.jpg"}  # what is not read as fields is listed like any member
    assert listed["a.jpg"].fields == json.loads(heavy)


def test_sparse_members_are_refused_and_what_follows_is_read(tmp_path: Path) -> None:
    sparse = bytearray(header("sparse", b"%011o\0" % 512, b"S"))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    info = tarfile.TarInfo("pax")
    info.size, info.pax_headers = 0, {"GNU.sparse.major": "1", "GNU.sparse.realsize": "9" * 30}
    data = GOOD + bytes(sparse) + bytes(1024) + tar([info, ("last.jpg", b"last")])
    results = outcomes(tmp_path, data)
    assert results == {
        "good.jpg": b"good",
        "sparse": Reason.UNSAFE_MEMBER,
        "pax": Reason.UNSAFE_MEMBER,
        "last.jpg": b"last",
    }


def test_a_bomb_keeps_what_came_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    with gzip.open(path, "wb") as file:
        file.write(GOOD + header("zeros.bin", b"%011o\0" % (300 << 20)))
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    results = outcomes(tmp_path, path.read_bytes(), "x.tgz")
    assert results == {"good.jpg": b"good", str(path): Reason.OVER_BUDGET}


def test_a_cut_or_damaged_gzip_file_keeps_what_came_before(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", bytes(((i * j * 7919) >> 3) % 256 for j in range(4000))) for i in range(200)]
    packed = gzip.compress(tar(members))
    cut = outcomes(tmp_path, packed[: len(packed) // 2], "cut.tar.gz")
    assert list(cut.values())[-1] == Reason.TRUNCATED
    read = {name: data for name, data in cut.items() if isinstance(data, bytes)}
    assert len(read) == len(cut) - 1 and read.items() <= dict(members).items()


def test_a_nested_tar_is_a_file_like_any_other(tmp_path: Path) -> None:
    inner = tar([("a.jpg", b"a")])
    assert outcomes(tmp_path, tar([("inner.tar", inner)])) == {"inner.tar": inner}


def test_many_members_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.tar"
    block = [header(f"{i:06d}.jpg", b"%011o\0" % 0) for i in range(20_000)]
    path.write_bytes(b"".join(block) + bytes(1024))
    tracemalloc.start()
    count = sum(1 for _ in registry.parse(f"tar:{path}").list())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000 and peak < 4 << 20


def test_what_is_no_tar_is_one_row(tmp_path: Path) -> None:
    assert outcomes(tmp_path, b"not a tar" * 200) == {str(tmp_path / "x.tar"): Reason.CORRUPT}
    assert outcomes(tmp_path, b"") == {str(tmp_path / "x.tar"): Reason.TRUNCATED}
    with pytest.raises(StorageError, match="no such folder"):
        list(registry.parse(f"tar:{tmp_path}/none.tar").list())


@given(data=st.data())
def test_whatever_is_done_to_a_tar_file_listing_and_reading_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    members = [(f"{i}.jpg", b"%d" % i * 200) for i in range(4)]
    whole = bytearray(tar([*members, ("0.json", b'{"a": 1}')], tarfile.GNU_FORMAT))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "property.tar"
    path.write_bytes(whole[:cut])
    listed = items(f"tar:{path}")
    assert len({(i.obj.uri, i.obj.generation) for i in listed}) == len(listed)
    for item in listed:
        read = storage.read_object(item.obj, LIMIT)
        assert isinstance(read, Reject) or len(read) == item.obj.bytes
