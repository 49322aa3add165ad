"""Measure a trained VAE on photos it never saw and write its model card.

Run as `python -m factory.vae_card --photos DIR --run DIR --show DIR --out DIR` after
`factory.vae`: `--run` is what that wrote, `--show` a folder of pictures that may be shown in
the card, `--out` where weights, log, picture and card go.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKL
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from factory import photo_sets
from factory import vae as training
from id2core.encoders.autoencoders import load_autoencoder
from id2core.encoders.registry import load_encoder

MEASURED = 200
PATCH = 8


@dataclass(frozen=True)
class Quality:
    """Mean PSNR in dB of the VAE and of PCA at the same rate, over the same photos."""

    count: int
    vae: float
    pca: float


def pca_reconstruct(train: NDArray[np.uint8], images: NDArray[np.uint8], numbers: int) -> NDArray[np.uint8]:
    """PCA of 8×8 patches to as many numbers as the VAE has latent channels: the linear yardstick.

    Args:
        train: uint8[N,256,256,3]; every fourth photo fixes mean and components.
        images: uint8[M,256,256,3].
        numbers: components kept of 192.

    Returns:
        uint8[M,256,256,3].
    """
    fitted = _patches(train[::4])
    mean = fitted.mean(0)
    _, vectors = np.linalg.eigh(np.cov(fitted.T))
    basis = vectors[:, -numbers:]
    rows = (_patches(images) - mean) @ basis @ basis.T + mean
    side = photo_sets.SIZE // PATCH
    blocks = rows.reshape(len(images), side, side, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.asarray(blocks.reshape(images.shape).clip(0, 255).round().astype(np.uint8))


def _patches(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    n, side = len(images), photo_sets.SIZE // PATCH
    blocks = images.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.asarray(blocks.reshape(-1, PATCH * PATCH * 3).astype(np.float32))


def measure(vae: AutoencoderKL, photos: Path) -> dict[str, Quality]:
    """Quality over the 200 held-out photos: in all, and for each source of the photos."""
    names = photo_sets.split(photos)
    images = photo_sets.load(photos, names.held_out[:MEASURED])
    train = photo_sets.load(photos, names.train)
    ours = training.psnr(images, training.reconstruct(vae, images))
    pca = training.psnr(images, pca_reconstruct(train, images, vae.config["latent_channels"]))
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names.held_out[:MEASURED]):
        groups["all"].append(i)
        groups[name.split("_")[0]].append(i)
    return {k: Quality(len(i), float(ours[i].mean()), float(pca[i].mean())) for k, i in groups.items()}


def latent_facts(vae: AutoencoderKL, images: NDArray[np.uint8]) -> dict[str, float]:
    """Standard deviation of the posterior's mean and its own, and the KL term, per latent number."""
    posterior = vae.encode(photo_sets.to_tensor(images)).latent_dist
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return {
        "mean_std": float(posterior.mean.std()),
        "noise_std": float(posterior.std.mean()),
        "kl": float(kl),
    }


def side_by_side(images: NDArray[np.uint8], rebuilt: NDArray[np.uint8]) -> Image.Image:
    """Originals in the upper rows, their reconstructions directly below, six to a row."""
    rows = []
    for start in range(0, len(images), 6):
        rows += [np.hstack(list(images[start : start + 6])), np.hstack(list(rebuilt[start : start + 6]))]
    return Image.fromarray(np.vstack(rows))


def write_card(vae: AutoencoderKL, photos: Path, run: Path, show: Path, out: Path) -> dict[str, Quality]:
    """Write weights, log, picture and `README.md` to `out`; returns the measured quality."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copyfile(run / "vae" / name, out / name)
    shutil.copyfile(run / "log.jsonl", out / "log.jsonl")
    names = sorted(p.name for p in show.iterdir())
    shown = photo_sets.load(show, names[:: max(1, len(names) // 12)][:12])
    side_by_side(shown, training.reconstruct(vae, shown)).save(out / "reconstructions.jpg", quality=88)
    quality = measure(vae, photos)
    facts: dict[str, Any] = {
        "quality": quality,
        "latent": latent_facts(vae, shown),
        "recipe": json.loads((run / "recipe.json").read_text()),
        "config": dict(vae.config),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "bytes": (out / "diffusion_pytorch_model.safetensors").stat().st_size,
        "encoder_id": load_encoder(str(out)).encoder_id.rsplit("-", 1)[-1],
        "log": [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()],
        "trained_on": len(photo_sets.split(photos).train),
    }
    loader = Environment(loader=PackageLoader("factory"), undefined=StrictUndefined, trim_blocks=True)
    (out / "README.md").write_text(loader.get_template("vae_card.md.j2").render(facts))
    return quality


def main() -> None:
    """Measure and write from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photos", "run", "show", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    vae = load_autoencoder(str(args.run / "vae"))
    for name, quality in write_card(vae, args.photos, args.run, args.show, args.out).items():
        print(f"{name}: {quality.vae:.2f} dB, PCA {quality.pca:.2f} dB over {quality.count} photos")


if __name__ == "__main__":
    main()
