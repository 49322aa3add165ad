"""Candidates that are scored again by their detail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from id2core.search import rerank
from id2core.search.rerank import DetailReranker

SIDE, CHANNELS = 16, 2


def _maps(count: int, seed: int, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, CHANNELS, SIDE, SIDE))
    smooth = ndimage.gaussian_filter(noise, (0, 0, sigma, sigma))
    return np.asarray(smooth / smooth.std(), np.float32).reshape(count, -1)


def test_pictures_of_one_scene_are_told_apart_by_their_detail() -> None:
    scene, edges = _maps(1, 0, 6.0), _maps(8, 1, 0.7)
    references = scene + 0.3 * edges
    # Uploads keep the scene and the edges, and get coarse changes of their own.
    uploads = references + 0.5 * _maps(8, 2, 4.0)
    plain = np.zeros((8, 8), np.float32)

    again = DetailReranker(channels=CHANNELS).rescore(uploads, plain, np.tile(references, (8, 1, 1)))

    assert (again.argmax(axis=1) == np.arange(8)).all()


def test_detail_ignores_color_and_contrast() -> None:
    latents = _maps(3, 3, 0.7)
    changed = 4 * latents + np.repeat([5.0, -3.0], SIDE**2)

    cosines = (rerank.details(latents, CHANNELS) * rerank.details(changed, CHANNELS)).sum(axis=1)

    assert (cosines > 0.99).all()


@given(st.integers(1, 9), st.integers(1, 3), st.floats(0, 3), st.floats(0, 100))
def test_at_most_one_score_rises_and_none_falls(
    side: int, channels: int, weight: float, scale: float
) -> None:
    latents = scale * np.random.default_rng(side).normal(size=(6, channels * side**2))
    plain = np.array([[0.5, 0.2, 0.1], [0.9, -np.inf, -np.inf]], np.float32)

    again = DetailReranker(weight, channels).rescore(latents[:2], plain, latents.reshape(2, 3, -1))

    assert (again >= plain).all() and not np.isnan(again).any()
    assert (again[0] > plain[0]).sum() <= 1
    np.testing.assert_array_equal(again[1], plain[1])  # one candidate has no margin


def test_what_two_candidates_share_counts_for_neither() -> None:
    uploads, others = _maps(1, 4, 0.7), _maps(3, 5, 0.7)
    plain = np.full((1, 5), 0.3, np.float32)
    candidates = np.concatenate([others, uploads, uploads])[None]

    again = DetailReranker(channels=CHANNELS).rescore(uploads, plain, candidates)

    np.testing.assert_allclose(again, plain, rtol=0, atol=1e-6)


def test_a_score_does_not_depend_on_other_uploads() -> None:
    uploads, candidates = _maps(5, 4, 1.0), np.tile(_maps(90, 5, 1.0), (5, 1, 1))
    reranker, plain = DetailReranker(channels=CHANNELS), np.zeros((5, 90), np.float32)

    whole = reranker.rescore(uploads, plain, candidates)
    one = reranker.rescore(uploads[3:4], plain[3:4], candidates[3:4])

    np.testing.assert_array_equal(whole[3:4], one)


def test_latents_that_are_no_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="no square maps of 3 channels"):
        rerank.details(np.zeros((1, 32)), 3)
