"""The data contracts: one Arrow schema per dataset, and how its Parquet files are written.

Every schema carries `SCHEMA_VERSION` and the data set's name in its metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from id2core.store.rejects import Reason

SCHEMA_VERSION = "1"
# Rows that a writer holds in memory; with latents and descriptors of 4,096 numbers 24 kB each.
ROW_GROUP = 1024
# What must agree before rows stand in one data set, or are compared.
IDS = ("encoder_id", "transform_id", "preprocess_id")
# Slow-changing text of an embeddings table; everything else in it is close to random.
_DICTIONARY_COLUMNS = (
    "format",
    *IDS,
    "run_id",
    "reason",
    "paradigm",
    "dtype",
    "model",
    "revision",
    "recipe_id",
)
_TIME = pa.timestamp("us", tz="UTC")


def _named(dataset: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"id2.dataset": dataset, "id2.schema_version": SCHEMA_VERSION})


def embeddings_schema(latent_size: int, descriptor_size: int) -> pa.Schema:
    """Schema of `embeddings/`: latents of n = `latent_size`, descriptors of m = `descriptor_size` numbers."""
    return _named(
        "embeddings",
        [
            ("image_id", pa.string()),
            ("uri", pa.string()),
            ("generation", pa.string()),
            ("bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", pa.string()),
            ("latent", pa.list_(pa.float16(), latent_size)),
            ("descriptor", pa.list_(pa.float32(), descriptor_size)),
            *((name, pa.string()) for name in IDS),
            ("run_id", pa.string()),
            ("embedded_at", _TIME),
        ],
    )


MANIFEST = _named("manifest", [("uri", pa.string()), ("generation", pa.string()), ("bytes", pa.int64())])

REJECTS = _named(
    "rejects",
    [
        ("uri", pa.string()),
        ("generation", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("run_id", pa.string()),
    ],
)

TRANSLATIONS = _named(
    "translations",
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("origin_id", pa.string()),
        ("origin_uri", pa.string()),
        ("origin_generation", pa.string()),
        ("number", pa.int32()),
        ("prompt", pa.string()),
        ("paradigm", pa.string()),
        ("strength", pa.float32()),
        ("guidance", pa.float32()),
        ("steps", pa.int32()),
        ("seed", pa.int64()),
        ("dtype", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("recipe_id", pa.string()),
        ("run_id", pa.string()),
        ("translated_at", _TIME),
    ],
)

MATCHES = _named(
    "matches",
    [
        ("query_id", pa.string()),
        ("query_uri", pa.string()),
        ("rank", pa.int32()),
        ("reference_id", pa.string()),
        ("reference_uri", pa.string()),
        ("score", pa.float32()),
        ("background", pa.float32()),
        ("normalized_score", pa.float32()),
        ("verdict", pa.string()),
        ("false_positive_rate", pa.float32()),
        ("encoder_id", pa.string()),
        ("transform_id", pa.string()),
        ("index_id", pa.string()),
        ("calibration_id", pa.string()),
        ("run_id", pa.string()),
        ("scanned_at", _TIME),
    ],
)

RUNS = _named(
    "runs",
    [
        ("run_id", pa.string()),
        ("flow", pa.string()),
        ("config", pa.string()),
        ("listed", pa.int64()),
        ("embedded", pa.int64()),
        ("rejected", pa.int64()),
        ("matches", pa.int64()),
        ("translated", pa.int64()),
        ("seconds", pa.string()),
        ("versions", pa.string()),
        ("status", pa.string()),
        ("finished_at", _TIME),
    ],
)


def check_reasons(table: pa.Table) -> None:
    """Raise ValueError when a rejects table holds a reason outside the closed list."""
    unknown = set(table["reason"].unique().to_pylist()) - set(Reason)
    if unknown:
        raise ValueError(f"unknown reject reasons {sorted(unknown)}")


def vectors_to_array(values: NDArray[Any], size: int) -> pa.FixedSizeListArray:
    """float[B,size] → an Arrow fixed-size list array over the same numbers, row by row."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), size)


def column_to_vectors(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A fixed-size list column of B rows without nulls → its numbers as [B,size], copied once at most."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # a column of no chunks stays chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=column.type)
    numbers = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers).reshape(-1, array.type.list_size)


@contextmanager
def parquet_writer(where: Path | IO[bytes], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer with the project's settings: zstd, byte-stream-split vectors, checksummed pages."""
    vectors = [f.name for f in schema if pa.types.is_fixed_size_list(f.type)]
    with pq.ParquetWriter(
        where,
        schema,
        compression="zstd",
        use_dictionary=[n for n in schema.names if n in _DICTIONARY_COLUMNS],
        use_byte_stream_split=[f"{name}.list.element" for name in vectors],
        write_statistics=[n for n in schema.names if n not in vectors],
        write_page_checksum=True,
    ) as writer:
        yield writer
