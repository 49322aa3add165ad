from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from id2core.encoders.registry import load_encoder
from id2core.errors import EncoderError
from id2core.evaluation import metrics
from id2core.search import pairwise
from id2core.search.pairwise import LocalMatching, Pictures, Scripted
from id2core.store import schemas
from id2core.store.rejects import Reason
from tests.drawing import draw_photos
from tests.tiny_backbones import saved


class Matcher(nn.Module):
    """Maps of colors; a pair scores minus the distance of their means."""

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 8)

    @torch.jit.export
    def score(self, queries: Tensor, references: Tensor) -> Tensor:
        return -torch.cdist(queries.mean(dim=(2, 3)), references.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def scripted(path: Path, module: nn.Module | None = None) -> Path:
    torch.jit.script(module or Matcher()).save(str(path))
    path.with_suffix(".json").write_text('{"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}')
    return path


def maps(count: int, seed: int, channels: int = 3, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels, side, side)).astype(np.float16)


@pytest.fixture
def local(tiny_vae: str) -> LocalMatching:
    return LocalMatching(load_encoder(tiny_vae, dtype="float32", batch_size=4), 1)


def test_local_matching_is_the_mean_best_cosine_of_places_both_ways(local: LocalMatching) -> None:
    queries, references = maps(5, 0), maps(7, 1)
    expected = np.empty((5, 7))
    for i, q in enumerate(queries.astype(np.float64).reshape(5, 3, -1)):
        for j, r in enumerate(references.astype(np.float64).reshape(7, 3, -1)):
            cosine = (q / np.linalg.norm(q, axis=0)).T @ (r / np.linalg.norm(r, axis=0))
            expected[i, j] = (cosine.max(axis=1).mean() + cosine.max(axis=0).mean()) / 2
    for block in (1, 3, 64):
        scores = local.score(queries, references, block)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert local.score(queries, queries).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_maps_of_an_autoencoder_are_its_latents(local: LocalMatching) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    encoded = local.encode(pixels)
    assert encoded.dtype == np.float16 and encoded.shape == (2, 1, 32, 32)
    assert local.scorer_id.startswith("local-tiny-")
    with pytest.raises(EncoderError, match="no square map of 3"):
        LocalMatching(local._encoder, 3)


@pytest.mark.parametrize("family, shape", [("vit", (8, 4, 4)), ("convnext", (8, 4, 4)), ("clip", (8, 4, 4))])
def test_a_backbone_gives_the_maps_of_its_last_layer(family: str, shape: tuple, tmp_path: Path) -> None:
    scorer = pairwise.load(str(saved(family, tmp_path / "tiny")), dtype="float32", batch_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    encoded = scorer.encode(pixels)
    assert encoded.shape == (3, *shape) and encoded.dtype == np.float16
    # A change in the lower right corner must show there: places keep their order.
    changed = pixels.copy()
    changed[:, 24:, 24:] = 255 - changed[:, 24:, 24:]
    moved = np.abs(scorer.encode(changed).astype(np.float32) - encoded).mean(axis=(0, 1))
    assert np.unravel_index(moved.argmax(), moved.shape) == (3, 3)


def test_a_torchscript_file_encodes_and_scores(tmp_path: Path) -> None:
    scorer = pairwise.load(str(scripted(tmp_path / "qaconv.pt")), batch_size=2)
    assert isinstance(scorer, Scripted) and scorer.scorer_id.startswith("qaconv-")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    encoded = scorer.encode(pixels)
    assert encoded.shape == (5, 3, 4, 4) and encoded.dtype == np.float16
    means = pixels.mean(axis=(1, 2)) / 255
    expected = -np.linalg.norm(means[:, None] - means, axis=2)
    np.testing.assert_allclose(scorer.score(encoded, encoded, 2), expected, atol=2e-3)


def test_a_search_equals_sorting_all_scores_and_is_measured(local: LocalMatching) -> None:
    references = Pictures(tuple(f"r{i}" for i in range(9)), maps(9, 0))
    noisy = references.maps[[4, 2, 7]] + np.float16(0.3) * maps(3, 1)
    queries = Pictures(("a", "b", "c"), noisy)
    ranked = pairwise.search(local, queries, references, 4, block=2)
    assert ranked.schema.field("score").type == schemas.MATCHES.field("score").type
    scores = local.score(queries.maps, references.maps)
    order = np.argsort(-scores, axis=1)[:, :4]
    assert ranked["query_uri"].to_pylist() == [q for q in "abc" for _ in range(4)]
    assert ranked["rank"].to_pylist() == [1, 2, 3, 4] * 3
    assert ranked["reference_uri"].to_pylist() == [f"r{i}" for i in order.ravel()]
    evaluation = metrics.evaluate(ranked, {"a": "r4", "b": "r2", "c": "r0"}, resamples=0)
    assert evaluation.accuracy.value == pytest.approx(2 / 3)


def test_ties_do_not_depend_on_the_blocks(local: LocalMatching) -> None:
    same = np.repeat(maps(1, 0), 7, axis=0)
    references = Pictures(tuple(reversed([f"r{i}" for i in range(7)])), same)
    for block in (1, 2, 64):
        ranked = pairwise.search(local, Pictures(("q",), same[:1]), references, 3, block)
        assert ranked["reference_uri"].to_pylist() == ["r0", "r1", "r2"]
    assert pairwise.search(local, Pictures(("q",), same[:1]), references, 99).num_rows == 7
    assert pairwise.search(local, Pictures((), same[:0]), references, 3).num_rows == 0


def test_files_are_read_and_broken_ones_are_reported(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "photos", 5)
    (folder / "p0002.jpg").write_bytes(b"no picture")
    uris = sorted(str(path) for path in folder.iterdir())
    scorer = pairwise.load(str(scripted(tmp_path / "m.pt")))
    pictures, rejects = pairwise.read(scorer, uris, batch=2)
    assert pictures.uris == (*uris[:2], *uris[3:]) and pictures.maps.shape == (4, 3, 4, 4)
    assert {uri: reject.reason for uri, reject in rejects.items()} == {uris[2]: Reason.NOT_AN_IMAGE}
    best = pairwise.search(scorer, pictures, pictures, 1)
    assert best["reference_uri"].to_pylist() == list(pictures.uris)


def test_what_does_not_fit_says_what_to_do(local: LocalMatching, tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    (tmp_path / "junk.pt").write_bytes(b"junk")
    for path, hint in (
        (scripted(tmp_path / "half.pt", Half()), "encode"),
        (tmp_path / "junk.pt", "no Torch"),
    ):
        with pytest.raises(EncoderError, match=hint):
            pairwise.load(str(path))
    with pytest.raises(ValueError, match="one scorer"):
        local.score(maps(1, 0), maps(1, 0, side=5))
    with pytest.raises(ValueError, match="once"):
        Pictures(("a", "a"), maps(2, 0))
    overflown = Pictures(("a",), np.full((1, 3, 4, 4), np.inf, np.float16))
    with pytest.raises(ValueError, match="not finite"):
        pairwise.search(local, overflown, overflown, 1)
