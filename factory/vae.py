"""Train a small `AutoencoderKL` on a folder of photos: how the embedded `mini` encoder was made.

Run as `python -m factory.vae --photos DIR --out DIR`. Interrupted and started again, it goes
on from its last checkpoint; every step draws its data and noise from (seed, step), so the resumed run
sees what the undisturbed one would have seen.

The loss is the mean over crops of log(MSE + ε), whose gradient is that of the mean PSNR, plus a KL
term. The residual branches start at zero, on top of a linear path fitted in closed form (`pca_start`).
One normalisation group: with more, each picture loses the contrast between groups, which costs 4 dB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray

from factory import pca_start
from id2core.experiments import photo_folders as photo_folder
from id2core.training.loop import Loop

# Crops flatter than this mean squared error (36 dB) gain nothing from being fitted more closely.
LOG_MSE_FLOOR = 1e-3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    groups: int = 1
    latent_channels: int = 4
    seed: int = 2025
    steps: int = 6_000
    full_size_from: float = 0.8
    crop: int = 128
    batch: int = 8
    fit_crops: int = 64
    lr: float = 1e-3
    warmup: int = 300
    weight_decay: float = 1e-4
    kl_weight: float = 5e-3


def build(recipe: Recipe) -> AutoencoderKL:
    """An untrained VAE, 8× down, whose residual branches all start at zero."""
    torch.manual_seed(recipe.seed)
    depth = len(recipe.channels)
    vae = AutoencoderKL(
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers_per_block,
        norm_num_groups=recipe.groups,
        latent_channels=recipe.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        mid_block_add_attention=False,
        sample_size=photo_folder.SIZE,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return vae.to(memory_format=torch.channels_last)


def loss_of(vae: AutoencoderKL, x: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """Mean log-MSE over the batch plus `kl_weight` × the KL divergence per latent number."""
    posterior = vae.encode(x).latent_dist
    latent = posterior.mean + posterior.std * noise
    error = (vae.decode(latent).sample.float() - x).square().mean(dim=(1, 2, 3))
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
    return torch.as_tensor((error + LOG_MSE_FLOOR).log().mean() + kl_weight * kl)


def batch_at(photos: NDArray[np.uint8], step: int, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The crops and the latent noise of a step: a pure function of the seed and the step."""
    full = step >= recipe.full_size_from * recipe.steps
    size = photo_folder.SIZE if full else recipe.crop
    count = max(1, recipe.batch * recipe.crop**2 // size**2)
    rng = np.random.default_rng((recipe.seed, step))
    x = photo_folder.random_crops(photos, count, size, rng)
    shape = (count, recipe.latent_channels, size // 8, size // 8)
    return x, torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 8) -> NDArray[np.uint8]:
    """Encode to the posterior's mode, decode, round: uint8[N,256,256,3] → the same shape."""
    out = []
    for start in range(0, len(images), batch):
        x = photo_folder.to_tensor(images[start : start + batch])
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        y = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        out.append(y.permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, in dB over 0..255: float64[N]."""
    mse = np.square(a.astype(np.float64) - b).reshape(len(a), -1).mean(1)
    return np.asarray(10 * np.log10(255**2 / np.maximum(mse, 1e-12)))


class Trainer(Loop):
    """Trains the VAE of a recipe on the photos of a folder, less those that are held out."""

    def __init__(self, recipe: Recipe, photos: Path, out: Path, checked: int = 50) -> None:
        self.vae = build(recipe)
        super().__init__(recipe, out, self.vae)
        names = photo_folder.split(photos)
        self.train = photo_folder.load(photos, names.train)
        self.check = photo_folder.load(photos, names.held_out[:checked])

    def begin(self) -> None:
        """Fit the linear path, so that training starts where PCA ends."""
        sample, _ = batch_at(self.train, 0, replace(self.recipe, batch=self.recipe.fit_crops))
        pca_start.fit_linear_path(self.vae, sample)

    def loss(self) -> torch.Tensor:
        """Reconstruction and KL on the crops of this step."""
        x, noise = batch_at(self.train, self.step, self.recipe)
        return loss_of(self.vae, x, noise, self.recipe.kl_weight)

    def measure(self) -> dict[str, float]:
        """Mean PSNR in dB on held-out photos."""
        return {"psnr": float(psnr(self.check, reconstruct(self.vae, self.check)).mean())}

    def run(self, log_every: int = 250, checkpoint_every: int = 250) -> None:
        """Train to the last step, then write the weights as a diffusers directory."""
        super().run(log_every, checkpoint_every)
        self.vae.half().save_pretrained(self.out / "vae")


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--channels", type=int, nargs=4, default=Recipe.channels, help="of the four levels")
    args = parser.parse_args()
    recipe = Recipe(channels=tuple(args.channels), steps=args.steps, seed=args.seed)
    Trainer(recipe, args.photos, args.out).run()


if __name__ == "__main__":
    main()
