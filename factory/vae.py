"""Train a small `AutoencoderKL` on a folder of photos: how the embedded `mini` encoder was made.

Run `python -m factory.vae --photos DIR --out DIR`, and run it again to resume. Every step
draws its data and noise from (seed, step), so a resumed run sees what the undisturbed one would have seen.

The loss is the mean over crops of log(MSE + ε), whose gradient is that of the mean PSNR, plus a KL
term. The residual branches start at zero, on top of a linear path fitted in closed form (`pca_start`).
One normalization group: with more, each picture loses the contrast between groups, which costs 4 dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from pydantic import Field

from factory import pca_start, photo_sets
from id2core.options import Options
from id2core.training.loop import Loop

# Crops flatter than this mean squared error (36 dB) gain nothing from being fitted more closely.
LOG_MSE_FLOOR = 1e-3


class VaeConfig(Options):
    """Everything that decides the outcome of a run, besides the photos."""

    channels: tuple[int, ...] = Field(
        default=(16, 32, 64, 128), min_length=4, max_length=4, description="Channels of the four levels."
    )
    layers_per_block: int = Field(default=1, ge=1, description="Residual layers per block.")
    groups: int = Field(default=1, ge=1, description="Groups of each normalization.")
    latent_channels: int = Field(default=4, ge=1, description="Channels of a latent.")
    seed: int = Field(default=2025, ge=0, description="Random seed of weights, crops and noise.")
    steps: int = Field(default=6_000, ge=1, description="Training steps.")
    full_size_from: float = Field(
        default=0.8, ge=0, le=1, description="Share of the steps after which whole photos are trained on."
    )
    crop: int = Field(default=128, ge=8, multiple_of=8, description="Side of a crop before that, in pixels.")
    batch: int = Field(default=8, ge=1, description="Crops per step; of whole photos, as many pixels.")
    fit_crops: int = Field(default=64, ge=1, description="Crops that the linear path is fitted on.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(default=300, ge=1, description="Steps until the learning rate peaks.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Decoupled weight decay.")
    kl_weight: float = Field(default=5e-3, ge=0, description="Weight of the KL term in the loss.")


def build(config: VaeConfig) -> AutoencoderKL:
    """An untrained VAE, 8× down, whose residual branches all start at zero."""
    torch.manual_seed(config.seed)
    depth = len(config.channels)
    vae = AutoencoderKL(
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.groups,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        mid_block_add_attention=False,
        sample_size=photo_sets.SIZE,
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


def batch_at(photos: NDArray[np.uint8], step: int, config: VaeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The crops and the latent noise of a step: a pure function of the seed and the step."""
    full = step >= config.full_size_from * config.steps
    size = photo_sets.SIZE if full else config.crop
    count = max(1, config.batch * config.crop**2 // size**2)
    rng = np.random.default_rng((config.seed, step))
    x = photo_sets.random_crops(photos, count, size, rng)
    shape = (count, config.latent_channels, size // 8, size // 8)
    return x, torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8], batch: int = 8) -> NDArray[np.uint8]:
    """Encode to the posterior's mode, decode, round: uint8[N,256,256,3] → the same shape."""
    out = []
    for start in range(0, len(images), batch):
        x = photo_sets.to_tensor(images[start : start + batch])
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        y = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        out.append(y.permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, in dB over 0..255: float64[N]."""
    mse = np.square(a.astype(np.float64) - b).reshape(len(a), -1).mean(1)
    return np.asarray(10 * np.log10(255**2 / np.maximum(mse, 1e-12)))


class Trainer(Loop[VaeConfig]):
    """Trains the VAE of a config on the photos of a folder, less those that are held out."""

    def __init__(self, config: VaeConfig, photos: Path, out: Path, checked: int = 50) -> None:
        self.vae = build(config)
        super().__init__(config, out, self.vae)
        names = photo_sets.split(photos)
        self.train = photo_sets.load(photos, names.train)
        self.check = photo_sets.load(photos, names.held_out[:checked])

    def begin(self) -> None:
        """Fit the linear path, so that training starts where PCA ends."""
        sample, _ = batch_at(self.train, 0, self.config.replace(batch=self.config.fit_crops))
        pca_start.fit_linear_path(self.vae, sample)

    def loss(self) -> torch.Tensor:
        """Reconstruction and KL on the crops of this step."""
        x, noise = batch_at(self.train, self.step, self.config)
        return loss_of(self.vae, x, noise, self.config.kl_weight)

    def measure(self) -> dict[str, float]:
        """Return the mean PSNR on held-out photos, in dB."""
        return {"psnr": float(psnr(self.check, reconstruct(self.vae, self.check)).mean())}

    def run(self, log_every: int = 250, checkpoint_every: int = 250) -> None:
        """Train to the last step, then write the weights as a diffusers directory."""
        super().run(log_every, checkpoint_every)
        self.vae.half().save_pretrained(self.out / "vae")


def main() -> None:
    """Train from the command line."""
    defaults = VaeConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--channels", type=int, nargs=4, default=defaults.channels, help="one for each level")
    args = parser.parse_args()
    config = VaeConfig(channels=tuple(args.channels), steps=args.steps, seed=args.seed)
    Trainer(config, args.photos, args.out).run()


if __name__ == "__main__":
    main()
