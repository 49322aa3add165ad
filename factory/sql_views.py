"""Write the SQL of `infra/sql/` from the data contracts and from `infra/sql/views/`: `make docs`.

A view is one file of `views/`, in words that DuckDB and BigQuery share. It reads the tables of the schema
`id2`. `duckdb.sql` makes these of the Parquet below a place, `bigquery.sql` and Terraform (by `tables.json`)
make external tables of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from id2core.store import schemas

SQL = Path(__file__).parent.parent / "infra" / "sql"
# In the order in which they must be made: a view reads those before it.
VIEWS = (
    "judged",
    "best_matches",
    "current",
    "current_uploads",
    "daily_counts",
    "by_reference",
    "backscan",
    "rejects_by_reason",
)
# Columns that are words of SQL itself in one of the dialects.
_RESERVED = frozenset({"references", "rows"})
_NOTE = "Written by `make docs` from id2core/store/schemas.py and infra/sql/views/. Do not edit it by hand."
_DUCKDB = f"""\
-- {_NOTE}
-- DuckDB 2 or later. Name the place first, a --out of `id2 nightly` or `id2 scan`:
--   SET VARIABLE place = 'results';
--   .read infra/sql/duckdb.sql
-- A table that has no file yet is empty. Numbers of pictures, such as latents, are left out.
CREATE SCHEMA IF NOT EXISTS id2;
CREATE OR REPLACE MACRO unix_seconds(moment) AS CAST(epoch(moment) AS BIGINT);
"""
_BIGQUERY = f"""\
-- {_NOTE}
-- For a data set `id2` in the default project. Replace PLACE with the --out, for example gs://my-bucket/id2/nightly.
-- Two tables are of a second channel (--also). With one, replace their views without rows by the tables in
-- the comments beside them, and CHANNEL with its name.
-- infra/terraform makes the same tables and views.
"""


def _is_numbers(kind: pa.DataType) -> bool:
    """Return whether values of a type are many numbers of a picture: lists, or bytes."""
    return pa.types.is_binary(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)


@dataclass(frozen=True)
class Source:
    """A table of the schema `id2` and the Parquet files that it is made of.

    Attributes:
        name: of the table.
        folder: of the data set, below the place; `CHANNEL` in it stands for the name of a second channel.
        schema: of its rows.
        partition: the column that its folders name, a date; empty where there is none.
    """

    name: str
    folder: str
    schema: pa.Schema
    partition: str = ""

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Name and type of each column that SQL sees: all but numbers of pictures and the partition."""
        return {f.name: f.type for f in self.schema if not _is_numbers(f.type)}


_EMBEDDINGS = schemas.embeddings_schema(1, 1)
# Stands for the name of a second channel. DuckDB finds it. BigQuery, with one * in a URI, has to be told.
_CHANNEL = "channels/CHANNEL"
SOURCES = (
    Source("matches", "matches", schemas.MATCHES, "scan_date"),
    Source("verdicts", "verdicts", schemas.VERDICTS),
    Source("query_embeddings", "queries/embeddings", _EMBEDDINGS),
    Source("query_rejects", "queries/rejects", schemas.REJECTS),
    Source("query_removals", "queries/removals", schemas.REMOVALS),
    Source("query_backgrounds", "queries/backgrounds", schemas.BACKGROUNDS),
    Source("reference_embeddings", "reference/embeddings", _EMBEDDINGS),
    Source("reference_rejects", "reference/rejects", schemas.REJECTS),
    Source("reference_removals", "reference/removals", schemas.REMOVALS),
    Source("channel_query_embeddings", f"{_CHANNEL}/queries/embeddings", _EMBEDDINGS),
    Source("channel_reference_embeddings", f"{_CHANNEL}/reference/embeddings", _EMBEDDINGS),
    Source("ledger", "ledger", schemas.LEDGER),
    Source("segments", "segments", schemas.SEGMENTS),
    Source("takedowns", "takedowns", schemas.TAKEDOWNS),
    Source("runs", "runs", schemas.RUNS),
)


