"""The attacks do what their names say, to a picture with edges, texture and color."""

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from id2core.experiments import attacks

NAMES = tuple(attacks.BY_NAME)


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
    gray = np.asarray(image.convert("L"), float)
    window = np.outer(*(np.hanning(n) for n in gray.shape))
    spectrum = np.abs(np.fft.fft2(gray * window)) ** 2
    far = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in spectrum.shape), indexing="ij")) > 0.25
    return float(spectrum[far].sum())


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of the levels, 0 to 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def place_of(part: Image.Image, whole: Image.Image) -> tuple[int, int]:
    """Left and top of the only place where `whole` holds exactly the pixels of `part`."""
    pixels, wanted = np.asarray(whole), np.asarray(part)
    height, width = wanted.shape[:2]
    corners = np.argwhere((pixels == wanted[0, 0]).all(axis=-1))
    places = [
        (int(x), int(y)) for y, x in corners if np.array_equal(pixels[y : y + height, x : x + width], wanted)
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("mode", attacks.MODES)
@pytest.mark.parametrize("name", NAMES)
def test_mode_is_kept_and_the_input_left_alone(name: str, mode: str, picture: Image.Image) -> None:
    image = picture.convert(mode)
    before = image.tobytes()
    result = attacks.apply(name, image)
    assert result.mode == mode
    assert image.tobytes() == before
    assert (result.size, result.tobytes()) != (image.size, before)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (400, 9), (9, 400)])
@pytest.mark.parametrize("name", NAMES)
def test_tiny_and_elongated_pictures_are_attacked_too(
    name: str, size: tuple[int, int], picture: Image.Image
) -> None:
    result = attacks.apply(name, picture.resize(size))
    assert min(result.size) >= 1
    assert max(result.size) <= 2 * max(size) + 2


@pytest.mark.parametrize("name", NAMES)
def test_modes_without_an_answer_are_refused(name: str, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="convert it"):
        attacks.apply(name, picture.convert("RGBA"))


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


def test_watermark_marks_harder_with_more_opacity(picture: Image.Image) -> None:
    marked = [attacks.watermark(picture, "SAMPLE", opacity) for opacity in (0.15, 0.45, 0.6)]
    steps = [difference(picture, image) for image in marked]
    assert 0 < steps[0] < steps[1] < steps[2]
    assert marked[1] == attacks.watermark(picture, "SAMPLE")


def test_flip_mirrors_left_and_right_and_twice_is_nothing(picture: Image.Image) -> None:
    flipped = attacks.flip(picture)
    np.testing.assert_array_equal(np.asarray(flipped), np.asarray(picture)[:, ::-1])
    assert attacks.flip(flipped) == picture


def test_crop_keeps_the_pixels_of_the_center(picture: Image.Image) -> None:
    np.testing.assert_array_equal(
        np.asarray(attacks.crop(picture, 0.25)), np.asarray(picture)[50:150, 75:225]
    )
    assert attacks.crop(picture, 1) == picture


def test_seeded_crops_lie_at_repeatable_places_inside_the_picture(picture: Image.Image) -> None:
    places = set()
    for seed in range(20):
        part = attacks.crop(picture, 0.5, seed)
        assert part == attacks.crop(picture, 0.5, seed)
        assert part.size == (212, 141)
        places.add(place_of(part, picture))
    assert len(places) > 10


def test_border_frames_and_keeps_the_inside(picture: Image.Image) -> None:
    framed = attacks.border(picture, 0.1, "#c02040")
    assert framed.size == (340, 240)
    assert framed.crop((20, 20, 320, 220)) == picture
    pixels = np.array(framed)
    pixels[20:220, 20:320] = (192, 32, 64)
    assert (pixels == (192, 32, 64)).all()
    assert attacks.border(picture.convert("L"), 0.1).getpixel((0, 0)) == 255
    assert attacks.border(picture.crop((0, 0, 8, 8)), 0.02).size == (10, 10)


def test_overlay_around_puts_the_whole_picture_between_bars(picture: Image.Image) -> None:
    shot = attacks.overlay(picture, 0.35)
    assert shot.width == 300
    assert 1 - 200 / shot.height == pytest.approx(0.35, abs=0.01)
    left, top = place_of(picture, shot)
    assert left == 0
    for bar in (shot.crop((0, 0, 300, top)), shot.crop((0, top + 200, 300, shot.height))):
        dark = np.asarray(bar.convert("L")) < 128
        # Mostly paper, with signs on the left and on the right.
        assert 0.005 < dark.mean() < 0.3
        assert dark[:, :100].any()
        assert dark[:, 200:].any()


