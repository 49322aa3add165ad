from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from id2core.encoders import pdq
from id2core.encoders.registry import load_encoder
from id2core.transforms.linear import Transform
from tests.drawing import scene

# What `pdqhash.compute` 0.2.8, a binding of Meta's own code, gave for these pictures.
GOLDEN: dict[tuple[int, tuple[int, int]], str] = {
    (1, (512, 512)): "7415216fa37bc37fe713e208f0154331e7e4f5e7677c0318a11b604e614a76b5",
    (2, (300, 181)): "0bf36a8a768a5adbc2d6bad3c80a0a4afa1b42c1229b761ce6e476b5a68f364d",
    (3, (64, 64)): "81d0642a286958c724e36db6deb5f53e1c4469b13554744ecbb9b9e10d4bd6e5",
    (4, (1000, 700)): "a63d8d9023604f9abe3a1d90323f784f72e5f6b5b3cee94aa31ac3b083c0c6c5",
}


def drawn(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(scene(seed, size))


@pytest.mark.parametrize("seed, size", GOLDEN)
def test_a_hash_is_that_of_the_reference(seed: int, size: tuple[int, int]) -> None:
    bits = pdq.pdq(drawn(seed, size)[None])[0]
    assert bits.sum() == 128
    assert pdq.hexadecimal(bits) == GOLDEN[seed, size]


def test_a_hash_does_not_depend_on_its_neighbours() -> None:
    pixels = np.stack([drawn(seed, (128, 128)) for seed in range(5)])
    alone = np.concatenate([pdq.pdq(pixels[i : i + 1]) for i in range(5)])
    assert np.array_equal(pdq.pdq(pixels), alone) and len(np.unique(alone, axis=0)) == 5
    assert pdq.pdq(pixels[:0]).shape == (0, 256)


def test_flat_pictures_have_no_bits() -> None:
    flat = np.full((2, 512, 512, 3), [[[[0, 0, 0]]], [[[200, 30, 90]]]], np.uint8)
    assert not pdq.pdq(flat).any()


@pytest.mark.parametrize("shape", [(1, 63, 64, 3), (64, 64, 3), (1, 64, 64, 4)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        pdq.pdq(np.zeros(shape, np.uint8))


def test_as_an_encoder_its_cosine_counts_the_bits_that_differ() -> None:
    encoder = load_encoder("pdq")
    original = scene(1, (512, 512))
    small = original.resize((300, 300), Image.Resampling.BILINEAR).resize((512, 512))
    pixels = np.stack([np.asarray(picture) for picture in (original, small, scene(2, (512, 512)))])
    latents = encoder.encode(pixels)
    assert latents.dtype == np.float16 and latents.shape == (3, encoder.latent_size) == (3, 256)
    assert encoder.encoder_id.startswith("pdq-") and encoder.preprocess.size == 512
    descriptors = Transform().apply(latents)
    bits = pdq.pdq(pixels)
    expected = 1 - 2 * (bits[:, None] != bits).sum(axis=2) / 256
    np.testing.assert_allclose(descriptors @ descriptors.T, expected, atol=1e-6)
    assert expected[0, 1] > 0.758 > expected[0, 2]  # Meta's advice: up to 31 bits
