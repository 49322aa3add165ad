"""Time what a dashboard asks of `matches/`: counts per day, and the pairs of one upload.

Run `python -m benchmarks.dashboard [--uploads N] [--pairs K] [--days D]`. It draws N uploads with K pairs
each, over D scan dates, in the layout that `store/schemas.py` names, and asks DuckDB by plain globs. A ratio
is the bar's seconds over the seconds that were taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks import common
from benchmarks.common import Bar, Row
from factory import sql_views
from id2core.store import schemas

REFERENCES = 200_000
# Shares of pairs, of random scores, that get a verdict.
MATCH_SCORE, REVIEW_SCORE = 0.6, 0.5
EMBEDDINGS = schemas.embeddings_schema(4, 2)
# Objects of a part, as an embed job writes them.
PART = 4096
IDS = {"encoder_id": "mini-0123456789ab", "transform_id": "0123456789ab"}


def hex_ids(count: int, generator: np.random.Generator) -> pa.StringArray:
    """Random ids of 64 hex digits."""
    text = generator.bytes(32 * count).hex().encode()
    offsets = np.arange(0, 64 * count + 1, 64, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


class Drawing:
    """The tables of a place, drawn day by day."""

    def __init__(self, place: Path, uploads: int, pairs: int) -> None:
        self.place, self.uploads, self.pairs = place, uploads, pairs
        self.references = hex_ids(REFERENCES, np.random.default_rng(0))
        self.reference_uris = pa.array([f"gs://protected/originals/{i:07d}.jpg" for i in range(REFERENCES)])

    def day(self, number: int) -> tuple[str, str]:
        """Write one scan date; return the URI and the image_id of one of its uploads."""
        generator = np.random.default_rng(number + 1)
        started = datetime(2026, 11, 1, 2, tzinfo=UTC) + timedelta(days=number)
        uris = pa.array([f"gs://uploads/{started:%Y-%m-%d}/{i:08d}.jpg" for i in range(self.uploads)])
        generations = pa.array([str(1_764_000_000_000_000 + i) for i in generator.permutation(self.uploads)])
        uploads = {
            "image_id": hex_ids(self.uploads, generator),
            "uri": uris,
            "generation": generations,
            "run_id": f"{started:%Y%m%dT%H%M%S}-3f9a1c",
            "embedded_at": started,
            **IDS,
        }
        self._write_embeddings(number, uploads)
        self._write_matches(uploads, started, generator)
        some = self.uploads // 3
        return uris[some].as_py(), uploads["image_id"][some].as_py()

    def _write_embeddings(self, number: int, uploads: dict[str, Any]) -> None:
        folder = self.place / "queries/embeddings"
        folder.mkdir(parents=True, exist_ok=True)
        vectors = {
            "latent": schemas.vectors_to_array(np.zeros((self.uploads, 4), np.float16), 4),
            "descriptor": schemas.vectors_to_array(np.zeros((self.uploads, 2), np.float32), 2),
        }
        table = filled(EMBEDDINGS, uploads | vectors, self.uploads)
        for start in range(0, self.uploads, PART):
            with schemas.parquet_writer(folder / f"{number}-{start}.parquet", EMBEDDINGS) as writer:
                writer.write_table(table.slice(start, PART), row_group_size=schemas.ROW_GROUP)

    def _write_matches(
        self, uploads: dict[str, Any], started: datetime, generator: np.random.Generator
    ) -> None:
        rows = self.uploads * self.pairs
        query = np.repeat(np.arange(self.uploads), self.pairs)
        reference = generator.integers(0, REFERENCES, rows)
        scores = generator.beta(2, 8, (self.uploads, self.pairs)).astype(np.float32)
        score = np.sort(scores)[:, ::-1].ravel()
        verdict = np.where(score > MATCH_SCORE, "match", np.where(score > REVIEW_SCORE, "review", "none"))
        columns = {
            "query_id": uploads["image_id"].take(query),
            "query_uri": uploads["uri"].take(query),
            "query_generation": uploads["generation"].take(query),
            "rank": np.tile(np.arange(1, self.pairs + 1, dtype=np.int32), self.uploads),
            "reference_id": self.references.take(reference),
            "reference_uri": self.reference_uris.take(reference),
            "score": score,
            "verdict": verdict,
            "run_id": uploads["run_id"],
            "scanned_at": started,
            "index_id": "flat-0123456789abcdef",
            "calibration_id": "0123456789abcdef",
            "view": "whole",
            "channel": "latent",
            **IDS,
        }
        table = filled(schemas.MATCHES, columns, rows).sort_by(list(schemas.MATCHES_ORDER))
        folder = self.place / f"matches/scan_date={started:%Y-%m-%d}"
        folder.mkdir(parents=True)
        with schemas.parquet_writer(folder / "drawn.parquet", schemas.MATCHES) as writer:
            writer.write_table(table, row_group_size=schemas.MATCHES_ROW_GROUP)


def filled(schema: pa.Schema, columns: dict[str, Any], rows: int) -> pa.Table:
    """A table of columns and of constants; what is missing is null."""
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if isinstance(value, np.ndarray | pa.Array):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), rows))
    return pa.Table.from_arrays(arrays, schema=schema)


def questions(place: Path, uri: str, image_id: str) -> Iterator[tuple[str, str, float | None]]:
    """What is asked, its SQL, and the seconds that its bar allows."""
    files = f"read_parquet('{place}/matches/**/*.parquet', hive_partitioning = true)"
    yield "`daily_counts`", "SELECT * FROM id2.daily_counts", 1.0
    yield "pairs of an upload by `query_uri`", f"SELECT * FROM {files} WHERE query_uri = '{uri}'", 0.3
    yield "pairs of an upload by `query_id`", f"SELECT * FROM {files} WHERE query_id = '{image_id}'", 0.3
    yield (
        "matches per day",
        f"SELECT scan_date, count(*) FROM {files} WHERE verdict = 'match' GROUP BY ALL",
        None,
    )
    yield "`best_matches` of an upload", f"SELECT * FROM id2.best_matches WHERE query_uri = '{uri}'", None


def timed(connection: duckdb.DuckDBPyConnection, sql: str, rounds: int) -> float:
    """Median seconds until every row is there."""
    return median(common.seconds(lambda: connection.execute(sql).fetchall()) for _ in range(rounds))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--uploads", type=int, default=1_000_000, help="uploads of all days")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of each upload")
    parser.add_argument("--days", type=int, default=5, help="scan dates")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="id2-bench-") as name:
        place = Path(name)
        drawing = Drawing(place, options.uploads // options.days, options.pairs)
        start = time.perf_counter()
        uri, image_id = [drawing.day(number) for number in range(options.days)][-1]
        drawn = time.perf_counter() - start
        connection = duckdb.connect()
        connection.execute("SET VARIABLE place = ?", [name])
        connection.execute((sql_views.SQL / "duckdb.sql").read_text())
        size = f"{options.uploads:,} uploads × {options.pairs} pairs"
        rows, figures = [], {}
        for what, sql, bar in questions(place, uri, image_id):
            figures[what] = taken = timed(connection, sql, options.rounds)
            if bar:
                rows.append(
                    Row(f"DuckDB, {what}, {size}", f"{taken:.2f} s", f"{bar:g} s (bar)", bar / taken, Bar(1))
                )
        files = [path.stat().st_size for path in place.glob("matches/**/*.parquet")]
    common.report("dashboard", rows, seconds=figures, drawn=drawn, files=files)


if __name__ == "__main__":
    main()
