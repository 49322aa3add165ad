"""Parquet files with pictures: rows are named, read and given their fields; hostile ones are refused."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

from id2core.sources import parquet_rows, registry
from id2core.sources.base import Item
from id2core.sources.parquet_rows import RowFile
from id2core.store import parquet_images, storage
from id2core.store.rejects import Reason, Reject

LIMIT = 1 << 20


def listed(uri: str) -> list[Item]:
    return [item for item in registry.parse(uri).items() if isinstance(item, Item)]


def outcomes(path: Path) -> list[tuple[str, bytes | Reason]]:
    items = listed(f"parquet:{path}")
    assert len({(i.obj.uri, i.obj.generation) for i in items}) == len(items)
    read = [storage.read_object(item.obj, LIMIT) for item in items]
    names = [item.obj.uri.removeprefix(str(path)) for item in items]
    return [(n, r.reason if isinstance(r, Reject) else r) for n, r in zip(names, read, strict=True)]


def test_rows_have_their_names_pictures_and_fields(tmp_path: Path) -> None:
    images = [{"bytes": b"a", "path": "p"}, {"bytes": b"bb", "path": None}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(images, kind),
            "id": ["x#1.jpg", "x 2", None],
            "uploader": ["u", "u", None],
            "likes": [1, 2, 3],
            "tags": [["not flat"], [], None],
        }
    )
    pq.write_table(table, tmp_path / "1.parquet", row_group_size=2)
    pq.write_table(pa.table({"content": [b"ccc"]}), tmp_path / "2.parquet")
    items = listed(f"parquet:{tmp_path}")
    names = [item.obj.uri.removeprefix(f"{tmp_path}/") for item in items]
    assert names == ["1.parquet#x\\x231.jpg", "1.parquet#x 2", "1.parquet#2", "2.parquet#0"]
    assert [storage.read_object(item.obj, LIMIT) for item in items[:2]] == [b"a", b"bb"]
    assert items[1].fields == {"uploader": "u", "likes": 2} and items[3].fields is None
    empty = storage.read_object(items[2].obj, LIMIT)
    assert isinstance(empty, Reject) and empty.reason == Reason.EMPTY


def test_bad_names_cost_one_row_each(tmp_path: Path) -> None:
    names = ["a", "a", "../x", "n\n", "x" * 9999, "", "http://cdn/a.jpg", "/abs"]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"bytes": [b"1"] * len(names), "uri": names}), path)
    results = outcomes(path)
    assert [name for name, r in results if r == b"1"] == ["#a", "#http://cdn/a.jpg", "#/abs"]
    assert sorted(str(r) for _, r in results if isinstance(r, Reason)) == [
        "duplicate",
        *["unsafe_member"] * 4,
    ]


def test_a_file_that_cannot_be_read_is_one_row(tmp_path: Path) -> None:
    for number, table in enumerate([pa.table({"image": [1]}), pa.table({"text": ["x"]})]):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        assert outcomes(tmp_path / f"{number}.parquet") == [("", Reason.UNSUPPORTED)]
    whole = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    assert outcomes(tmp_path / "cut.parquet") == [("", Reason.TRUNCATED)]


def test_a_row_group_that_takes_too_much_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "ROW_GROUP_BYTES", 5000)
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())]), compression="zstd") as writer:
        for picture in (b"small", bytes(100_000), b"tail"):
            writer.write_table(pa.table({"image": [picture]}))
    assert outcomes(path) == [("#0", b"small"), ("#row-group-1", Reason.OVER_BUDGET), ("#2", b"tail")]


def test_a_million_references_to_a_long_text_stay_small(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["t" * 5_000_000])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"i"] * 3000, "text": text}), path)
    items = registry.parse(f"parquet:{path}").items()
    first = next(items)
    assert isinstance(first, Item) and first.fields
    assert len(first.fields["text"]) == parquet_rows.VALUE_BYTES
    assert sum(1 for _ in items) == 2999


def test_a_value_that_python_cannot_hold_costs_no_row(tmp_path: Path) -> None:
    times = pa.array([0, 2**60], pa.int64()).view(pa.timestamp("ms"))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2"], "time": times}), path)
    assert [r for _, r in outcomes(path)] == [b"1", b"2"]
    assert [(item.fields or {})["time"] is None for item in listed(f"parquet:{path}")] == [False, True]


def test_damage_anywhere_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"abc" * 30, b"def" * 30] * 20, "id": list(range(40))}), path)
    whole = path.read_bytes()
    for at in range(4, len(whole) - 8, max(1, len(whole) // 150)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        outcomes(path)


def test_whatever_a_footer_says_the_process_goes_on(tmp_path: Path) -> None:
    """Arrow ends the process where it is asked for a column whose description it dislikes."""
    table = pa.table({"image": [b"a", b"bb"], "id": ["x", "y"], "tags": [["t"], []]})
    file = io.BytesIO()
    pq.write_table(table, file)
    whole, path = file.getvalue(), tmp_path / "x.parquet"
    length = int.from_bytes(whole[-8:-4], "little")
    for at in range(len(whole) - 8 - length, len(whole) - 8, 3):
        data = bytearray(whole)
        data[at] ^= 1 + at % 7
        path.write_bytes(data)
        assert outcomes(path) is not None


def test_columns_that_need_a_key_are_refused(tmp_path: Path) -> None:
    class Client(encryption.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key

    asked = encryption.EncryptionConfiguration("k", column_keys={"k": ["id"]}, plaintext_footer=True)
    factory = encryption.CryptoFactory(lambda _: Client())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), asked)
    table = pa.table({"image": [b"a"], "id": ["x"]})
    pq.write_table(table, tmp_path / "x.parquet", encryption_properties=properties)
    assert outcomes(tmp_path / "x.parquet") == [("", Reason.UNSUPPORTED)]


def test_a_few_bytes_do_not_make_millions_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.nulls(1_000_000, pa.binary())}), path)
    assert path.stat().st_size < 20_000
    assert outcomes(path) == [("", Reason.OVER_BUDGET)]
    pq.write_table(pa.table({"image": pa.nulls(1000, pa.binary())}), path)
    assert len(outcomes(path)) == 1000


def test_values_of_a_large_dictionary_are_made_once(tmp_path: Path) -> None:
    """Asked for 1,024 rows at a time, Arrow makes a dictionary of millions of values anew each time."""
    names = [f"{i:08x}" for i in range(100_000)]
    rows = pa.array([*range(100_000), *[0] * 50_000], pa.int32())
    table = pa.table({"uri": pa.DictionaryArray.from_arrays(rows, names)})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=150_000, dictionary_pagesize_limit=1 << 30)
    began = time.process_time()
    with path.open("rb") as file:
        read = RowFile(file)
        assert [row["uri"] for row in read.rows(0, ["uri"])] == table["uri"].to_pylist()
    assert time.process_time() - began < 20  # it took minutes


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])
@pytest.mark.parametrize("kind", [(pa.string_view(), pa.binary_view()), (pa.large_string(), pa.binary())])
def test_text_is_read_in_every_bounded_encoding(
    tmp_path: Path, encoding: str, kind: tuple[pa.DataType, pa.DataType]
) -> None:
    images = pa.array([b"a", b"bb"], kind[1])
    table = pa.table({"image": images, "id": pa.array(["x", "y"], kind[0])})
    encodings = {"image": encoding, "id": encoding}
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, column_encoding=encodings)
    assert outcomes(tmp_path / "x.parquet") == [("#x", b"a"), ("#y", b"bb")]
