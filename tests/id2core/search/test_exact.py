from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from id2core.errors import DatasetError, TransformError
from id2core.search import exact, shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.transforms.linear import Transform
from tests.latent_sets import N, write_descriptors, write_embeddings


def drawn(rows: int, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, N)).astype(np.float16)


def embedded(*args: Any, **ids: str) -> Dataset:
    return Dataset.open(write_embeddings(*args, **ids))


def some_w(seed: int = 9) -> Transform:
    weights = np.random.default_rng(seed).standard_normal((N, 6)).astype(np.float32)
    return Transform(weights, {"encoder_id": "e-1"})


def test_the_best_references_under_each_transform_in_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "SHARD_ROWS", 100)
    references, queries = drawn(730, 0), drawn(130, 1)
    left, right = (
        embedded(tmp_path / "r", references, "r", 3),
        embedded(tmp_path / "q", queries, "q"),
    )
    read: list[str] = []
    real = datasets.read_file
    monkeypatch.setattr(datasets, "read_file", lambda uri, *more: (read.append(uri), real(uri, *more))[1])
    reports: list[tuple[str, int, int]] = []
    transforms = [Transform(), some_w()]
    results = exact.search(left, right, transforms, 7, progress=lambda *step: reports.append(step))
    assert read.count(left.uri) == 15 and reports[-1] == ("lookup", 730 * 130, 730 * 130)
    for transform, matches in zip(transforms, results, strict=True):
        scores = transform.apply(queries) @ transform.apply(references).T
        best = np.argsort(-scores, axis=1)[:, :7]
        assert matches.schema.equals(schemas.MATCHES, check_metadata=True)
        assert matches["reference_id"].to_pylist() == [f"r{i:06d}" for i in best.ravel()]
        np.testing.assert_allclose(
            matches["score"].to_numpy(), np.take_along_axis(scores, best, 1).ravel(), atol=1e-5
        )
        assert matches["rank"].to_pylist() == [1, 2, 3, 4, 5, 6, 7] * 130
        assert matches["query_uri"].to_pylist()[::7] == [f"/q/{i:06d}.jpg" for i in range(130)]
        assert matches["transform_id"].unique().to_pylist() == [transform.transform_id]
    names = [m["index_id"][0].as_py() for m in results]
    assert names[0] == shards.index_id(left) != names[1]
    assert len({m["run_id"][0].as_py() for m in results}) == 2
    bytes_of_fifty = 50 * 4 * (N + 6)
    parts = exact.search(left, right, transforms, 7, query_bytes=bytes_of_fifty)
    for a, b in zip(results, parts, strict=True):
        assert a.drop(["score", "scanned_at"]).equals(b.drop(["score", "scanned_at"]))


def test_equal_scores_are_ordered_by_id_and_a_small_corpus_gives_all_it_has(tmp_path: Path) -> None:
    same = np.ones((60, N))
    left = embedded(tmp_path / "r", same, "r")
    right = embedded(tmp_path / "q", drawn(3, 1), "q", 1)
    [matches] = exact.search(left, right, [some_w()], 100)
    assert matches["reference_id"].to_pylist() == [f"r{i:06d}" for i in range(60)] * 3
    empty = embedded(tmp_path / "empty", np.empty((0, N)), "x", 1)
    assert exact.search(empty, right, [Transform()])[0].num_rows == 0
    assert exact.search(left, empty, [Transform()])[0].num_rows == 0


def test_a_data_set_without_latents_is_compared_under_its_own_transform(tmp_path: Path) -> None:
    w, references, queries = some_w(), drawn(70, 0), drawn(9, 1)
    left, right = (
        embedded(tmp_path / "r", references, "r"),
        embedded(tmp_path / "q", queries, "q", 1),
    )
    bare = Dataset.open(write_descriptors(tmp_path / "d", references, "r", w))
    asked = Dataset.open(write_descriptors(tmp_path / "a", queries, "q", w))
    [expected] = exact.search(left, right, [w], 5)
    for results in (exact.search(bare, right, [w], 5), exact.search(left, asked, [w], 5)):
        same = ["query_uri", "reference_id", "rank", "score"]
        assert results[0].select(same).equals(expected.select(same))
    with pytest.raises(DatasetError, match="holds no latents, only descriptors of transform"):
        exact.search(bare, right, [w, Transform()], 5)
    for file in Path(bare.uri).glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="is damaged"):
        exact.search(bare, right, [w], 5)


def test_what_does_not_compare_is_refused(tmp_path: Path) -> None:
    left = embedded(tmp_path / "r", drawn(9, 0), "r", transform_id="other")
    right = embedded(tmp_path / "q", drawn(9, 1), "q")
    assert exact.search(left, right, [some_w()], 2)[0].num_rows == 18  # their own transforms do not matter
    other = embedded(tmp_path / "o", drawn(9, 1), "o", encoder_id="e-2")
    with pytest.raises(DatasetError, match="encoder_id e-2"):
        exact.search(left, other, [Transform()])
    with pytest.raises(TransformError, match="trained for e-3"):
        exact.search(left, right, [Transform(some_w().weights, {"encoder_id": "e-3"})])
    with pytest.raises(TransformError, match="latents of 5 numbers"):
        exact.search(left, right, [Transform(np.ones((5, 2), np.float32))])
    with pytest.raises(ValueError, match="k is 0"):
        exact.search(left, right, [Transform()], 0)
