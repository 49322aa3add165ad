from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.linalg
from numpy.typing import NDArray

from id2core.errors import ClosedFormError, DatasetError, PairsError
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset
from id2core.training import closed_form, pairs
from id2core.training.closed_form import ClosedForm
from id2core.training.pairs import Pairs, UnpairedRows
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform

N = 64
IDS = {"encoder_id": "mini-0", "transform_id": "identity", "preprocess_id": "p"}
Latents = dict[str, NDArray[np.float16]]


def table(schema: pa.Schema, columns: dict[str, Any], rows: int) -> pa.Table:
    empty = {field.name: pa.nulls(rows, field.type) for field in schema}
    return pa.Table.from_pydict(empty | columns, schema)


def write_embeddings(
    uri: Path, latents: Iterable[tuple[str, NDArray[Any]]], ids: dict[str, str] = IDS, size: int = N
) -> str:
    """A data set of two files in row groups of at most 3 rows."""
    rows = list(latents)
    schema = schemas.embeddings_schema(size, 1)

    def groups(part: list[tuple[str, NDArray[Any]]]) -> Iterable[pa.Table]:
        for start in range(0, len(part), 3):
            names, vectors = zip(*part[start : start + 3], strict=True)
            columns = {
                "image_id": names,
                "uri": [f"/{name}-{start}.jpg" for name in names],
                "latent": schemas.vectors_to_array(np.array(vectors, np.float16), size),
            }
            yield table(schema, columns, len(names))

    key = datasets.digest_of([name for name, _ in rows])
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    files = [datasets.write_file(str(uri), f"{key}{i}", groups(h), schema) for i, h in enumerate(halves)]
    datasets.write_commit(str(uri), Commit("embeddings", "run", ids, tuple(files)))
    return Dataset.open(str(uri))


def write_translations(uri: Path, rows: list[tuple[str, str]]) -> Dataset:
    """A data set of (image_id, origin_id)."""
    columns = {"image_id": [r[0] for r in rows], "origin_id": [r[1] for r in rows]}
    content = table(schemas.TRANSLATIONS, columns, len(rows))
    record = datasets.write_file(str(uri), datasets.digest_of(rows), [content], schemas.TRANSLATIONS)
    datasets.write_commit(str(uri), Commit("translations", "run", {}, (record,)))
    return Dataset.open(str(uri))


def vectors(names: str) -> Latents:
    """A latent for each name, of its own."""
    return {
        name: np.random.default_rng(i).standard_normal(N).astype(np.float16)
        for i, name in enumerate(names.split())
    }


OF = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[list[Dataset], list[Dataset], Latents]:
    """Origins and translations embedded apart, in no good order."""
    latents = vectors("c b a b1 c2 a2 c1 a1")
    items = list(latents.items())
    embedded = [write_embeddings(tmp_path / "e0", items[:3]), write_embeddings(tmp_path / "e1", items[3:])]
    return embedded, [write_translations(tmp_path / "t", OF)], latents


def test_a_class_is_an_origin_and_its_translations(
    sides: tuple[list[Dataset], list[Dataset], Latents], tmp_path: Path
) -> None:
    embedded, translated, latents = sides
    seen: list[tuple[str, int, int]] = []
    loaded = pairs.load(embedded, translated, tmp_path / "cache", lambda *step: seen.append(step))
    assert loaded.origin_ids == ["a", "b", "c"] and loaded.offsets.tolist() == [0, 3, 5, 8]
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and loaded.labels.dtype == np.int32
    assert loaded.is_origin.tolist() == [True, False, False, True, False, True, False, False]
    assert isinstance(loaded.latents, np.memmap) and loaded.latents.dtype == np.float16
    expected = [latents[name] for name in ("a", "a1", "a2", "b", "b1", "c", "c1", "c2")]
    assert np.array_equal(loaded.latents, expected)
    assert loaded.unpaired == UnpairedRows() and loaded.ids == {"encoder_id": "mini-0", "preprocess_id": "p"}
    assert seen[-1] == ("latents", 8, 8) and len(seen) > 2


