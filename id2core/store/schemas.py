"""The data contracts: one Arrow schema per table, and how its Parquet files are written.

Every table has a version of its own, which its schema carries in the metadata beside its name. A new
column is appended to its table, is nullable, and raises the version of that table alone. `completed` gives
the column to files of earlier versions; a file of a later version is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.store.rejects import Reason

# In the metadata of a schema.
_TABLE, _VERSION = b"id2.dataset", b"id2.schema_version"
EMBEDDINGS = "embeddings"
# Rows of a row group with vectors, which a writer holds in memory, and bytes of their vectors: at most.
ROW_GROUP, _ROW_GROUP_BYTES = 4096, 2**26
# What must agree within a data set, and before descriptors are compared.
ROW_IDS = ("encoder_id", "transform_id", "preprocess_id")
# What must agree before latents are compared; the W of the descriptors beside them does not matter.
LATENT_IDS = ("encoder_id", "preprocess_id")
# Columns of vectors, which are fixed-size lists; columns of numbers: nearly all bytes of an embeddings table.
VECTORS = frozenset({"latent", "descriptor"})
NUMBERS = VECTORS | {"crops", "detail", "insets"}
# Searches read them at the speed of memory. zstd would save 8% of descriptors, 27% of crops, 2% of detail.
_NOT_PACKED = frozenset({"descriptor", "crops", "detail"})
# What names a pair of an upload and a reference picture in `matches/` and `verdicts/`.
PAIR = ("query_uri", "query_generation", "reference_id", "encoder_id", "transform_id", "channel")
# How every file of `matches/` is laid out, so that 100 million rows can be filtered by verdict, by upload, or
# by id: sorted by these columns, in row groups of this size. benchmarks/dashboard.py measures it.
MATCHES_ORDER = (("verdict", "ascending"), ("query_uri", "ascending"), ("rank", "ascending"))
MATCHES_ROW_GROUP = 2**18
# Of a column of vectors; each page costs its reader some calls.
_PAGE_BYTES = 2**23
# Rows in a row group of other tables without vectors: readers skip and read whole groups.
_ROW_GROUP_WITHOUT_VECTORS = 2**14
# Text of these tables comes again and again within a row group, ids too: the dictionary holds all of it.
_DICTIONARY_TABLES = frozenset({b"matches", b"verdicts"})
_DICTIONARY_BYTES = 32 * 2**20
# Slow-changing text of an embeddings table; everything else in it is close to random.
_DICTIONARY_COLUMNS = (
    "format",
    *ROW_IDS,
    "run_id",
    "reason",
    "paradigm",
    "dtype",
    "model",
    "revision",
    "recipe_id",
    "c2pa_state",
    "generator",
    "digital_source_type",
)
_TIME = pa.timestamp("us", tz="UTC")
# What the manifest of a picture says; in `matches/` of the upload. Null where nobody looked.
CREDENTIALS = tuple((name, pa.string()) for name in ("c2pa_state", "generator", "digital_source_type"))
# A picture that is seen inside another one, without its frames: its name, where it is in shares of the
# sides, and its latent.
_SIDES = tuple((name, pa.float32()) for name in ("left", "top", "right", "bottom"))
INSET = pa.struct([("view", pa.string()), *_SIDES, ("latent", pa.list_(pa.float16()))])
# How much each of these shows. A column of its own: a search reads it without latents.
INSET_INFORMATION = pa.struct([("view", pa.string()), ("information", pa.float32())])
# By what an upload and a reference meet under more views than the whole. Null where nobody looked.
VIEWS = (
    ("crops", pa.binary()),
    ("detail", pa.binary()),
    ("insets", pa.list_(INSET)),
    ("inset_information", pa.list_(INSET_INFORMATION)),
    ("finder", pa.string()),
)


def table_schema(name: str, version: int, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    """Return the Arrow schema of a table, with its name and version in the metadata."""
    return pa.schema(fields, metadata={_TABLE: name, _VERSION: str(version)})


@functools.cache
def embeddings_schema(latent_size: int, descriptor_size: int) -> pa.Schema:
    """Schema of `embeddings/`: latents of n = `latent_size`, descriptors of m = `descriptor_size` numbers."""
    return table_schema(
        EMBEDDINGS,
        6,
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
            *((name, pa.string()) for name in ROW_IDS),
            ("run_id", pa.string()),
            ("embedded_at", _TIME),
            ("information", pa.float32()),
            *CREDENTIALS,
            *VIEWS,
        ],
    )


MANIFEST = table_schema(
    "manifest", 1, [("uri", pa.string()), ("generation", pa.string()), ("bytes", pa.int64())]
)

REJECTS = table_schema(
    "rejects",
    1,
    [
        ("uri", pa.string()),
        ("generation", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("run_id", pa.string()),
    ],
)

REMOVALS = table_schema(
    "removals",
    1,
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("generation", pa.string()),
        ("segment", pa.string()),
        ("reason", pa.string()),
        ("removed_in", pa.int64()),
        ("run_id", pa.string()),
        ("removed_at", _TIME),
    ],
)

TRANSLATIONS = table_schema(
    "translations",
    1,
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

POSTS = table_schema(
    "posts",
    1,
    [
        ("uri", pa.string()),
        ("generation", pa.string()),
        ("post_id", pa.string()),
        ("uploader", pa.string()),
        ("posted_at", _TIME),
        ("extra", pa.string()),
        ("source", pa.string()),
        ("run_id", pa.string()),
    ],
)

MATCHES = table_schema(
    "matches",
    5,
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
        ("verdict_reason", pa.string()),
        ("query_generation", pa.string()),
        ("view", pa.string()),
        ("channel", pa.string()),
        ("floor", pa.float32()),
        ("information", pa.float32()),
        *CREDENTIALS,
        ("detail", pa.float32()),
    ],
)

# Later verdicts of pairs that `matches/` holds; the newest `judged_at` of a pair counts.
VERDICTS = table_schema(
    "verdicts",
    1,
    [
        ("query_uri", pa.string()),
        ("query_generation", pa.string()),
        ("reference_id", pa.string()),
        ("encoder_id", pa.string()),
        ("transform_id", pa.string()),
        ("channel", pa.string()),
        ("verdict", pa.string()),
        ("verdict_reason", pa.string()),
        ("false_positive_rate", pa.float32()),
        ("calibration_id", pa.string()),
        ("judged_at", _TIME),
        ("run_id", pa.string()),
    ],
)

# What each upload scores in the background, so that a new calibration needs no search.
BACKGROUNDS = table_schema(
    "backgrounds",
    1,
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("generation", pa.string()),
        ("background", pa.float32()),
        ("background_id", pa.string()),
        ("k", pa.int32()),
        *((name, pa.string()) for name in ROW_IDS),
        ("run_id", pa.string()),
    ],
)

# A row per search: which segments met, by their numbers, both ends included.
LEDGER = table_schema(
    "ledger",
    2,
    [
        ("run_id", pa.string()),
        ("searched_at", _TIME),
        ("encoder_id", pa.string()),
        ("transform_id", pa.string()),
        ("preprocess_id", pa.string()),
        ("query_from", pa.int32()),
        ("query_to", pa.int32()),
        ("reference_from", pa.int32()),
        ("reference_to", pa.int32()),
        ("query_version", pa.int64()),
        ("reference_version", pa.int64()),
        ("pairs", pa.int64()),
        ("index_id", pa.string()),
        ("top_k", pa.int32()),
        ("floor", pa.float32()),
        ("views", pa.string()),
    ],
)

# A row per segment of a corpus: what one run added. `segment` is the run's run_id.
SEGMENTS = table_schema(
    "segments",
    1,
    [
        ("corpus", pa.string()),
        ("segment", pa.string()),
        ("number", pa.int32()),
        ("added_at", _TIME),
        ("rows", pa.int64()),
    ],
)

# Pictures that are refused. A row stays when its picture is reinstated. `uris` is a list as JSON.
TAKEDOWNS = table_schema(
    "takedowns",
    1,
    [
        ("image_id", pa.string()),
        ("uris", pa.string()),
        ("reason", pa.string()),
        ("requested_at", _TIME),
        ("run_id", pa.string()),
        ("reinstated_at", _TIME),
    ],
)

RUNS = table_schema(
    "runs",
    3,
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
        ("started", _TIME),
        ("ended", _TIME),
        ("error", pa.string()),
        ("references", pa.int64()),
        ("queries", pa.int64()),
        ("new_references", pa.int64()),
        ("new_queries", pa.int64()),
        ("match_pairs", pa.int64()),
        ("review_pairs", pa.int64()),
        ("first_searched", pa.int64()),
        ("first_matched", pa.int64()),
    ],
)


# A row of a file of codes is a row of a file of embeddings; a file of a model has one row.
INDEX = table_schema("index", 1, [("code", pa.binary()), ("model", pa.large_binary())])


TABLES: dict[str, pa.Schema] = {
    "rejects": REJECTS,
    "removals": REMOVALS,
    "translations": TRANSLATIONS,
    "matches": MATCHES,
    "verdicts": VERDICTS,
    "backgrounds": BACKGROUNDS,
    "ledger": LEDGER,
    "segments": SEGMENTS,
    "posts": POSTS,
    "takedowns": TAKEDOWNS,
    "runs": RUNS,
    "index": INDEX,
}


def version_of(table: str) -> int:
    """Return the version of a table that this program writes; 1 for one that is not among the contracts."""
    schema = embeddings_schema(1, 1) if table == EMBEDDINGS else TABLES.get(table)
    return 1 if schema is None else int(schema.metadata[_VERSION])


def check_version(table: str, version: int, where: str) -> None:
    """Raise DatasetError for a table of a later version than this program knows."""
    known = version_of(table)
    if version > known:
        raise DatasetError(
            f"{where} has schema version {version} of {table or 'its table'}, this program knows versions "
            f"up to {known}: upgrade id2, or write to another --out"
        )


def current(file: pa.Schema, where: str) -> pa.Schema:
    """Return the schema that this program has for the table of a file, whose version may be an earlier one.

    Args:
        file: the schema as it is in the file.
        where: URI of the file, for errors.

    Raises:
        DatasetError: the file is of a later version.
    """
    metadata = file.metadata or {}
    table = metadata.get(_TABLE, b"").decode()
    check_version(table, int(metadata.get(_VERSION, b"1")), where)
    if table == EMBEDDINGS:
        return embeddings_schema(*(file.field(name).type.list_size for name in ("latent", "descriptor")))
    return TABLES.get(table, file)


def completed(table: pa.Table, schema: pa.Schema, columns: list[str] | None, rows: int) -> pa.Table:
    """Return a table with the columns that its file lacks as null.

    Args:
        table: what a file has of the columns asked for.
        schema: of the table today, see `current`.
        columns: what was asked for; None for everything.
        rows: of the table.
    """
    names = schema.names if columns is None else columns
    arrays = [
        table[name] if name in table.column_names else pa.nulls(rows, schema.field(name).type)
        for name in names
    ]
    fields = [schema.field(name) for name in names]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))


class Removal(StrEnum):
    """Why a row was removed from a data set, in `removals/`."""

    UNLISTED = "unlisted"  # its source no longer lists its object
    REPLACED = "replaced"  # its source lists another generation of its object
    EXPIRED = "expired"  # its source keeps rows for so long and no longer
    TAKEN_DOWN = "taken_down"  # somebody had the picture removed


def check_reasons(table: pa.Table, known: type[StrEnum] = Reason) -> None:
    """Raise ValueError when a table holds a reason outside the closed list, by default of rejects."""
    unknown = set(table["reason"].unique().to_pylist()) - set(known)
    if unknown:
        raise ValueError(f"unknown reasons {sorted(unknown)}: they are none of {known.__name__}")


def vectors_to_array(values: NDArray[Any], size: int) -> pa.FixedSizeListArray:
    """float[B,size] → an Arrow fixed-size list array over the same numbers, row by row."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), size)


