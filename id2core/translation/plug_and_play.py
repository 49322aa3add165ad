"""Plug-and-Play: Tumanyan, Geyer, Bagon, Dekel, *Plug-and-Play Diffusion Features*, CVPR 2023.

The picture is inverted by DDIM under the empty prompt. From that noise two latents are denoised side by side
(Algorithm 1): the source without a prompt, back to the picture, and the target under the prompt. At each step
the target's network is given, in place of its own,

- the output of the source's residual block in decoder layer 4 of 0 to 11, in the first 80% of the steps
  (the paper's τ_f = 40 of 50);
- the queries and keys of the source's self-attention in decoder layers 4 to 11, in the first half
  (τ_A = 25 of 50).

So the layout stays the picture's, and the prompt decides what fills it. In a U-Net with another number of
decoder layers the first third of them stays untouched, as here. The paper inverts in as many steps as the
model was trained with; 20 times the sampling steps are that for 50. Its negative prompt is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.translation.translators import DdimTranslator

FEATURE_SHARE = 0.8
ATTENTION_SHARE = 0.5
INVERSION_FACTOR = 20


class PlugAndPlay(DdimTranslator):
    """Inversion, then denoising with injected features. Draws no noise: seeds change nothing.

    Attributes:
        feature_share, attention_share: of the steps, those with injected features and self-attention.
    """

    feature_share = FEATURE_SHARE
    attention_share = ATTENTION_SHARE

    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        return self.decode(self.denoise(self.invert(self.encode(images)), prompts)[1])

    def invert(self, latents: torch.Tensor) -> torch.Tensor:
        """Invert by DDIM under the empty prompt, to the noise of the first sampling step.

        Each step is undone with the noise found before it, not after: ε(x₍ₜ₋₁₎, t) for ε(xₜ, t).

        Args:
            latents: float64[B,c,h,w].
        """
        predict = self.predictor([""] * len(latents), guidance=1)
        first, last = self.timesteps[0], self.timesteps[-1]
        grid = np.linspace(first, last, INVERSION_FACTOR * (len(self.timesteps) - 1) + 1)
        for step in self.steps(np.unique(grid.round().astype(int)).tolist()):
            latents = (latents - step.b * predict(latents, step.timestep)) / step.a
        return latents

    def denoise(self, noise: torch.Tensor, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoise the source's and the target's latent together (Algorithm 1).

        Args:
            noise: float64[B,c,h,w], from `invert`.
            prompts: B of them.

        Returns:
            The source's latents, which are the DDIM reconstruction, and the target's.
        """
        empty = self.embed([""] * len(prompts))
        text = torch.cat([empty, empty, self.embed(prompts)])
        source, target = noise, noise
        steps = self.steps(self.timesteps)[::-1]
        for i, step in enumerate(steps):
            with injected(self.injected_at(i / len(steps))):
                parts = self.noise(torch.cat([source, target, target]), step.timestep, text).chunk(3)
            guided = parts[1] + self.model.guidance * (parts[2] - parts[1])
            source = step.a * source + step.b * parts[0]
            target = step.a * target + step.b * guided
        return source, target

    def injected_at(self, progress: float) -> list[Any]:
        """Return the modules whose output is injected after this share of the steps."""
        layers = decoder_layers(self.pipeline.unet)
        first = len(layers) // 3
        modules = [layers[first][0]] if progress < self.feature_share else []
        if progress < self.attention_share:
            for _, attentions in layers[first:]:
                modules += [part for attention in attentions for part in (attention.to_q, attention.to_k)]
        return modules


def decoder_layers(unet: Any) -> list[tuple[Any, list[Any]]]:
    """Return the decoder's layers from the bottleneck on: residual block and self-attentions."""
    layers = []
    for block in unet.up_blocks:
        transformers = getattr(block, "attentions", [None] * len(block.resnets))
        for residual, transformer in zip(block.resnets, transformers, strict=True):
            blocks = transformer.transformer_blocks if transformer is not None else []
            layers.append((residual, [inner.attn1 for inner in blocks]))
    return layers


@contextlib.contextmanager
def injected(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Make modules give the batch's first third (the source's) to all three thirds."""

    def from_source(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output.chunk(3)[0]] * 3)

    handles = [module.register_forward_hook(from_source) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