def test_what_has_no_class_is_counted(tmp_path: Path) -> None:
    latents = vectors("a a1 b1 c stray a2")
    doubled = [*latents.items(), ("a1", latents["c"])]
    embedded = write_embeddings(tmp_path / "e", doubled)
    rows = [*OF, ("a1", "a"), ("a1", "c"), ("a", "c"), ("d1", "d")]
    loaded = pairs.load([embedded], [write_translations(tmp_path / "t", rows)], tmp_path / "cache")
    assert loaded.origin_ids == ["a"]
    assert np.array_equal(loaded.latents, [latents[name] for name in ("a", "a1", "a2")])
    unpaired = loaded.unpaired
    assert unpaired == UnpairedRows(
        origins_without_latent=2,  # b, d
        origins_without_translation=1,  # c
        translations_without_latent=3,  # c1, c2, d1
        translations_without_origin=1,  # b1
        repeated_translations=3,  # a1 twice, a
        repeated_latents=1,  # a1
        unrelated_latents=1,  # stray
    )
    assert "3 translations without latent" in str(unpaired)
    assert len(rows) == 2 + sum(list(unpaired.model_dump().values())[2:5])


def test_the_cache_serves_the_same_data_in_any_order(
    sides: tuple[list[Dataset], list[Dataset], Latents], tmp_path: Path
) -> None:
    embedded, translated, _ = sides
    first = pairs.load(embedded, translated, tmp_path / "cache")
    for file in tmp_path.glob("*/*.parquet"):
        file.unlink()  # nothing but the cache has the latents now
    again = pairs.load(embedded[::-1] + embedded, translated, tmp_path / "cache")
    assert again.digest == first.digest and again.unpaired == first.unpaired
    assert np.array_equal(again.latents, first.latents) and again.origin_ids == first.origin_ids

    fewer = write_translations(tmp_path / "fewer", OF[:2])
    with pytest.raises(DatasetError, match="gone"):
        pairs.load(embedded, [fewer], tmp_path / "cache")


KILLED = """
import os, signal, sys
from id2core.store.datasets import Dataset
from id2core.training import pairs
kill = lambda stage, completed, total: completed > 4 and os.kill(os.getpid(), signal.SIGKILL)
*embedded, translated = map(Dataset.open, sys.argv[2:])
pairs.load(embedded, [translated], sys.argv[1], kill)
"""


def test_a_killed_build_is_no_cache(
    sides: tuple[list[Dataset], list[Dataset], Latents], tmp_path: Path
) -> None:
    embedded, translated, latents = sides
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(cache), *(d.uri for d in embedded + translated)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list(cache.rglob("*.npy")), "it was killed too early to leave anything"
    assert not list(cache.glob("pairs-*"))
    loaded = pairs.load(embedded, translated, cache)
    assert np.array_equal(loaded.latents[0], latents["a"]) and len(loaded.latents) == len(latents)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [f"pairs-{loaded.digest}"]

    (cache / f"pairs-{loaded.digest}" / "latents.npy").write_bytes(b"")
    with pytest.raises(PairsError, match="delete it"):
        pairs.load(embedded, translated, cache)


def test_data_sets_that_do_not_fit_are_refused(
    sides: tuple[list[Dataset], list[Dataset], Latents], tmp_path: Path
) -> None:
    embedded, translated, latents = sides
    items = list(latents.items())
    other = write_embeddings(tmp_path / "o", items[3:], IDS | {"encoder_id": "sd2-1"})
    wide = write_embeddings(tmp_path / "w", [(k, np.ones(N + 1)) for k, _ in items[3:]], size=N + 1)
    infinite = write_embeddings(tmp_path / "i", [("a1", np.full(N, np.inf))])
    cache = tmp_path / "cache"
    for uris, of, match in [
        ([embedded[0], other], translated, "same encoder"),
        ([embedded[0], wide], translated, "64 numbers, other files of 65"),
        ([embedded[0], infinite], translated, "not finite"),
        (embedded[:1], translated, "5 translations without latent.*embed"),
        (translated, translated, "holds translations"),
        ([], translated, "one or more"),
    ]:
        with pytest.raises(PairsError, match=match):
            pairs.load(uris, of, cache)
        assert not list(cache.glob("pairs-*"))
    with pytest.raises(PairsError, match="local directory"):
        pairs.load(embedded, translated, "gs://bucket/cache")
    with pytest.raises(DatasetError, match="_SUCCESS"):
        pairs.load(embedded, [Dataset.open(str(tmp_path / "nowhere"))], cache)


def test_validation_classes_depend_on_the_origin_alone() -> None:
    names = [f"{i:064x}" for i in range(4000)]
    few, many = pairs.held_out(names, 0.1), pairs.held_out(names, 0.3)
    assert 340 < few.sum() < 460 and 1100 < many.sum() < 1300
    assert many[few].all()
    assert np.array_equal(pairs.held_out(names[::-1], 0.1), few[::-1])
    assert not pairs.held_out(names, 0).any()
    with pytest.raises(PairsError, match="choose"):
        pairs.held_out(names, 1)


