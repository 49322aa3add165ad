"""Programs that dashboards use read the Parquet files as they are."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from id2core.store import schemas
from tests import inset_columns


def test_duckdb_reads_every_column_of_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    schema = schemas.embeddings_schema(6, 4)
    vectors = {
        "latent": rng.normal(size=(5, 6)).astype(np.float16),
        "descriptor": rng.normal(size=(5, 4)).astype(np.float32),
    }
    columns = {field.name: pa.nulls(5, field.type) for field in schema}
    columns |= {name: schemas.vectors_to_array(v, v.shape[1]) for name, v in vectors.items()}
    views = inset_columns.draw(5, 6)
    columns |= views
    with schemas.parquet_writer(tmp_path / "part-a.parquet", schema) as writer:
        writer.write_table(pa.Table.from_pydict(columns, schema), row_group_size=2)
    held = duckdb.sql(f"select * from '{tmp_path}/*.parquet'")
    assert held.columns == schema.names
    for name, expected in vectors.items():
        assert np.array_equal(np.array([row[0] for row in held.select(name).fetchall()]), expected)
    for name, expected in views.items():
        assert [row[0] for row in held.select(name).fetchall()] == expected.to_pylist()
