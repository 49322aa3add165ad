"""docs/data.md has every table and column of the contracts, and every view."""

import re
from pathlib import Path

import pytest

from factory import sql_views
from id2core.store import schemas

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
TABLES = schemas.TABLES | {
    "embeddings": schemas.embeddings_schema(1, 1),
    "manifest": schemas.MANIFEST,
}


def section(table: str) -> str:
    parts = PAGE.split(f"\n### {table}\n")
    assert len(parts) == 2, f"docs/data.md has no section {table}"
    return parts[1].split("\n### ")[0]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_described_in_the_order_of_its_schema(table: str) -> None:
    described = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section(table), re.MULTILINE)
    partition = {s.schema.metadata[b"id2.dataset"].decode(): s.partition for s in sql_views.SOURCES}.get(
        table
    )
    assert described == TABLES[table].names + ([partition] if partition else [])


@pytest.mark.parametrize("view", sql_views.VIEWS)
def test_every_view_is_described(view: str) -> None:
    assert f"\n| `{view}` |" in PAGE
