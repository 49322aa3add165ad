"""docs/estimate.md shows what the command prints, and the rates of the bundled file."""

from __future__ import annotations

import pytest

from factory import estimate_page
from id2core.estimates.report import SearchShape

REGENERATE = "run python -m factory.estimate_page"


@pytest.mark.parametrize("name", ["rates", "examples", "indexed"])
def test_the_page_is_up_to_date(name: str) -> None:
    page = estimate_page.PAGE.read_text(encoding="utf-8")
    assert estimate_page.fill(page, name, estimate_page.SECTIONS[name]()) == page, REGENERATE


def test_the_simulation_has_a_line_for_each_trouble() -> None:
    shape = SearchShape(
        shards=2, shard_rows=1, shard_bytes=1, tasks=1500, loaded_bytes=1, task_seconds=600, load_seconds=60
    )
    text = estimate_page.simulated(shape)
    assert all(f"| {name} |" in text for name in estimate_page.TROUBLE)
    assert "1,500 tasks of 600 s" in text and "| equal workers, none lost | 0.333 h |" in text