def pages() -> dict[str, str]:
    """Return the text of every generated file by its name below `infra/sql/`."""
    return {"duckdb.sql": _duckdb(), "bigquery.sql": _bigquery(), "tables.json": _tables()}


def view(name: str) -> str:
    """Return the query of a view."""
    return (SQL / "views" / f"{name}.sql").read_text(encoding="utf-8").rstrip()


def _views() -> str:
    return "".join(f"\nCREATE OR REPLACE VIEW id2.{name} AS\n{view(name)};\n" for name in VIEWS)


def _duckdb() -> str:
    return _DUCKDB + "".join(map(_duckdb_table, SOURCES)) + _views()


def _duckdb_table(source: Source) -> str:
    types = {_quoted(name, '"'): _duckdb_type(kind) for name, kind in source.columns.items()}
    if source.partition:
        types[source.partition] = "DATE"
    nulls = [f"CAST(NULL AS {kind}) AS {name}" for name, kind in types.items()]
    return f"""
CREATE OR REPLACE VIEW id2.{source.name} AS
SELECT
  {_wrap(types)}
FROM (
  SELECT
  {_wrap(nulls)}
  WHERE FALSE
  UNION ALL BY NAME
  SELECT * FROM read_parquet(
    getvariable('place') || '/{source.folder.replace(_CHANNEL, "channels/*")}/**/*.parquet',
    hive_partitioning = {str(bool(source.partition)).lower()}, union_by_name = true, allow_empty = true
  )
) AS files;
"""


def _duckdb_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "TIMESTAMPTZ"
    return {"string": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT"}[str(kind)]


def _bigquery_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP"
    return {"string": "STRING", "int32": "INT64", "int64": "INT64", "float": "FLOAT64"}[str(kind)]


def _bigquery() -> str:
    return _BIGQUERY + "".join(map(_bigquery_table, SOURCES)) + _views()


def _bigquery_table(source: Source) -> str:
    table = _bigquery_external(source)
    if _CHANNEL not in source.folder:
        return table
    nulls = [f"CAST(NULL AS {_bigquery_type(kind)}) AS {name}" for name, kind in source.columns.items()]
    comment = "".join(f"-- {line}\n" for line in table.strip().split("\n"))
    return f"""
CREATE OR REPLACE VIEW id2.{source.name} AS
SELECT
  {_wrap(nulls)}
FROM UNNEST([1]) AS nothing
WHERE FALSE;
{comment}"""


def _bigquery_external(source: Source) -> str:
    columns = [f"{_quoted(name, '`')} {_bigquery_type(kind)}" for name, kind in source.columns.items()]
    partition, option = "", ""
    if source.partition:
        partition = f"\nWITH PARTITION COLUMNS ({source.partition} DATE)"
        option = f",\n  hive_partition_uri_prefix = 'PLACE/{source.folder}'"
    return f"""
CREATE OR REPLACE EXTERNAL TABLE id2.{source.name} (
  {_wrap(columns)}
){partition}
OPTIONS (
  format = 'PARQUET',
  uris = ['PLACE/{source.folder}/*.parquet']{option}
);
"""


def _wrap(items: Iterable[str]) -> str:
    return ",\n  ".join(items)


def _quoted(name: str, quote: str) -> str:
    return f"{quote}{name}{quote}" if name in _RESERVED else name


def _tables() -> str:
    """Return what Terraform makes of it: JSON, tables by name, and the views with those that each reads."""
    return json.dumps({"tables": {s.name: _described(s) for s in SOURCES}, "views": VIEWS}, indent=2) + "\n"


def _described(source: Source) -> dict[str, Any]:
    return {
        "folder": source.folder,
        "partition": source.partition,
        "columns": [
            {"name": name, "type": _bigquery_type(kind), "mode": "NULLABLE"}
            for name, kind in source.columns.items()
        ],
    }


def write(folder: Path = SQL) -> None:
    """Write every generated file."""
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
