"""A table that gained a column still reads its earlier files; a file of a later version is refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from id2core.errors import DatasetError
from id2core.search import match_rows, shards
from id2core.search.match_rows import MatchConstants
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset
from tests.descriptor_sets import unit, write_embeddings

NOW = schemas.version_of("matches")
NEXT = NOW + 1


def a_match(run_id: str, schema: pa.Schema) -> pa.Table:
    row = {"query_uri": "/q", "rank": 1, "score": 0.5, "run_id": run_id}
    return pa.Table.from_pylist([row], schema)


def with_column(schema: pa.Schema, version: int) -> pa.Schema:
    """The table's next version: one more nullable column at its end."""
    metadata = schema.metadata | {b"id2.schema_version": str(version).encode()}
    return schema.append(pa.field("origin", pa.string())).with_metadata(metadata)


def add(uri: str, run_id: str) -> None:
    record = datasets.write_file(uri, run_id, [a_match(run_id, schemas.MATCHES)], schemas.MATCHES)
    datasets.add_files(uri, "matches", run_id, run_id, [record], {})


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> pa.Schema:
    """`matches` as a later program has it."""
    schema = with_column(schemas.MATCHES, NEXT)
    monkeypatch.setattr(schemas, "MATCHES", schema)
    monkeypatch.setitem(schemas.TABLES, "matches", schema)
    return schema


def test_a_data_set_of_the_version_before_is_read_and_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path)
    add(uri, "run-old")
    with monkeypatch.context() as later:
        schema = with_column(schemas.MATCHES, NEXT)
        later.setattr(schemas, "MATCHES", schema)
        later.setitem(schemas.TABLES, "matches", schema)
        old = Dataset.open(uri).read(schemas.MATCHES)
        assert old.schema.equals(schema, check_metadata=True) and old["origin"].null_count == 1
        assert Dataset.open(uri).read(schemas.MATCHES, ["origin"]).num_rows == 1
        add(uri, "run-new")
        both = Dataset.open(uri)
        assert both.rows == 2 and both.commit.schema_version == str(NEXT)
        assert both.read(schemas.MATCHES, ["score", "origin"])["origin"].null_count == 2
        assert [t.num_rows for _, t in both.row_groups(["origin"])] == [1, 1]
    with pytest.raises(DatasetError, match=rf"schema version {NEXT} of matches.*up to {NOW}: upgrade id2"):
        Dataset.open(uri)


def test_a_file_of_a_later_version_is_refused_also_where_the_commit_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = with_column(schemas.MATCHES, NEXT)
    uri = str(tmp_path)
    record = datasets.write_file(uri, "run-x", [a_match("run-x", schema)], schema)
    datasets.write_commit(uri, Commit("matches", "run-x", {}, (record,)))
    with pytest.raises(DatasetError, match=rf"\.parquet has schema version {NEXT} of matches"):
        list(Dataset.open(uri).tables(["score"]))


def test_a_column_more_in_matches_leaves_embeddings_and_its_producer_fills_it(
    tmp_path: Path, next_version: pa.Schema
) -> None:
    embedded = write_embeddings(tmp_path / "e", unit(4, 8, 0), 1, "r")
    [table] = embedded.tables()
    assert embedded.commit.schema_version == str(schemas.version_of("embeddings"))
    assert table.schema.equals(schemas.embeddings_schema(1, 8), check_metadata=True)
    matches = shards.load(embedded, embedded.files[:1]).search(np.ones((1, 8), np.float32), 2)

    @dataclass(frozen=True)
    class WithOrigin(MatchConstants):
        origin: str = ""

    constants = WithOrigin("encoder", "transform", "index", "r", datetime.now(UTC), origin="w")
    made = match_rows.to_matches(table.slice(0, 1), matches, constants)
    assert made.schema.equals(next_version) and made["origin"].to_pylist() == ["w", "w"]


def test_every_table_has_a_version_of_its_own() -> None:
    assert {name: schemas.version_of(name) for name in schemas.TABLES}.keys() >= {"matches", "runs"}
    assert schemas.version_of("embeddings") == 6 and schemas.version_of("rejects") == 1
    for schema in schemas.TABLES.values():
        assert all(field.nullable for field in schema)
