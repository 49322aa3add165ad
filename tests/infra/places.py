"""Tables below a place, drawn row by row with the real schemas and the real writer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from factory import sql_views
from id2core.store import schemas

EMBEDDINGS = schemas.embeddings_schema(4, 2)
NIGHT = datetime(2026, 11, 1, 2, tzinfo=UTC)
IDS = {"encoder_id": "e-1", "transform_id": "t-1", "preprocess_id": "p-1"}

Row = Mapping[str, Any]


def night(number: int, hours: float = 0) -> datetime:
    return NIGHT + timedelta(days=number - 1, hours=hours)


def run_of(number: int) -> str:
    return f"{night(number):%Y%m%dT%H%M%S}-00000{number}"


def write(folder: Path, schema: pa.Schema, rows: Iterable[Row]) -> None:
    """One more file of a data set; columns that a row lacks are null."""
    names = set(schema.names)
    rows = list(rows)
    assert all(set(row) <= names for row in rows)
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{len(list(folder.iterdir()))}.parquet"
    with schemas.parquet_writer(path, schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))


def embed(folder: Path, number: int, pictures: Mapping[str, str], **other: Any) -> None:
    """The segment of a night: uri → image_id."""
    vectors = {"latent": np.zeros(4, np.float16), "descriptor": np.ones(2, np.float32)}
    rows = [
        {"uri": uri, "image_id": image_id, "generation": "1", "run_id": run_of(number)}
        | {"embedded_at": night(number)}
        | IDS
        | vectors
        | other
        for uri, image_id in pictures.items()
    ]
    write(folder, EMBEDDINGS, rows)


def match(uri: str, reference: str, score: float, number: int, **other: Any) -> Row:
    """A pair that a night stored; the upload's image_id is its URI in capitals."""
    return {
        "query_uri": uri,
        "query_id": uri.upper(),
        "query_generation": "1",
        "rank": 1,
        "reference_id": reference,
        "reference_uri": f"old/{reference}",
        "score": score,
        "verdict": "none",
        "encoder_id": IDS["encoder_id"],
        "transform_id": IDS["transform_id"],
        "run_id": run_of(number),
        "scanned_at": night(number),
        "view": "whole",
        "channel": "latent",
    } | other


def store(place: Path, number: int, *rows: Row) -> None:
    write(place / f"matches/scan_date={night(number):%Y-%m-%d}", schemas.MATCHES, rows)


def judge(place: Path, pair: Row, verdict: str, at: datetime, **other: Any) -> None:
    """A later verdict of a stored pair."""
    keys = ("query_uri", "query_generation", "reference_id", "encoder_id", "transform_id", "channel")
    row = {key: pair[key] for key in keys} | {"verdict": verdict, "judged_at": at, "run_id": "r"} | other
    write(place / "verdicts", schemas.VERDICTS, [row])


def connect(place: Path) -> duckdb.DuckDBPyConnection:
    """The views over a place, made as the script's head says."""
    connection = duckdb.connect()
    connection.execute("SET VARIABLE place = ?", [str(place)])
    connection.execute((sql_views.SQL / "duckdb.sql").read_text())
    return connection


def ask(place: Path, query: str) -> list[tuple[Any, ...]]:
    with connect(place) as connection:
        return connection.execute(query).fetchall()
