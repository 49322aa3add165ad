"""A file with some columns made anew and the others copied is the one that a writer of all rows makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.errors import DatasetError
from id2core.store import datasets, moves, parquet, schemas
from id2core.store.datasets import Change, FileRecord
from tests import inset_columns

LATENT, BEFORE, AFTER = 6, 3, 4
OLD = schemas.embeddings_schema(LATENT, BEFORE)
NEW = schemas.embeddings_schema(LATENT, AFTER)


def make(table: pa.Table) -> dict[str, pa.Array]:
    latents = schemas.column_to_vectors(table["latent"])
    return {
        "descriptor": schemas.vectors_to_array(latents[:, :AFTER].astype(np.float32) * 2, AFTER),
        "transform_id": pa.repeat(pa.scalar("new"), len(table)),
    }


CHANGE = Change(NEW, ("latent",), ("descriptor", "transform_id"), make)


def draw(sizes: Sequence[int], seed: int = 0, schema: pa.Schema = OLD) -> list[pa.Table]:
    """Tables of so many rows; some columns have nulls, and some nothing else."""
    rng = np.random.default_rng(seed)
    tables = []
    for size in sizes:
        columns: dict[str, Any] = {field.name: pa.nulls(size, field.type) for field in schema}
        words = rng.choice(["", "gs://b/ä.jpg", "x" * 200], size)
        columns |= {
            "image_id": [f"{seed:032x}{i:032x}" for i in range(size)],
            "uri": pa.array(words, mask=rng.random(size) < 0.3),
            "bytes": pa.array(rng.integers(-(2**62), 2**62, size), mask=rng.random(size) < 0.3),
            "encoder_id": pa.repeat("e", size),
            "transform_id": pa.repeat("old", size),
            "embedded_at": pa.array(rng.integers(0, 2**50, size), pa.timestamp("us", tz="UTC")),
            "latent": schemas.vectors_to_array(rng.normal(size=(size, LATENT)).astype(np.float16), LATENT),
            "descriptor": schemas.vectors_to_array(np.ones((size, BEFORE), np.float32), BEFORE),
            **inset_columns.draw(size, LATENT, seed),
        }
        tables.append(pa.Table.from_pydict(columns, schema))
    return tables


def plainly(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables with the columns of CHANGE."""
    changed = []
    for table in tables:
        arrays = dict(zip(table.column_names, table.columns, strict=True)) | make(table)
        arrays = {name: arrays.get(name, pa.nulls(len(table), NEW.field(name).type)) for name in NEW.names}
        changed.append(pa.Table.from_pydict(arrays, NEW))
    return changed


def described(path: Path) -> list[Any]:
    """All that a footer says of row groups and columns, but for their places."""
    metadata = pq.read_metadata(path)
    facts: list[Any] = [metadata.metadata, metadata.created_by, metadata.format_version, metadata.num_rows]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number).to_dict()
        for column in group["columns"]:
            del column["file_offset"], column["data_page_offset"], column["dictionary_page_offset"]
        facts.append(group)
    return facts


def files_of(uri: Path) -> list[Path]:
    """What was written for a data set that has no commit yet."""
    return [path for path in Path(moves.staged(str(uri))).glob("*") if path.is_file()]


def rewritten(folder: Path, record: FileRecord, change: Change = CHANGE) -> Path:
    """What is made of a file of the data set `old` in a folder."""
    made = datasets.rewrite_file(str(folder / "old"), record, str(folder / "new"), "part-made", change)
    [path] = files_of(folder / "new")
    assert parquet.record_of(str(path), path.name) == made
    return path


def read_by_duckdb(path: Path) -> list[tuple[Any, ...]]:
    return duckdb.sql(f"select * from '{path}'").fetchall()