def octets_to_array(values: NDArray[np.uint8] | NDArray[np.int8]) -> pa.BinaryArray:
    """[B,size] numbers of one byte → an Arrow array of B byte strings over the same numbers."""
    places = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    buffers = [None, pa.py_buffer(places), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(values), buffers)


def inset_columns(
    counts: Sequence[int], facts: Sequence[Mapping[str, Any]], latents: NDArray[np.float16]
) -> dict[str, pa.ListArray]:
    """Return the columns `insets` and `inset_information` of B rows.

    Args:
        counts: how many insets each row has.
        facts: of all insets in the order of the rows, what `INSET` and `INSET_INFORMATION` have besides the
            latents.
        latents: float16[I,n], likewise.
    """
    places = pa.array(np.arange(len(latents) + 1, dtype=np.int32) * np.int32(latents.shape[1]))
    numbers = pa.ListArray.from_arrays(places, pa.array(np.ascontiguousarray(latents).reshape(-1)))
    rows = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())

    def lists(kind: pa.StructType) -> pa.ListArray:
        columns = [
            numbers if field.name == "latent" else pa.array([one[field.name] for one in facts], field.type)
            for field in kind
        ]
        return pa.ListArray.from_arrays(rows, pa.StructArray.from_arrays(columns, fields=list(kind)))

    return {"insets": lists(INSET), "inset_information": lists(INSET_INFORMATION)}


