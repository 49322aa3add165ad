"""What rows have for other views than the whole outlives all that rewrites files, old files among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from id2core.runs import compaction, erasure
from id2core.runs.execution import Execution
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests import inset_columns, latent_sets

ROWS, FILES = 64, 8


@pytest.fixture
def corpus(tmp_path: Path) -> Dataset:
    """Eight small files of a corpus, the first two of them of version 3."""
    latents = latent_sets.origins(ROWS, 1)
    uri = latent_sets.write_embeddings(tmp_path / "out/reference/embeddings", latents, "r", files=FILES)
    named = {name: pa.repeat("r", ROWS) for name in ("run_id", "generation")}
    return latent_sets.with_columns(uri, named | inset_columns.draw(ROWS, latent_sets.N), earlier=2)


def values(dataset: Dataset) -> dict[str, Any]:
    """Image_id → all columns of views of its row."""
    names = ["image_id", "latent", *inset_columns.NAMES]
    table = dataset.read(schemas.embeddings_schema(latent_sets.N, 1), names)
    return {row["image_id"]: row for row in table.to_pylist()}


def test_compaction_keeps_them_and_fills_in_what_earlier_versions_lack(corpus: Dataset) -> None:
    before = values(corpus)
    assert sum(row["insets"] is not None for row in before.values()) > ROWS / 4
    assert compaction.compact(corpus.uri, everything=True).merged == FILES
    after = Dataset.open(corpus.uri)
    assert len(after.files) == 1 and values(after) == before


def test_a_file_without_any_inset_is_merged_like_others(tmp_path: Path) -> None:
    latents = latent_sets.origins(ROWS, 1)
    uri = latent_sets.write_embeddings(tmp_path / "embeddings", latents, "r", files=FILES)
    columns = {"insets": pa.array([[]] * ROWS, dict(schemas.VIEWS)["insets"])}  # looked, and nothing seen
    before = values(latent_sets.with_columns(uri, columns))
    assert compaction.compact(uri, everything=True).merged == FILES
    assert values(Dataset.open(uri)) == before


def test_a_takedown_removes_those_of_its_picture_alone(corpus: Dataset, tmp_path: Path) -> None:
    before = values(corpus)
    gone = [f"r{number:06d}" for number in (1, 20, 21)]  # in files of both versions
    erasure.erase(str(tmp_path / "out"), gone, Execution.begin())
    assert values(Dataset.open(corpus.uri)) == {k: v for k, v in before.items() if k not in gone}
