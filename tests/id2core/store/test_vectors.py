"""Descriptors of a file are read from whole pages, or by Arrow, with the same checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from id2core.errors import DatasetError
from id2core.store import parquet, parquet_vectors, schemas
from id2core.store.datasets import Dataset, FileRecord
from tests.descriptor_sets import unit, write_embeddings

SIZE = 512


def read(folder: Path, record: FileRecord) -> np.ndarray:
    out = np.full((record.rows, SIZE), np.nan, np.float32)
    parquet.read_vectors([str(folder)], record, "descriptor", out)
    return out


def written(folder: Path, rows: int) -> tuple[Dataset, FileRecord, Path]:
    dataset = write_embeddings(folder, unit(rows, SIZE, 0), 1, "r")
    [record] = dataset.files
    return dataset, record, folder / record.name


def test_vectors_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, record, _ = written(tmp_path, 2500)  # three row groups, with several pages each
    monkeypatch.setattr(schemas, "column_to_vectors", None)  # Arrow has nothing to do
    assert np.array_equal(read(tmp_path, record), unit(2500, SIZE, 0))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_byte_stream_split": ["descriptor.list.element"], "use_dictionary": False},
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "snappy"},
        {"data_page_version": "2.0", "use_dictionary": False},
    ],
)
def test_files_of_other_writers_are_read_too(settings: dict[str, Any], tmp_path: Path) -> None:
    _, _, path = written(tmp_path, 300)
    pq.write_table(pq.read_table(path), path, **settings)
    record = parquet.record_of(str(path), path.name)
    assert np.array_equal(read(tmp_path, record), unit(300, SIZE, 0))


def test_a_flipped_bit_in_a_column_of_vectors_is_an_error(tmp_path: Path) -> None:
    _, record, path = written(tmp_path, 600)
    metadata = pq.read_metadata(path)
    chunks = (metadata.row_group(0).column(i) for i in range(metadata.num_columns))
    [chunk] = [chunk for chunk in chunks if chunk.path_in_schema.startswith("descriptor")]
    data, expected = path.read_bytes(), unit(600, SIZE, 0)
    begin, size = chunk.data_page_offset, chunk.total_compressed_size
    places = {*range(begin, begin + 60), *np.linspace(begin, begin + size - 1, 40).astype(int).tolist()}
    for place in sorted(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:  # some bits of a header have no meaning
            assert np.array_equal(read(tmp_path, record), expected)
        except DatasetError as error:
            assert "damaged" in str(error)
        else:
            assert place < begin + 60


def test_pages_without_checksums_are_left_to_arrow(tmp_path: Path) -> None:
    _, _, path = written(tmp_path, 300)
    pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False)
    with path.open("rb") as file:
        metadata = pq.read_metadata(file)
        chunk = metadata.row_group(0).column(metadata.num_columns - 1)
        assert not parquet_vectors.read_into(np.empty((300, 1), np.float32), file, chunk)
