"""Members are read by what their generation says: a range of a tar file, a row, or a refusal."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.store import members, parquet_images, storage, unpacking
from id2core.store.parquet_images import ShardError, ShardFile
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

LIMIT = 1 << 20


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"gs://{request.getfixturevalue('gcs')}/members-{tmp_path.name}"


def written(root: str, name: str, data: bytes) -> Object:
    uri = storage.join(root, name)
    storage.write_bytes(uri, data)
    return storage.find(uri)


def reason(result: bytes | Reject) -> Reason | None:
    return result.reason if isinstance(result, Reject) else None


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def test_a_range_of_exactly_the_listed_version_is_read(root: str) -> None:
    shard = written(root, "a#b.tar", bytes(range(256)))
    member = members.member(shard, "x.jpg", members.TAR, "16+4", 4)
    assert storage.read_object(member, LIMIT) == bytes([16, 17, 18, 19])
    assert reason(storage.read_object(members.member(shard, "x", members.TAR, "250+9", 9), LIMIT)) == (
        Reason.TRUNCATED
    )
    assert reason(storage.read_object(member, 3)) == Reason.TOO_LARGE_FILE
    written(root, "a#b.tar", bytes(100))
    assert reason(storage.read_object(member, LIMIT)) == Reason.CHANGED
    storage.delete(shard.uri)
    assert reason(storage.read_object(member, LIMIT)) == Reason.VANISHED


def test_a_plain_file_may_have_the_uri_of_a_member(root: str) -> None:
    """The generation says what is a member, so both are read as what they are."""
    shard = written(root, "x.tar", b"0123456789")
    plain = written(root, "x.tar#c.jpg", b"plain")
    member = members.member(shard, "c.jpg", members.TAR, "2+3", 3)
    assert plain.uri == member.uri and plain.generation != member.generation
    assert storage.read_object(plain, LIMIT) == b"plain"
    assert storage.read_object(member, LIMIT) == b"234"


def test_names_are_spelled_one_to_one_and_printably() -> None:
    raw = [b"a#b", b"a\\x23b", b"caf\xe9", "café".encode(), b"a\nb", b"a\\nb", b"\x00", b"\x7f"]
    spelled = [members.spell(name) for name in raw]
    assert len(set(spelled)) == len(raw)
    assert all("#" not in name and name.isprintable() for name in spelled)
    assert spelled[3] == "café" and spelled[5] == "a\\nb"


def test_a_refusal_is_read_as_its_reason(tmp_path: Path) -> None:
    obj = members.refused(f"{tmp_path}/x.tar#../etc", "1-2", Reason.UNSAFE_MEMBER, "it leads out: 3 of 4#5")
    assert storage.read_object(obj, LIMIT) == Reject(Reason.UNSAFE_MEMBER, "it leads out: 3 of 4#5")


def test_a_gzip_file_is_unpacked_once(root: str) -> None:
    data = bytes(range(256)) * 5000
    shard = written(root, "x.tgz", gzip.compress(data) + gzip.compress(b"tail") + b"\0" * 20)
    at_end = members.member(shard, "t", members.TGZ, f"{len(data)}+4", 4)
    assert storage.read_object(at_end, LIMIT) == b"tail"
    damaged = written(root, "y.tgz", gzip.compress(data)[:-4] + b"\0" * 4)
    first = members.member(damaged, "f", members.TGZ, "1000+256", 256)
    assert storage.read_object(first, LIMIT) == data[1000:1256]
    behind = members.member(damaged, "z", members.TGZ, "9999999+1", 1)
    assert reason(storage.read_object(behind, LIMIT)) == Reason.TRUNCATED


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size >> 20):
        yield bytes(1 << 20)


def test_a_gzip_bomb_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.writelines(zeros(100 << 20))
    with path.open("rb") as file, pytest.raises(unpacking.UnpackError, match="200 times"):
        unpacking.Gunzip(file).read(1 << 30)
    with path.open("rb") as file, pytest.raises(unpacking.UnpackError, match="more than 1048576 bytes"):
        unpacking.Gunzip(file, most=1 << 20).read(1 << 30)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_row_of_a_parquet_file_is_read(root: str, dictionary: bool, nested: bool) -> None:
    pictures = [b"one" * 50, None, b"two" * 70, b"one" * 50]
    plain = pa.array(pictures, pa.binary())
    column = pa.StructArray.from_arrays([plain], ["bytes"]) if nested else plain
    data = parquet(pa.table({"image": column}), row_group_size=2, use_dictionary=dictionary)
    shard = written(root, "x.parquet", data)
    rows = [members.member(shard, str(i), members.PARQUET, f"{i // 2}+{i % 2}", 0) for i in range(4)]
    read = [storage.read_object(row, LIMIT) for row in rows]
    assert [read[0], read[2], read[3]] == [pictures[0], pictures[2], pictures[3]]
    assert reason(read[1]) == Reason.EMPTY
    assert reason(storage.read_object(rows[2], 100)) == Reason.TOO_LARGE_FILE


def test_a_million_references_to_one_large_value_are_in_memory_once(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), [b"x" * 10_000_000])
    shard = written(str(tmp_path), "bomb.parquet", parquet(pa.table({"image": values})))
    assert shard.bytes < 1 << 20
    row = members.member(shard, "9", members.PARQUET, "0+999999", 0)
    before = pa.total_allocated_bytes()
    data = storage.read_object(row, 16 << 20)
    assert isinstance(data, bytes) and len(data) == 10_000_000
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_a_row_group_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    pages = pa.table({"image": pa.array([bytes(50 << 20)] * 6, pa.large_binary())})
    data = parquet(pages, compression="zstd", use_dictionary=False)
    shard = written(str(tmp_path), "bomb.parquet", data)
    reject = storage.read_object(members.member(shard, "0", members.PARQUET, "0+0", 0), 1 << 30)
    assert isinstance(reject, Reject) and reject.reason == Reason.OVER_BUDGET
    with (tmp_path / "bomb.parquet").open("rb") as file:
        chunk = ShardFile.open(file).chunk(0, "image")
        with pytest.raises(parquet_images.parquet_pages.PageError, match="more than"):
            parquet_images.parquet_pages.check_chunk(file, chunk, 100 << 20)


def test_values_that_repeat_the_one_before_are_refused(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x" * 1000] * 10, pa.binary())})
    data = parquet(table, use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"})
    shard = written(str(tmp_path), "delta.parquet", data)
    reject = storage.read_object(members.member(shard, "0", members.PARQUET, "0+0", 0), LIMIT)
    assert isinstance(reject, Reject) and "no bound" in reject.detail


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Reason.TRUNCATED),
        (b"PAR1" + b"x" * 20, Reason.TRUNCATED),
        (b"PAR1" + b"x" * 40 + b"\xff\xff\xff\x7fPAR1", Reason.OVER_BUDGET),
        (b"PAR1" + b"x" * 40 + b"\x10\x00\x00\x00PAR1", Reason.CORRUPT),
        (b"PARE" + b"x" * 40 + b"\x10\x00\x00\x00PARE", Reason.UNSUPPORTED),
        (parquet(pa.table({"image": ["text"]})), Reason.UNSUPPORTED),
        (parquet(pa.table({"other": [b"x"]})), Reason.UNSUPPORTED),
    ],
)
def test_what_is_no_parquet_file_of_pictures_is_named(data: bytes, kind: Reason) -> None:
    with pytest.raises(ShardError) as error:
        parquet_images.image_column(ShardFile.open(io.BytesIO(data)).parquet.schema_arrow)
    assert error.value.reject.reason == kind