def column_to_vectors(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A fixed-size list column of B rows without nulls → its numbers as [B,size], copied once at most."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # a column of no chunks stays chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=column.type)
    numbers = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers).reshape(-1, array.type.list_size)


def row_group_of(schema: pa.Schema) -> int:
    """Return how many rows a row group of a table has, where a file has so many."""
    vectors = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    if vectors:
        row = sum(int(kind.list_size) * int(kind.value_type.bit_width) for kind in vectors) // 8
        return max(1, min(ROW_GROUP, _ROW_GROUP_BYTES // max(row, 1)))
    large = (schema.metadata or {}).get(_TABLE) in _DICTIONARY_TABLES
    return MATCHES_ROW_GROUP if large else _ROW_GROUP_WITHOUT_VECTORS


def _paths(name: str, kind: pa.DataType) -> Iterator[str]:
    """Yield the paths of the values of a column in a Parquet file."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _paths(f"{name}.{field.name}", field.type)
    elif pa.types.is_nested(kind):
        yield from _paths(f"{name}.list.element", kind.value_type)
    else:
        yield name


@contextmanager
def parquet_writer(where: Path | IO[bytes], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer with the project's settings: zstd, plain numbers, checksummed pages.

    Numbers are written plainly, because DuckDB does not read float16 otherwise.
    """
    numbers = {f.name for f in schema if pa.types.is_nested(f.type) or pa.types.is_binary(f.type)}
    texts = [f.name for f in schema if pa.types.is_string(f.type)]
    if (schema.metadata or {}).get(_TABLE) not in _DICTIONARY_TABLES:
        texts = [name for name in texts if name in _DICTIONARY_COLUMNS]
    with pq.ParquetWriter(
        where,
        schema,
        compression={
            path: "none" if field.name in _NOT_PACKED else "zstd"
            for field in schema
            for path in _paths(field.name, field.type)
        },
        use_dictionary=texts,
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        write_statistics=[n for n in schema.names if n not in numbers],
        write_page_checksum=True,
        data_page_size=_PAGE_BYTES,
    ) as writer:
        yield writer


def column_to_bytes(column: pa.ChunkedArray) -> NDArray[np.uint8] | None:
    """A binary column of B values of one length → uint8[B,length]; None where one is null or of another."""
    if column.null_count:
        return None
    extremes = pc.min_max(pc.binary_length(column)).as_py()
    if extremes["min"] != extremes["max"]:
        return None
    size = extremes["min"] or 0
    fixed = column.cast(pa.binary(size)).combine_chunks()
    return np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * size :].reshape(-1, size)[: len(fixed)]