@settings(max_examples=12)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_it_is_the_file_that_a_writer_of_all_rows_makes(
    sizes: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rewritten")
    tables = draw(sizes, seed)
    path = rewritten(folder, datasets.write_file(str(folder / "old"), "part-a", tables, OLD))
    datasets.write_file(str(folder / "plain"), "part-a", plainly(tables), NEW)
    [want] = files_of(folder / "plain")
    assert described(path) == described(want)
    held, expected = (pq.ParquetFile(p, page_checksum_verification=True).read() for p in (path, want))
    assert held.schema.equals(expected.schema, check_metadata=True)
    assert held.equals(expected)
    assert read_by_duckdb(path) == read_by_duckdb(want)


def of_another_writer(folder: Path, tables: Sequence[pa.Table], **settings: Any) -> FileRecord:
    """A file of the data set `old` that was not written as this program writes."""
    (folder / "old").mkdir()
    path = folder / "old/part-a-0.parquet"
    with pq.ParquetWriter(path, tables[0].schema, write_page_checksum=True, **settings) as writer:
        for table in tables:
            writer.write_table(table)
    return parquet.record_of(str(path), path.name)


def test_a_column_that_an_earlier_version_lacks_is_null(tmp_path: Path) -> None:
    version = {b"id2.dataset": b"embeddings", b"id2.schema_version": b"1"}
    later = {"information", *(name for name, _ in schemas.CREDENTIALS)}
    first = pa.schema([field for field in OLD if field.name not in later], version)
    tables = draw([5, 7], schema=first)
    path = rewritten(tmp_path, datasets.write_file(str(tmp_path / "old"), "part-a", tables, first))
    held = pq.ParquetFile(path, page_checksum_verification=True)
    assert held.read().equals(pa.concat_tables(plainly(tables)).cast(held.schema_arrow))
    assert (held.schema_arrow.metadata, held.num_row_groups) == (NEW.metadata, 2)
    assert len(read_by_duckdb(path)) == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"write_page_index": True, "bloom_filter_options": {"uri": True}},
        {"use_compliant_nested_type": False, "version": "1.0"},
        {"compression": "snappy", "data_page_version": "2.0", "data_page_size": 64, "use_dictionary": False},
        {"compression": "zstd", "data_page_size": 64, "use_dictionary": False},
    ],
    ids=["indexes", "other types", "other pages", "small pages"],
)
def test_a_file_of_another_writer_keeps_its_rows(settings: dict[str, Any], tmp_path: Path) -> None:
    tables = draw([30, 1, 9])
    path = rewritten(tmp_path, of_another_writer(tmp_path, tables, **settings))
    held = pq.ParquetFile(path, page_checksum_verification=True)
    assert held.read().equals(pa.concat_tables(plainly(tables)).cast(held.schema_arrow))
    columns = [held.metadata.row_group(0).column(i) for i in range(held.metadata.num_columns)]
    assert not any(column.has_offset_index or column.has_column_index for column in columns)
    assert len(read_by_duckdb(path)) == 40


def test_numbers_that_are_null_are_read_as_null(tmp_path: Path) -> None:
    [table] = draw([9])
    rows = [[float(row)] * (LATENT - 1) + [None if row % 4 == 1 else 1.0] for row in range(9)]
    field = OLD.field("latent")
    table = table.set_column(table.schema.get_field_index("latent"), field, pa.array(rows, field.type))
    record = datasets.write_file(str(tmp_path / "old"), "part-a", [table], OLD)
    seen: list[pa.Table] = []

    def note(table: pa.Table) -> dict[str, pa.Array]:
        seen.append(table)
        return {"run_id": pa.repeat(pa.scalar("new"), len(table))}

    held = pq.read_table(rewritten(tmp_path, record, Change(OLD, ("latent",), ("run_id",), note)))
    for one in (seen[0]["latent"], held["latent"]):
        assert one.to_pylist() == rows
    assert held["run_id"].to_pylist() == ["new"] * 9


@pytest.mark.parametrize("share", range(0, 100, 5))
def test_a_flipped_bit_anywhere_is_an_error_and_nothing_is_written(share: int, tmp_path: Path) -> None:
    record = datasets.write_file(str(tmp_path / "old"), "part-a", draw([40, 40]), OLD)
    [path] = files_of(tmp_path / "old")
    data = bytearray(path.read_bytes())
    data[len(data) * share // 100] ^= 1 << share % 8
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged"):
        rewritten(tmp_path, record)
    assert not files_of(tmp_path / "new")


def test_a_file_that_is_cut_or_gone_is_an_error(tmp_path: Path) -> None:
    record = datasets.write_file(str(tmp_path / "old"), "part-a", draw([40, 40]), OLD)
    [path] = files_of(tmp_path / "old")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=f"not {record.bytes}"):
        rewritten(tmp_path, record)
    path.unlink()
    with pytest.raises(DatasetError, match="is gone"):
        rewritten(tmp_path, record)
    assert not files_of(tmp_path / "new")