RNG = np.random.default_rng(0)
# Translations err by much in 16 of 64 directions, by a little in all.
NOISY = np.linalg.qr(RNG.standard_normal((N, 16)))[0]


def drawn(
    origins: int,
    each: int,
    *,
    loud: float = 8,
    little: float = 1,
    mean: float = 0,
    contrast: float = 0,
    seed: int = 1,
) -> Pairs:
    """Classes in memory."""
    rng = np.random.default_rng(seed)
    o = rng.standard_normal((origins, 1, N))
    noise = loud * rng.standard_normal((origins, each, 16)) @ NOISY.T
    noise += little * rng.standard_normal((origins, each, N))
    g = (o + noise) * np.exp(contrast * rng.standard_normal((origins, each, 1)))
    latents = (np.concatenate([o, g], axis=1) + mean).reshape(-1, N).astype(np.float16)
    offsets = np.arange(origins + 1) * (each + 1)
    return Pairs(latents, [f"{seed}-{i:08d}" for i in range(origins)], offsets, {"encoder_id": "mini-0"})


def retrieval(weights: NDArray[Any] | None, data: Pairs) -> float:
    """Mean of 1/rank of all translations among all origins."""
    w = Transform(weights)
    queries, references = w.apply(data.latents[~data.is_origin]), w.apply(data.latents[data.is_origin])
    return closed_form.lookup(queries, references, data.labels[~data.is_origin])[0]


def test_w_leaves_the_noise_out_and_finds_the_origin() -> None:
    solution = closed_form.fit(drawn(800, 4), m=32)
    weights = solution.transform.weights
    assert weights is not None and weights.shape == (N, 32) and weights.dtype == np.float32
    of_noise = np.linalg.norm(NOISY.T @ weights) / np.linalg.norm(weights)
    assert of_noise < 0.1 < np.sqrt(16 / N)
    assert (np.diff(solution.eigenvalues) <= 0).all() and solution.eigenvalues[-1] > 0

    test = drawn(800, 2, seed=2)
    random = RNG.standard_normal((N, 32)).astype(np.float32)
    assert retrieval(None, test) < 0.3 and retrieval(random, test) < 0.3
    assert retrieval(weights, test) > 0.8


def test_the_validation_score_is_that_of_the_chosen_candidate(tmp_path: Path) -> None:
    data = drawn(300, 3)
    steps: list[tuple[str, int, int]] = []
    solution = closed_form.fit(data, m=16, progress=lambda *step: steps.append(step))
    best = max(solution.validation, key=lambda c: c.score)
    assert (solution.shrinkage, solution.power, solution.centered) == (
        best.shrinkage,
        best.power,
        best.centered,
    )
    grid = len(closed_form.SHRINKAGES) * len(closed_form.POWERS) * 2
    assert len(set(solution.validation)) == grid
    assert steps[-1] == ("shrinkage", 5, 5) and ("statistics", 1200, 1200) in steps

    # Looked up with the public W, the held-out translations give that score.
    held_out = data.held_out(0.1)
    queries = held_out[data.labels] & ~data.is_origin
    w = solution.transform
    own = data.labels[queries].astype(np.int64)
    score, _ = closed_form.lookup(w.apply(data.latents[queries]), w.apply(data.latents[data.is_origin]), own)
    assert score == pytest.approx(best.score, abs=0.01)

    w.save(tmp_path / "w.safetensors")
    metadata = load_transform(str(tmp_path / "w.safetensors")).metadata
    assert metadata["encoder_id"] == "mini-0" and metadata["validation_map"] == best.score
    assert metadata["origins"] == int((~held_out).sum()) and metadata["pairs"] == 3 * metadata["origins"]


def test_held_out_classes_are_no_part_of_w() -> None:
    data = drawn(200, 2)
    fixed = {"m": 8, "shrinkage": 0.1, "power": 0.0, "centered": False}
    other = data.latents.copy()
    other[data.held_out(0.2)[data.labels]] *= 3
    changed = Pairs(other, data.origin_ids, data.offsets, data.ids)
    first, second, full = (
        closed_form.fit(x, validation_share=share, **fixed).transform.weights
        for x, share in ((data, 0.2), (changed, 0.2), (changed, 0.0))
    )
    assert np.array_equal(first, second) and not np.array_equal(first, full)


