"""EDICT: Wallace, Gokul, Naik, *Exact Diffusion Inversion via Coupled Transformations*, CVPR 2023.

Two latents x and y are denoised together, each by the noise found in the other. Each half-step is affine in
the latent that it changes, so it can be undone exactly, which plain DDIM inversion cannot. With a and b of
`DdimStep` and the mixing weight p, the paper's denoising step is

    x' = a·x + b·ε(y, t)          y' = a·y + b·ε(x', t)
    x₍ₜ₋₁₎ = p·x' + (1−p)·y'      y₍ₜ₋₁₎ = p·y' + (1−p)·x₍ₜ₋₁₎

and inversion undoes these four assignments from the last to the first. x and y change roles at every other
step, as in the paper. A picture is edited by inverting it part of the way (the strength; 0.8 in the paper)
under a base prompt and denoising both latents under the target prompt. OriPID has prompts of the target
alone, so ours inverts under the empty prompt.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.translation.translators import DdimStep, DdimTranslator, Predictor

# p of the paper's experiments: nearer 1 the two latents drift apart, much lower inversion amplifies errors.
MIXING = 0.93

Pair = tuple[torch.Tensor, torch.Tensor]


class Edict(DdimTranslator):
    """Inverts exactly, then denoises under the prompt. It draws no noise: seeds change nothing."""

    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        nothing = self.predictor([""] * len(images), guidance=1)
        pair = self.invert(self.encode(images), nothing)
        return self.decode(self.denoise(pair, self.predictor(prompts, self.model.guidance))[0])

    def invert(self, latents: torch.Tensor, predict: Predictor) -> Pair:
        """Return the two noisy latents, at the model's strength, that denoise to these latents.

        Args:
            latents: float64[B,c,h,w].
            predict: the noise in a latent; `denoise` with the same one gives the latents back.
        """
        x, y = latents, latents
        for i, step in enumerate(self._taken()):
            x, y = invert_step(x, y, step, predict) if i % 2 == 0 else invert_step(y, x, step, predict)[::-1]
        return x, y

    def denoise(self, pair: Pair, predict: Predictor) -> Pair:
        """Denoise a pair of noisy latents to the two latents of a picture, which are nearly the same."""
        x, y = pair
        for i, step in reversed(list(enumerate(self._taken()))):
            x, y = (
                denoise_step(x, y, step, predict) if i % 2 == 0 else denoise_step(y, x, step, predict)[::-1]
            )
        return x, y

    def _taken(self) -> list[DdimStep]:
        """Return the steps below the strength."""
        return self.steps(self.timesteps)[: int((self.model.strength or 1) * self.model.steps)]


def denoise_step(x: torch.Tensor, y: torch.Tensor, step: DdimStep, predict: Predictor) -> Pair:
    """Take one coupled denoising step: the four assignments above."""
    x = step.a * x + step.b * predict(y, step.timestep)
    y = step.a * y + step.b * predict(x, step.timestep)
    x = MIXING * x + (1 - MIXING) * y
    y = MIXING * y + (1 - MIXING) * x
    return x, y


def invert_step(x: torch.Tensor, y: torch.Tensor, step: DdimStep, predict: Predictor) -> Pair:
    """Invert `denoise_step` for the same step and predictor."""
    y = (y - (1 - MIXING) * x) / MIXING
    x = (x - (1 - MIXING) * y) / MIXING
    y = (y - step.b * predict(x, step.timestep)) / step.a
    x = (x - step.b * predict(y, step.timestep)) / step.a
    return x, y