def test_overlay_over_leaves_the_middle_and_lets_the_rest_shine_through(picture: Image.Image) -> None:
    shot = attacks.overlay(picture, 0.35, "over")
    before, after = np.asarray(picture, float), np.asarray(shot, float)
    changed = np.any(before != after, axis=(1, 2))
    untouched = np.flatnonzero(~changed)
    assert shot.size == picture.size
    assert changed.mean() == pytest.approx(0.35, abs=0.01)
    assert untouched.max() - untouched.min() + 1 == len(untouched)
    assert untouched.min() < 100 < untouched.max()
    assert np.corrcoef(before[changed].ravel(), after[changed].ravel())[0, 1] > 0.5


@pytest.mark.parametrize("place", ["around", "over"])
def test_overlay_looks_alike_on_small_and_large_pictures(place: str) -> None:
    small, large = (
        attacks.overlay(Image.new("RGB", size, "gray"), 1 / 3, place) for size in ((300, 200), (1500, 1000))
    )
    apart = difference(large.resize(small.size, Image.Resampling.BOX), small)
    # A mirrored copy shows how far apart bars with other contents are.
    assert apart < 0.5 * difference(attacks.flip(small), small)


def test_the_tables_hold_named_series_and_the_two_intensities_that_the_paper_states() -> None:
    series = [*attacks.FIGURE_7.items(), *attacks.BEYOND_FIGURE_7.items()]
    rows = [attack for _, row in series for attack in row]
    assert len({attack.name for attack in rows}) == len(rows) == len(attacks.BY_NAME)
    assert all(attack.kind == kind for kind, row in series for attack in row)
    assert list(attacks.FIGURE_7) == ["jpeg", "blur", "resize", "watermark"]
    assert {"jpeg-90", "resize-0.5", "flip", "crop-0.5", "border-0.1", "overlay-0.35"} <= set(NAMES)
    stated = {attack.name for attack in rows if attack.source == "paper"}
    assert stated == {"jpeg-30", "blur-3"} == {attacks.FIGURE_7[kind][-1].name for kind in ("jpeg", "blur")}


def test_series_run_from_mild_to_strong(picture: Image.Image) -> None:
    for kind in ("jpeg", "blur", "watermark"):
        steps = [difference(picture, attack(picture)) for attack in attacks.FIGURE_7[kind]]
        assert steps == sorted(set(steps)), kind
    areas = [np.prod(attack(picture).size) for attack in attacks.BEYOND_FIGURE_7["crop"]]
    assert areas == sorted(set(areas), reverse=True)


def test_apply_finds_the_attack_and_its_intensity(picture: Image.Image) -> None:
    assert attacks.apply("jpeg-30", picture) == attacks.jpeg(picture, 30)
    assert attacks.apply("blur-3", picture) == attacks.gaussian_blur(picture, 3)
    assert attacks.apply("crop-0.5", picture) == attacks.crop(picture, 0.5)
    assert attacks.apply("overlay-over-0.2", picture) == attacks.overlay(picture, 0.2, "over")


def test_an_unknown_name_is_answered_with_the_names_there_are(picture: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"jpeg-31.*jpeg-90, .*flip, crop-0\.9"):
        attacks.apply("jpeg-31", picture)


def test_an_attack_travels_to_another_process(picture: Image.Image) -> None:
    for attack in attacks.BY_NAME.values():
        assert pickle.loads(pickle.dumps(attack))(picture) == attack(picture)


@pytest.mark.parametrize(
    "attack",
    [
        lambda image: attacks.jpeg(image, 0),
        lambda image: attacks.gaussian_blur(image, -1),
        lambda image: attacks.resize(image, 0),
        lambda image: attacks.watermark(image, "  "),
        lambda image: attacks.watermark(image, "SAMPLE", 0),
        lambda image: attacks.crop(image, 0),
        lambda image: attacks.crop(image, 1.1),
        lambda image: attacks.border(image, 0),
        lambda image: attacks.overlay(image, 0),
        lambda image: attacks.overlay(image, 1),
        lambda image: attacks.overlay(image, 0.3, "beside"),
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
