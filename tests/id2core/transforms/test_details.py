"""The fine detail of latents, in bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from id2core.errors import TransformError
from id2core.transforms.details import agreement, aligned, detail_bits, part_detail

SIDE, CHANNELS = 16, 4


def _maps(count: int, seed: int, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, CHANNELS, SIDE, SIDE))
    smooth = ndimage.gaussian_filter(noise, (0, 0, sigma, sigma))
    return np.asarray(smooth / smooth.std(), np.float32).reshape(count, -1)


def test_pictures_of_one_scene_are_told_apart_by_their_detail() -> None:
    scene, edges = _maps(1, 0, 6.0), _maps(8, 1, 0.7)
    references = scene + 0.3 * edges
    # Uploads keep the scene and the edges, and get coarse changes of their own.
    uploads = references + 0.5 * _maps(8, 2, 4.0)

    own = agreement(detail_bits(uploads), detail_bits(references))
    other = agreement(detail_bits(uploads), detail_bits(np.roll(references, 1, axis=0)))

    assert own.min() > 0.3 > other.max()


def test_detail_ignores_color_and_contrast() -> None:
    latents = _maps(3, 3, 0.7)
    changed = 4 * latents + np.repeat([5.0, -3.0, 0.0, 9.0], SIDE**2)

    assert (agreement(detail_bits(latents), detail_bits(changed)) > 0.97).all()


@given(st.integers(1, 9), st.floats(0, 100))
def test_any_latent_agrees_with_itself_and_no_batch_changes_its_bits(side: int, scale: float) -> None:
    latents = scale * np.random.default_rng(side).normal(size=(70, CHANNELS * side**2))
    if latents.shape[1] % 8:
        return
    bits = detail_bits(latents)

    assert (agreement(bits, bits) == 1).all()
    np.testing.assert_array_equal(bits[3:4], detail_bits(latents[3:4]))


def test_a_crop_is_found_at_its_place_wherever_that_is() -> None:
    scene = _maps(12, 4, 0.9).reshape(-1, CHANNELS, SIDE, SIDE)
    whole = detail_bits(scene.reshape(12, -1))
    crops = np.stack([scene[i, :, i % 3 : i % 3 + 14, i % 2 : i % 2 + 14] for i in range(12)])
    enlarged = ndimage.zoom(crops, (1, 1, SIDE / 14, SIDE / 14), order=1).reshape(12, -1)

    parts, numbers = part_detail(enlarged, 0.75), np.arange(12)

    assert parts.shape == (12, CHANNELS, 14, 14) and parts.dtype == np.int8
    own, other = (aligned(parts, numbers, np.roll(whole, shift, axis=0)) for shift in (0, 1))
    assert own.min() > 0.2 > other.max()
    assert own.mean() > agreement(detail_bits(enlarged), whole).mean() + 0.1


@given(st.sampled_from([0.5, 0.75]), st.integers(0, 99), st.floats(0, 1e4))
def test_the_best_place_is_that_of_plain_sums(share: float, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    parts = part_detail(scale * rng.normal(size=(2, CHANNELS * SIDE**2)), share)
    numbers, whole = rng.integers(0, 2, 3), detail_bits(rng.normal(size=(3, CHANNELS * SIDE**2)))
    signs = 2.0 * np.unpackbits(whole, axis=1).reshape(3, CHANNELS, SIDE, SIDE) - 1
    size, wide = parts.shape[-1], parts.astype(np.float64)

    found = aligned(parts, numbers, whole)

    for pair, number in enumerate(numbers):
        places = range(SIDE - size + 1)
        sums = [
            (wide[number] * signs[pair, :, y : y + size, x : x + size]).sum() for y in places for x in places
        ]
        length = max(1.0, np.sqrt((wide[number] ** 2).sum() * wide[number].size))
        assert found[pair] == pytest.approx((max(sums) - np.mean(sums)) / length - 0.01, abs=1e-6)


def test_latents_without_square_channels_have_no_detail() -> None:
    with pytest.raises(TransformError, match="square channels"):
        detail_bits(np.zeros((1, 30)))
