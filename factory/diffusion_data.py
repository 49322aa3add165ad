"""Photos as latents and prompts, encoded once: what a small diffusion model is trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from factory import photo_sets
from id2core.experiments import captions
from id2core.training.loop import autocast

SMALLEST_CROP = 0.75
BATCH = 16


@dataclass(frozen=True)
class Encoded:
    """Latents of some photos, each in several variants.

    Attributes:
        latents: float16[variants,N,C,h,w], the modes of the posterior; no scaling factor.
        looks: for every variant and photo, its light and color in words.
        subjects: for every photo, its caption or None.
    """

    latents: NDArray[np.float16]
    looks: list[list[str]]
    subjects: list[str | None]


def variant(photo: NDArray[np.uint8], number: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A photo as it is (0), mirrored (1), or cropped, half of the time mirrored and recolored (2, …)."""
    image = Image.fromarray(photo)
    if number == 1:
        image = ImageOps.mirror(image)
    elif number > 1:
        image = _recolored(_cropped(image, generator), generator)
    return np.asarray(image)


def _cropped(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = int(photo_sets.SIZE * generator.uniform(SMALLEST_CROP, 1))
    left, top = generator.integers(0, photo_sets.SIZE - side + 1, 2)
    box = (left, top, left + side, top + side)
    crop = image.resize((photo_sets.SIZE,) * 2, Image.Resampling.BICUBIC, box)
    return ImageOps.mirror(crop) if generator.random() < 0.5 else crop


def _recolored(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Half of the time another hue, light and saturation: colors that a prompt can ask for."""
    if generator.random() < 0.5:
        return image
    hue, saturation, value = image.convert("HSV").split()
    turn = int(generator.integers(256))
    turned = Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")
    lit = ImageEnhance.Brightness(turned).enhance(float(generator.uniform(0.5, 1.4)))
    return ImageEnhance.Color(lit).enhance(float(generator.uniform(0.3, 1.7)))


@torch.no_grad()
def encode(
    vae: AutoencoderKL, photos: Path, names: list[str], variants: int, seed: int, cache: Path
) -> Encoded:
    """Encode photos, or read back what an earlier call with the same arguments left in `cache`.

    Args:
        vae: the VAE of the diffusion model.
        photos: folder of the photos and of `captions.csv`.
        names: which photos.
        variants: how many of each, see `variant`.
        seed: of the crops and colors; each picture's own are a function of it and of its place.
        cache: `.npy` file to write; the words go beside it as `.json`.
    """
    known = captions.read(photos)
    subjects = [known.get(name) for name in names]
    words, key = cache.with_suffix(".json"), _key(vae, names, variants, seed)
    if words.exists() and (kept := json.loads(words.read_text()))["key"] == key:
        return Encoded(np.load(cache), kept["looks"], subjects)
    pictures = photo_sets.load(photos, names)
    latents, looks = [], []
    for number in range(variants):
        made = np.stack(
            [variant(p, number, np.random.default_rng((seed, number, i))) for i, p in enumerate(pictures)]
        )
        looks.append([captions.describe(picture) for picture in made])
        latents.append(np.concatenate([_modes(vae, made[i : i + BATCH]) for i in range(0, len(made), BATCH)]))
    encoded = Encoded(np.stack(latents), looks, subjects)
    np.save(cache, encoded.latents)
    words.write_text(json.dumps({"key": key, "looks": looks}))
    return encoded


def _key(vae: AutoencoderKL, names: list[str], variants: int, seed: int) -> str:
    """Return a name of what a cache was made from."""
    digest = hashlib.sha256(json.dumps([names, variants, seed]).encode())
    for name, weight in vae.state_dict().items():
        digest.update(name.encode() + weight.float().numpy().tobytes())
    return digest.hexdigest()


def _modes(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    with autocast():
        posterior = vae.encode(photo_sets.to_tensor(pictures)).latent_dist
    return np.asarray(posterior.mode().float().numpy().astype(np.float16))
