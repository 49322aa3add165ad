"""The index of GPUs, whose arithmetic torch does on the CPU here as well."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from id2core.search import flat, gpu_index, scoring, shards
from id2core.search.gpu_index import GpuIndex


def unit_rows(rows: int, size: int, seed: int) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((rows, size), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustered(rows: int, size: int) -> NDArray[np.float32]:
    """Unit vectors around few centers, some so near that float16 cannot order them, and some equal."""
    rng = np.random.default_rng(0)
    spread = 10.0 ** rng.uniform(-4, 0.3, (rows, 1)).astype(np.float32)
    x = unit_rows(20, size, 1)[rng.integers(0, 20, rows)] + spread * unit_rows(rows, size, 2)
    x[100:300] = x[7]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "devices"),
    [(6000, ["cpu"]), (6017, ["cpu", "cpu"]), (700, ["cpu"]), (301, ["cpu"] * 400)],
    ids=["one GPU", "two GPUs, rows in no group", "too few for groups", "fewer than GPUs"],
)
@pytest.mark.parametrize("k", [1, 10])
def test_a_shard_on_gpus_finds_what_one_on_cpus_does_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, rows: int, devices: list[str], k: int
) -> None:
    # Small blocks, so that each query meets several, the last of them shorter.
    monkeypatch.setattr(gpu_index, "_SCORES", 2 * gpu_index._QUERIES * 512)
    references = clustered(rows, 48)
    queries = np.concatenate([references[:60:3], unit_rows(20, 48, 3)])
    names = [f"{(i * 7919) % rows:05d}" for i in range(rows)]
    ids = pa.table({"image_id": names, "uri": names})
    expected = shards.build(references, ids).search(queries, k)
    monkeypatch.setattr(flat, "on_gpu", lambda: True)
    monkeypatch.setattr(gpu_index, "GpuIndex", lambda descriptors: GpuIndex(descriptors, devices))
    found = shards.build(references, ids).search(queries, k)
    assert found.equals(expected)


def test_scores_of_rows_are_exact() -> None:
    references, queries = unit_rows(500, 32, 4), unit_rows(7, 32, 5)
    rows = np.random.default_rng(6).integers(-1, 500, (7, 40))
    expected = scoring.pairs(queries, references, rows)
    for devices in (["cpu"], ["cpu"] * 3):
        assert np.array_equal(GpuIndex(references, devices).pairs(queries, rows), expected)
