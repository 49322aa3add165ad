"""Data sets of drawn latents, in which a translation differs from its origin in some directions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.runs import compaction
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, SourceRecord
from id2core.transforms.linear import Transform

# What the record of a file says of the file itself.
_OF_FILE = ("name", "rows", "row_groups", "bytes", "sha256", "footer")
N = 64
IDS = {"encoder_id": "e-1", "transform_id": "identity", "preprocess_id": "p"}
# Rows: the directions in which translations go astray.
ASTRAY = np.linalg.qr(np.random.default_rng(7).standard_normal((N, N)))[0][: N // 4]


def origins(count: int, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((count, N)).astype(np.float16)


def translated(latents: NDArray[Any], seed: int, much: float = 12.0, little: float = 0.3) -> NDArray[Any]:
    """One translation of each latent: much astray, and a little everywhere."""
    rng = np.random.default_rng(seed)
    astray = much * rng.standard_normal((len(latents), len(ASTRAY))) @ ASTRAY
    return (latents + astray + little * rng.standard_normal(latents.shape)).astype(np.float16)


def good_w() -> Transform:
    """W that does not see where translations go astray."""
    whole = np.linalg.svd(ASTRAY)[2][len(ASTRAY) :]
    return Transform(np.ascontiguousarray(whole.T, np.float32), {"encoder_id": IDS["encoder_id"]})


def write_embeddings(
    uri: Path, latents: NDArray[Any], prefix: str, files: int = 2, rows_at_once: int = 50, **ids: str
) -> str:
    """Pictures PREFIX000000 … at /PREFIX/000000.jpg …, in small row groups; descriptors say nothing."""
    schema = schemas.embeddings_schema(latents.shape[1], 1)
    records = []
    for i, rows in enumerate(np.array_split(np.arange(len(latents)), files)):
        parts = []
        for start in range(0, len(rows), rows_at_once):
            part = rows[start : start + rows_at_once]
            columns = {
                "image_id": [f"{prefix}{r:06d}" for r in part],
                "uri": [f"/{prefix}/{r:06d}.jpg" for r in part],
                "latent": schemas.vectors_to_array(latents[part].astype(np.float16), latents.shape[1]),
            }
            parts.append(_table(schema, columns, len(part)))
        records.append(datasets.write_file(str(uri), f"part-{prefix}{i}", parts, schema))
    commit = Commit("embeddings", "r", IDS | ids, tuple(records), sources={f"/{prefix}": SourceRecord()})
    datasets.write_commit(str(uri), commit)
    return str(uri)


def with_columns(uri: str, columns: dict[str, pa.Array], earlier: int = 0) -> Dataset:
    """Commit a data set of `write_embeddings` again with other columns.

    Args:
        uri: the data set.
        columns: for all of its rows.
        earlier: so many files at its beginning are written as version 3 had them, without the columns.
    """
    dataset = Dataset.open(uri)
    records, start = [], 0
    for i, file in enumerate(dataset.files):
        table = compaction.read_whole(uri, file)
        for name, values in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), values.slice(start, len(table)))
        start += len(table)
        if i < earlier:
            version = {**table.schema.metadata, b"id2.schema_version": b"3"}
            table = table.drop_columns([name for name, _ in schemas.VIEWS]).replace_schema_metadata(version)
        written = datasets.write_file(uri, f"part-{i}-{earlier}", [table], table.schema)
        records.append(replace(file, **{k: getattr(written, k) for k in _OF_FILE}))
    datasets.write_commit(uri, replace(dataset.commit, files=tuple(records)))
    return Dataset.open(uri)


def write_descriptors(uri: Path, latents: NDArray[Any], prefix: str, w: Transform) -> str:
    """The pictures of `write_embeddings`, with descriptors and without latents."""
    descriptors = w.apply(latents)
    schema = schemas.embeddings_schema(latents.shape[1], descriptors.shape[1])
    columns = {
        "image_id": [f"{prefix}{r:06d}" for r in range(len(latents))],
        "uri": [f"/{prefix}/{r:06d}.jpg" for r in range(len(latents))],
        "descriptor": schemas.vectors_to_array(descriptors, descriptors.shape[1]),
    }
    record = datasets.write_file(str(uri), "part-0", [_table(schema, columns, len(latents))], schema)
    ids = IDS | {"transform_id": w.transform_id}
    datasets.write_commit(
        str(uri), Commit("embeddings", "r", ids, (record,), sources={f"/{prefix}": SourceRecord()})
    )
    return str(uri)


def write_translations(uri: Path, pairs: Sequence[tuple[str, str]]) -> str:
    """A data set of (image_id, origin_id)."""
    columns = {"image_id": [p[0] for p in pairs], "origin_id": [p[1] for p in pairs]}
    table = _table(schemas.TRANSLATIONS, columns, len(pairs))
    record = datasets.write_file(str(uri), f"part-{len(pairs)}", [table], schemas.TRANSLATIONS)
    datasets.write_commit(str(uri), Commit("translations", "r", {}, (record,)))
    return str(uri)


def _table(schema: pa.Schema, columns: dict[str, Any], rows: int) -> pa.Table:
    return pa.Table.from_pydict(
        {field.name: pa.nulls(rows, field.type) for field in schema} | columns, schema
    )