def test_few_pairs_want_more_shrinkage() -> None:
    def gain(solution: ClosedForm) -> float:
        """What shrinkage adds to next to none of it."""
        none = max(c.score for c in solution.validation if c.shrinkage == closed_form.SHRINKAGES[0])
        return max(c.score for c in solution.validation) - none

    few = closed_form.fit(drawn(60, 1, loud=4, little=1.5), m=32, validation_share=0.4)
    many = closed_form.fit(drawn(1500, 4, loud=4, little=1.5), m=32)
    assert few.shrinkage > closed_form.SHRINKAGES[0]
    assert gain(few) > 0.03 > 0.01 > gain(many)


def test_a_mean_is_taken_out_where_translations_change_the_contrast() -> None:
    far = drawn(600, 2, mean=4, contrast=1)
    solution = closed_form.fit(far, m=32)
    assert solution.centered and solution.transform.weights is not None
    training = far.is_origin & ~far.held_out(0.1)[far.labels]
    latents = far.latents[training].astype(np.float64)
    of_mean = latents.mean(0) @ solution.transform.weights
    spread = (latents @ solution.transform.weights).std(0)
    assert np.linalg.norm(of_mean) < 0.01 * np.linalg.norm(spread)
    test = drawn(600, 1, mean=4, contrast=1, seed=3)
    plain = closed_form.fit(far, m=32, centered=False)
    assert retrieval(solution.transform.weights, test) > retrieval(plain.transform.weights, test) + 0.1


def test_float32_agrees_with_a_direct_solution_in_float64() -> None:
    data = drawn(500, 3)
    moments = closed_form.gather(data, np.ones(500, np.bool_))
    directions = next(closed_form.solve(moments, 20, [0.1]))
    scale = np.trace(moments.within_scatter) / N
    noise = moments.within_scatter / scale + 0.1 * np.eye(N)
    values, exact = scipy.linalg.eigh(moments.between_scatter / scale, noise)
    np.testing.assert_allclose(directions.ratios, values[::-1][:20], rtol=1e-4)
    np.testing.assert_allclose(directions.vectors.T @ noise @ directions.vectors, np.eye(20), atol=1e-3)
    for i, vector in enumerate(directions.vectors.T):
        exact_cosine = vector @ noise @ exact[:, N - 1 - i]
        assert abs(exact_cosine) > 0.999


def test_moments_do_not_depend_on_blocks() -> None:
    data = drawn(90, 3)
    latents = data.latents.astype(np.float64)
    origins = latents[data.is_origin]
    d = (latents - origins[data.labels])[~data.is_origin]
    half = np.arange(90) < 45
    for block in (7, 10_000):
        moments = closed_form.gather(data, half, block)
        moments.merge(closed_form.gather(data, ~half, block))
        assert (moments.pairs, moments.origins) == (270, 90)
        np.testing.assert_allclose(moments.within_scatter, d.T @ d / 270, atol=1e-5)
        np.testing.assert_allclose(moments.between_scatter, np.cov(origins.T, bias=True), atol=1e-5)
        np.testing.assert_allclose(moments.mean, origins.mean(0), atol=1e-6)
    fits = [closed_form.fit(data, m=8, block_rows=block).transform.weights for block in (7, 10_000)]
    assert fits[0] is not None and fits[1] is not None
    np.testing.assert_allclose(fits[0], fits[1], atol=1e-3)


def test_what_gives_no_w_is_refused() -> None:
    data = drawn(20, 1)
    still = Pairs(np.repeat(data.latents[::2], 2, axis=0), data.origin_ids, data.offsets, {})
    broken = Pairs(np.full_like(data.latents, np.nan), data.origin_ids, data.offsets, {})
    fixed = {"power": 0.0, "centered": False, "validation_share": 0.0}
    for what, settings, match in [
        (data, {"m": 65}, "from 1 to 64"),
        (data, {"m": 4, "shrinkage": 0.0}, "more than 0"),
        (data, {"m": 4, "validation_share": 0.0}, "validation_share"),
        (drawn(1, 1), {"m": 4, "shrinkage": 1.0, **fixed}, "translate more origins"),
        (still, {"m": 4, "shrinkage": 1.0, **fixed}, "do not differ"),
        (broken, {"m": 4, "shrinkage": 1.0, **fixed}, "not finite"),
        (data, {"m": 4, "shrinkage": 1e-30, **fixed}, "too small"),
    ]:
        with pytest.raises(ClosedFormError, match=match):
            closed_form.fit(what, **settings)


def test_equal_scores_count_against_the_query() -> None:
    same = np.ones((3, 2), np.float32)
    assert closed_form.lookup(same[:1], same, np.array([0])) == pytest.approx((1 / 3, 0))
    references = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    score, separation = closed_form.lookup(references[:1], references, np.array([0]))
    assert score == 1 and separation == pytest.approx(np.sqrt(3 / 2))
