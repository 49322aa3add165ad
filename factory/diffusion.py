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
from typing import Any

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
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextConfig, CLIPTextModel

from factory import diffusion_data, tokenizer
from factory.diffusion_data import Encoded
from id2core.encoders.autoencoders import load_autoencoder
from id2core.experiments import captions
from id2core.experiments import photo_folders as photo_folder
from id2core.training.loop import Loop, autocast

CHECKED = 250
CHECK_BATCH = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run, but the photos and the VAE."""

    widths: tuple[int, ...] = (48, 96, 128)
    groups: int = 8
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    tokens: int = 32
    vocabulary: int = 1_600
    prediction: str = "epsilon"
    noise_schedule: str = "scaled_linear"
    variants: int = 6
    prompt_dropout: float = 0.1
    seed: int = 1
    steps: int = 5_000
    batch: int = 32
    lr: float = 8e-4
    warmup: int = 200
    weight_decay: float = 1e-3
    ema: float = 0.999


RECIPES = {
    "mini-a": Recipe(),
    "mini-b": Recipe(
        widths=(32, 96, 160),
        prediction="v_prediction",
        noise_schedule="squaredcos_cap_v2",
        variants=4,
        steps=3_500,
        seed=2,
    ),
}


def build_unet(recipe: Recipe, channels: int) -> UNet2DConditionModel:
    """An untrained UNet over latents of so many channels, 32×32."""
    depth = len(recipe.widths)
    return UNet2DConditionModel(
        sample_size=photo_folder.SIZE // 8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (depth - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.heads,
        norm_num_groups=recipe.groups,
    ).to(memory_format=torch.channels_last)


def build_text_encoder(recipe: Recipe, words: Any) -> CLIPTextModel:
    """An untrained CLIP text encoder for the vocabulary of a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=recipe.text_width,
            projection_dim=recipe.text_width,
            intermediate_size=2 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.tokens,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


class Denoiser(nn.Module):
    """UNet and text encoder: noised latents, times and prompts in, what the recipe predicts out."""

    def __init__(self, recipe: Recipe, channels: int, words: Any) -> None:
        super().__init__()
        self.unet = build_unet(recipe, channels)
        # The fused attention's gradient is slow on a CPU: 18% of a step.
        self.unet.set_attn_processor(AttnProcessor())
        self.text = build_text_encoder(recipe, words)

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


class Trainer(Loop):
    """Trains one diffusion model on the photos of a folder, less those that are held out."""

    def __init__(
        self, recipe: Recipe, photos: Path, vae: AutoencoderKL, out: Path, checked: int = CHECKED
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        names = photo_folder.split(photos)
        self.vae = vae.eval()
        self.train = diffusion_data.encode(
            vae, photos, names.train, recipe.variants, recipe.seed, out / "train.npy"
        )
        self.held_out = diffusion_data.encode(
            vae, photos, names.held_out[:checked], 1, recipe.seed, out / "held_out.npy"
        )
        self.scale = float(1 / self.train.latents.astype(np.float32).std())
        subjects = sorted({s for s in self.train.subjects if s})
        self.words = tokenizer.train(captions.corpus(subjects), recipe.vocabulary, recipe.tokens)
        self.noising = DDPMScheduler(**schedule(recipe))
        torch.manual_seed(recipe.seed)
        self.denoiser = Denoiser(recipe, vae.config["latent_channels"], self.words)
        super().__init__(recipe, out, self.denoiser)
        # Averages forget the start sooner than 1/(1 − decay) steps, or they would be useless early on.
        self.average = AveragedModel(
            self.denoiser,
            avg_fn=lambda old, new, n: old.lerp(new, 1 - min(recipe.ema, (1 + int(n)) / (10 + int(n)))),
        )
        self.checks = {
            "train_error": self._check_batches(self.train, checked),
            "held_out_error": self._check_batches(self.held_out, checked),
        }

    def state(self) -> dict[str, Any]:
        """Model, its average and the optimizer."""
        return super().state() | {"average": self.average}

    def stepped(self) -> None:
        """Move the average of the weights."""
        self.average.update_parameters(self.denoiser)

    def _tokens(self, prompts: list[str]) -> Tensor:
        ids = self.words(prompts, padding="max_length", max_length=self.recipe.tokens, truncation=True)
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
            if rng.random() < self.recipe.prompt_dropout
            else captions.prompt(data.looks[kind][photo], data.subjects[photo], rng)
            for kind, photo in zip(kinds, photos, strict=True)
        ]
        return Batch(clean, noise, times, self._tokens(prompts))

    def _check_batches(self, data: Encoded, count: int) -> list[Batch]:
        """Fixed noise and times on drawn photos as they are: the same ones at every measurement."""
        plain = Encoded(data.latents[:1], data.looks[:1], data.subjects)
        drawn = np.random.default_rng(self.recipe.seed).permutation(len(data.subjects))
        photos = np.sort(drawn[:count])
        rng = np.random.default_rng((self.recipe.seed, count))
        parts = np.array_split(photos, max(1, len(photos) // CHECK_BATCH))
        return [self._batch(plain, part, rng) for part in parts]

    def _predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        noised = self.noising.add_noise(batch.clean, batch.noise, batch.times)
        return model(noised, batch.times, batch.tokens), noised

    def loss(self) -> Tensor:
        """Mean squared error of what the recipe predicts: the noise, or the velocity."""
        rng = np.random.default_rng((self.recipe.seed, self.step))
        batch = self._batch(self.train, rng.integers(0, len(self.train.subjects), self.recipe.batch), rng)
        predicted, _ = self._predict(self.denoiser, batch)
        wanted = batch.noise
        if self.recipe.prediction == "v_prediction":
            wanted = self.noising.get_velocity(batch.clean, batch.noise, batch.times)
        return torch.as_tensor((predicted - wanted).square().mean())

    @torch.no_grad()
    def noise_error(self, batches: list[Batch]) -> float:
        """Mean squared error of the predicted noise by the averaged weights, whatever the recipe predicts."""
        errors = []
        for batch in batches:
            with autocast():
                predicted, noised = self._predict(self.average, batch)
            if self.recipe.prediction == "v_prediction":
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
                **schedule(self.recipe), clip_sample=False, set_alpha_to_one=False, steps_offset=1
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


def schedule(recipe: Recipe) -> dict[str, Any]:
    """What training and sampling must agree on."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": recipe.noise_schedule,
        "prediction_type": recipe.prediction,
    }


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    for name in ("photos", "vae", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    vae = load_autoencoder(str(args.vae)).float()
    Trainer(RECIPES[args.model], args.photos, vae, args.out).run()


if __name__ == "__main__":
    main()
