"""The attacks do what their names say, to a picture with edges, texture and colour."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from id2core.oripid import attacks

ATTACKS = {
    "jpeg": lambda image: attacks.jpeg(image, 30),
    "blur": lambda image: attacks.gaussian_blur(image, 3),
    "resize": lambda image: attacks.resize(image, 0.5),
    "watermark": lambda image: attacks.watermark(image, "SAMPLE"),
}


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(7).normal(0, 12, (200, 300, 3))
    image = Image.fromarray(
        np.clip(np.linspace(40, 200, 300)[None, :, None] + noise, 0, 255).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 30, 160, 150), fill=(220, 40, 30))
    draw.rectangle((180, 60, 280, 180), fill=(20, 60, 200))
    return image


def png_bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.tell()


def high_frequency_energy(image: Image.Image) -> float:
    """Energy above half the Nyquist frequency, windowed: the jump from border to border is no detail."""
    grey = np.asarray(image.convert("L"), float)
    window = np.outer(*(np.hanning(n) for n in grey.shape))
    spectrum = np.abs(np.fft.fft2(grey * window)) ** 2
    far = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in spectrum.shape), indexing="ij")) > 0.25
    return float(spectrum[far].sum())


@pytest.mark.parametrize("mode", attacks.MODES)
@pytest.mark.parametrize("name", ATTACKS)
def test_mode_is_kept_and_the_input_left_alone(name: str, mode: str, picture: Image.Image) -> None:
    image = picture.convert(mode)
    before = image.tobytes()
    result = ATTACKS[name](image)
    assert result.mode == mode
    assert image.tobytes() == before
    assert result.size == ((150, 100) if name == "resize" else image.size)


@pytest.mark.parametrize("name", ATTACKS)
def test_modes_without_an_answer_are_refused(name: str, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="convert it"):
        ATTACKS[name](picture.convert("RGBA"))


def test_jpeg_loses_detail_and_more_at_lower_quality(picture: Image.Image) -> None:
    sizes = [png_bytes(image) for image in (picture, attacks.jpeg(picture, 75), attacks.jpeg(picture, 30))]
    assert sizes[0] > sizes[1] > sizes[2]


def test_blur_lowers_high_frequencies_and_keeps_the_mean(picture: Image.Image) -> None:
    blurred = attacks.gaussian_blur(picture, 3)
    assert high_frequency_energy(blurred) < 0.05 * high_frequency_energy(picture)
    assert np.mean(blurred) == pytest.approx(np.mean(picture), abs=1)


def test_resize_halves_and_never_vanishes(picture: Image.Image) -> None:
    assert attacks.resize(picture, 0.5).size == (150, 100)
    assert attacks.resize(picture.crop((0, 0, 100, 1)), 0.1).size == (10, 1)


def test_watermark_changes_some_pixels_everywhere_and_keeps_most(picture: Image.Image) -> None:
    changed = np.any(np.asarray(picture) != np.asarray(attacks.watermark(picture, "SAMPLE")), axis=-1)
    assert 0.02 < changed.mean() < 0.4
    assert all(changed[y : y + 100, x : x + 100].any() for y in (0, 100) for x in (0, 100, 200))


@pytest.mark.parametrize(
    "attack",
    [
        lambda image: attacks.jpeg(image, 0),
        lambda image: attacks.gaussian_blur(image, -1),
        lambda image: attacks.resize(image, 0),
        lambda image: attacks.watermark(image, "  "),
    ],
)
def test_senseless_intensities_are_refused(attack, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"choose|give"):
        attack(picture)


class Transparent(torch.nn.Module):
    """Stands for a perfect VAE: its latent is the picture and its decoder gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        assert pixels.shape == (1, 3, 256, 256)
        assert -1 <= pixels.min() < 0 < pixels.max() <= 1
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels))

    def decode(self, latent: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latent)


def test_vae_round_trip_through_a_perfect_vae_only_stretches(picture: Image.Image) -> None:
    result = attacks.vae_round_trip(picture, Transparent())
    expected = picture.resize((256, 256), Image.Resampling.BILINEAR)
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
