"""Train a small text-guided latent diffusion model: how the bundled `mini-a` and `mini-b` were made.

Run as `python -m factory.diffusion --model mini-a --photos DIR --vae DIR --out DIR`. What comes
out, `OUT/pipeline`, is a whole diffusers directory: UNet, scheduler, text encoder, tokenizer, VAE.

The photos are encoded once; a step then costs only the UNet and the text encoder, which are trained
together from nothing. Now and then the prompt is dropped, for classifier-free guidance. Attention stands
at the lowest resolution only: elsewhere it would cost a CPU more than all convolutions together.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextConfig, CLIPTextModel

from factory import diffusion_data, photo_sets, tokenizer
from factory.diffusion_data import Encoded
from id2core.encoders.autoencoders import load_autoencoder
from id2core.experiments import captions
from id2core.options import Options
from id2core.training.loop import Loop, Stateful, autocast

CHECKED = 250
CHECK_BATCH = 50


class DiffusionConfig(Options):
    """Everything that decides the outcome of a run, besides the photos and the VAE."""

    widths: tuple[int, ...] = Field(default=(48, 96, 128), description="Channels of the U-Net's levels.")
    groups: int = Field(default=8, ge=1, description="Groups of each normalization.")
    heads: int = Field(default=4, ge=1, description="Channels per attention head.")
    text_width: int = Field(default=128, ge=1, description="Numbers per token of the text encoder.")
    text_layers: int = Field(default=2, ge=1, description="Layers of the text encoder.")
    tokens: int = Field(default=32, ge=3, description="Tokens per prompt, at most.")
    vocabulary: int = Field(default=1_600, ge=1, description="Tokens that the tokenizer knows.")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        default="epsilon", description="What the U-Net predicts: the noise or the velocity."
    )
    noise_schedule: str = Field(
        default="scaled_linear", description="Schedule of the noise, by diffusers' name."
    )
    variants: int = Field(default=6, ge=1, description="Variants of each photo: whole, mirrored, then crops.")
    prompt_dropout: float = Field(
        default=0.1, ge=0, le=1, description="Share of prompts that are dropped, for guidance."
    )
    seed: int = Field(default=1, ge=0, description="Random seed of weights, batches and noise.")
    steps: int = Field(default=5_000, ge=1, description="Training steps.")
    batch: int = Field(default=32, ge=1, description="Latents per step.")
    lr: float = Field(default=8e-4, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(default=200, ge=1, description="Steps until the learning rate peaks.")
    weight_decay: float = Field(default=1e-3, ge=0, description="Decoupled weight decay.")
    ema: float = Field(default=0.999, ge=0, le=1, description="EMA decay of the weights.")


CONFIGS = {
    "mini-a": DiffusionConfig(),
    "mini-b": DiffusionConfig(
        widths=(32, 96, 160),
        prediction="v_prediction",
        noise_schedule="squaredcos_cap_v2",
        variants=4,
        steps=3_500,
        seed=2,
    ),
}


def build_unet(config: DiffusionConfig, channels: int) -> UNet2DConditionModel:
    """An untrained UNet over latents of so many channels, 32×32."""
    depth = len(config.widths)
    return UNet2DConditionModel(
        sample_size=photo_sets.SIZE // 8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (depth - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=config.groups,
    ).to(memory_format=torch.channels_last)


def build_text_encoder(config: DiffusionConfig, words: Any) -> CLIPTextModel:
    """An untrained CLIP text encoder for the vocabulary of a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=config.text_width,
            projection_dim=config.text_width,
            intermediate_size=2 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            max_position_embeddings=config.tokens,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


