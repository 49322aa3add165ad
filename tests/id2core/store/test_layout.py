"""How the files of tables are laid out for those who filter them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from id2core.store import schemas


def test_ids_of_matches_are_in_dictionaries_and_every_column_has_statistics(tmp_path: Path) -> None:
    uploads = 30_000  # 2 MB of ids: above the size at which pyarrow gives a dictionary up by itself
    ids = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(uploads)]
    columns = {f.name: pa.nulls(2 * uploads, f.type) for f in schemas.MATCHES}
    columns |= {
        "query_id": pa.array([name for name in ids for _ in range(2)]),
        "rank": pa.array([1, 2] * uploads, pa.int32()),
        "verdict": pa.array(["match"] * (2 * uploads)),
    }
    path = tmp_path / "m.parquet"
    with schemas.parquet_writer(path, schemas.MATCHES) as writer:
        writer.write_table(pa.table(columns, schema=schemas.MATCHES), schemas.MATCHES_ROW_GROUP)
    [group] = [pq.read_metadata(path).row_group(0)]
    for i in range(group.num_columns):
        column = group.column(i)
        assert column.is_stats_set, column.path_in_schema
        if column.path_in_schema == "query_id":
            # An id once and an index a row; plainly written it would be the id of each row.
            assert column.total_uncompressed_size < 1.3 * uploads * 68
            assert column.statistics.min == min(ids) and column.statistics.max == max(ids)


def test_the_order_of_matches_names_its_columns() -> None:
    assert {name for name, _ in schemas.MATCHES_ORDER} < set(schemas.MATCHES.names)