class Denoiser(nn.Module):
    """UNet and text encoder: noised latents, times and prompts in, what the config predicts out."""

    def __init__(self, config: DiffusionConfig, channels: int, words: Any) -> None:
        super().__init__()
        self.unet = build_unet(config, channels)
        # The fused attention's gradient is slow on a CPU: 18% of a step.
        self.unet.set_attn_processor(AttnProcessor())
        self.text = build_text_encoder(config, words)

    def forward(self, noised: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """float32[B,C,h,w], int64[B], int64[B,T] → float32[B,C,h,w]."""
        embedded = self.text(tokens).last_hidden_state
        return torch.as_tensor(self.unet(noised, times, embedded).sample.float())


@dataclass(frozen=True)
class Batch:
    """Clean latents of unit variance, noise, times and tokens of one step."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    tokens: Tensor


class Trainer(Loop[DiffusionConfig]):
    """Trains one diffusion model on the photos of a folder, less those that are held out."""

    def __init__(
        self, config: DiffusionConfig, photos: Path, vae: AutoencoderKL, out: Path, checked: int = CHECKED
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        names = photo_sets.split(photos)
        self.vae = vae.eval()
        self.train = diffusion_data.encode(
            vae, photos, names.train, config.variants, config.seed, out / "train.npy"
        )
        self.held_out = diffusion_data.encode(
            vae, photos, names.held_out[:checked], 1, config.seed, out / "held_out.npy"
        )
        self.scale = float(1 / self.train.latents.astype(np.float32).std())
        subjects = sorted({s for s in self.train.subjects if s})
        self.words = tokenizer.train(captions.corpus(subjects), config.vocabulary, config.tokens)
        self.noising = DDPMScheduler(**schedule(config))
        torch.manual_seed(config.seed)
        self.denoiser = Denoiser(config, vae.config["latent_channels"], self.words)
        super().__init__(config, out, self.denoiser)
        # Averages forget the start sooner than 1/(1 − decay) steps, or they would be useless early on.
        self.average = AveragedModel(
            self.denoiser,
            avg_fn=lambda old, new, n: old.lerp(new, 1 - min(config.ema, (1 + int(n)) / (10 + int(n)))),
        )
        self.checks = {
            "train_error": self._check_batches(self.train, checked),
            "held_out_error": self._check_batches(self.held_out, checked),
        }

    def state(self) -> dict[str, Stateful]:
        """Return the model, its average and the optimizer."""
        return {**super().state(), "average": self.average}

    def stepped(self) -> None:
        """Move the average of the weights."""
        self.average.update_parameters(self.denoiser)

    def _tokens(self, prompts: list[str]) -> Tensor:
        ids = self.words(prompts, padding="max_length", max_length=self.config.tokens, truncation=True)
        return torch.tensor(ids["input_ids"])

    def _latents(self, numbers: NDArray[np.float16]) -> Tensor:
        x = torch.from_numpy(numbers.astype(np.float32)) * self.scale
        return x.contiguous(memory_format=torch.channels_last)

    def _batch(self, data: Encoded, photos: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        count = len(photos)
        kinds = rng.integers(0, len(data.latents), count)
        clean = self._latents(data.latents[kinds, photos])
        # One time from each of `count` equal spans: less noise in the loss than independent draws.
        spread = (np.arange(count) + rng.random(count)) / count
        times = torch.from_numpy((spread * self.noising.config.num_train_timesteps).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        prompts = [
            ""
            if rng.random() < self.config.prompt_dropout
            else captions.prompt(data.looks[kind][photo], data.subjects[photo], rng)
            for kind, photo in zip(kinds, photos, strict=True)
        ]
        return Batch(clean, noise, times, self._tokens(prompts))

    def _check_batches(self, data: Encoded, count: int) -> list[Batch]:
        """Fixed noise and times on drawn photos as they are: the same ones at every measurement."""
        plain = Encoded(data.latents[:1], data.looks[:1], data.subjects)
        drawn = np.random.default_rng(self.config.seed).permutation(len(data.subjects))
        photos = np.sort(drawn[:count])
        rng = np.random.default_rng((self.config.seed, count))
        parts = np.array_split(photos, max(1, len(photos) // CHECK_BATCH))
        return [self._batch(plain, part, rng) for part in parts]

    def _predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        noised = self.noising.add_noise(batch.clean, batch.noise, batch.times)
        return model(noised, batch.times, batch.tokens), noised

    def loss(self) -> Tensor:
        """Mean squared error of what the config predicts: the noise, or the velocity."""
        rng = np.random.default_rng((self.config.seed, self.step))
        batch = self._batch(self.train, rng.integers(0, len(self.train.subjects), self.config.batch), rng)
        predicted, _ = self._predict(self.denoiser, batch)
        wanted = batch.noise
        if self.config.prediction == "v_prediction":
            wanted = self.noising.get_velocity(batch.clean, batch.noise, batch.times)
        return torch.as_tensor((predicted - wanted).square().mean())

    @torch.no_grad()
    def noise_error(self, batches: list[Batch]) -> float:
        """Mean squared error of the predicted noise by the averaged weights, for every kind of prediction."""
        errors = []
        for batch in batches:
            with autocast():
                predicted, noised = self._predict(self.average, batch)
            if self.config.prediction == "v_prediction":
                kept = self.noising.alphas_cumprod[batch.times].view(-1, 1, 1, 1)
                predicted = kept.sqrt() * predicted + (1 - kept).sqrt() * noised
            errors += (predicted - batch.noise).square().mean(dim=(1, 2, 3)).tolist()
        return float(np.mean(errors))

    def measure(self) -> dict[str, float]:
        """Noise error on fixed training photos and on held-out ones, by the averaged weights."""
        return {name: self.noise_error(batches) for name, batches in self.checks.items()}

    def run(self, log_every: int = 250, checkpoint_every: int = 250) -> None:
        """Train to the last step, then write the pipeline."""
        super().run(log_every, checkpoint_every)
        self.pipeline().save_pretrained(self.out / "pipeline")
        _forget_paths(self.out / "pipeline")

    def pipeline(self) -> StableDiffusionImg2ImgPipeline:
        """The averaged weights as a diffusers pipeline, UNet and VAE in float16.

        The text encoder stays in float32: transformers loads it as it was saved, diffusers the others as
        float32, and mixed they fail.
        """
        denoiser, vae = copy.deepcopy(self.average.module), copy.deepcopy(self.vae)
        vae.register_to_config(scaling_factor=self.scale)
        return StableDiffusionImg2ImgPipeline(
            vae=vae.half(),
            text_encoder=denoiser.text,
            tokenizer=self.words,
            unet=denoiser.unet.half(),
            scheduler=DDIMScheduler(
                **schedule(self.config), clip_sample=False, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _forget_paths(pipeline: Path) -> None:
    """Take out of the configurations where the parts were loaded from: places of one machine."""
    for file in pipeline.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")


def schedule(config: DiffusionConfig) -> dict[str, Any]:
    """Return what training and sampling must agree on."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": config.noise_schedule,
        "prediction_type": config.prediction,
    }


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(CONFIGS), required=True)
    for name in ("photos", "vae", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    vae = load_autoencoder(str(args.vae)).float()
    Trainer(CONFIGS[args.model], args.photos, vae, args.out).run()


if __name__ == "__main__":
    main()
