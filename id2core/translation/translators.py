"""Text-guided image-to-image translation: every paradigm behind one call, `Translator.translate`.

| class | paradigm | what the picture becomes |
|---|---|---|
| `SDEdit` | Meng et al. 2022, the paper's | its latent, noised by the strength, where denoising starts |
| `InstructPix2Pix` | Brooks et al. 2023 | its latent, a second input of the U-Net at every step |
| `ip_adapter.IPAdapter` | Ye et al. 2023 | its CLIP embedding, a second prompt |
| `edict.Edict` | Wallace et al. 2023 | its latent, inverted exactly |
| `plug_and_play.PlugAndPlay` | Tumanyan et al. 2023 | its latent, inverted, and features on the way back |

The last four are those of Table 11 of the ID² paper. `loading.load` makes a translator.
"""

from __future__ import annotations

import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.environment import best_memory_format, quiet
from id2core.errors import TranslatorError
from id2core.translation.spec import DiffusionModel

# Brooks et al. use 1.5 by default, and so does diffusers.
IMAGE_GUIDANCE = 1.5
# The most pixels and pictures in one call of a network. On a CPU more only costs memory.
_PIXELS = {"cuda": 16 * 512**2, "cpu": 8 * 256**2}
_PICTURES = {"cuda": 64, "cpu": 8}

# From a noisy latent and its timestep to the noise in it.
Predictor = Callable[[torch.Tensor, int], torch.Tensor]


def settle(pipeline: Any, device: torch.device, slicing: bool = True) -> Any:
    """Put a pipeline on a device: no progress bars, convolutions in the layout that is fastest there.

    Args:
        pipeline: of diffusers.
        device: where it runs.
        slicing: decode the pictures of a batch one by one, which takes less memory and more time.
    """
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    parts = pipeline.components
    for part in [parts[name] for name in ("unet", "vae", "movq") if name in parts]:
        layout = best_memory_format(device)
        torch.nn.Module.to(part, memory_format=layout)  # type: ignore[call-overload]
        if slicing and hasattr(part, "use_slicing"):
            part.enable_slicing()
    return pipeline


class Translator(ABC):
    """A diffusion model on one device that changes pictures as prompts say.

    The batch handed to the networks always has `batch_size` pictures, the last one filled up with black:
    with one shape a picture's translation does not depend on its neighbors or on its place among them,
    so any part of a run, repeated on the same machine, gives the same bits. (Measured on a CPU, in float32
    and bfloat16, and on an H100 with mini-a in bfloat16.)

    Attributes:
        model: the settings it was loaded with.
        revision: what was really loaded: the hub's commit, or 12 hex of a directory's weights; of an
            IP-Adapter, both of the model and of the adapter, joined by `+`.
        pipeline: the diffusers pipeline.
        batch_size: pictures in one call of the networks; another one gives other last bits.
    """

    loader: ClassVar[str] = "StableDiffusionPipeline"
    # Names in `model_index.json`; empty: any that the loader takes.
    accepts: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")

    def __init__(self, model: DiffusionModel, pipeline: Any, revision: str) -> None:
        self.model, self.pipeline, self.revision = model, pipeline, revision
        kind = pipeline.device.type if pipeline.device.type in _PIXELS else "cuda"
        self.batch_size = max(1, min(_PICTURES[kind], _PIXELS[kind] // model.size**2))
        self._lock = threading.Lock()

    @classmethod
    def prepare(cls, pipeline: Any, model: DiffusionModel, folder: Path) -> str:
        """Add what a paradigm needs to a loaded pipeline; a hook.

        Args:
            pipeline: from `folder`, not yet on its device.
            model: what was asked for.
            folder: the pipeline's directory.

        Returns:
            What the revision grows by, for weights that were added.
        """
        return ""

    @final
    def translate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Translate each picture by its own prompt, from its own noise.

        As `attempt`, but for callers that cannot go on without one of the pictures.

        Raises:
            ValueError: as `attempt`.
            TranslatorError: the network overflowed on a picture.
        """
        made = self.attempt(images, prompts, seeds)
        whole = [picture for picture in made if picture is not None]
        if len(whole) < len(made):
            raise TranslatorError(
                f"{self.model.name} overflowed in {self.pipeline.dtype} and would give black pictures; load "
                "it with dtype float32 (or bfloat16)"
            )
        return whole

    @final
    def attempt(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Translate each picture by its own prompt, from its own noise.

        Args:
            images: RGB, any sizes; each is stretched to the square of side `model.size`.
            prompts: one for each picture. What exceeds the text encoder's length is cut off.
            seeds: one for each picture, 0 to 2⁶³ − 1. EDICT and Plug-and-Play draw no noise and ignore it.

        Returns:
            One RGB picture of `model.size`² for each picture, in their order; None where the network
            overflowed.

        Raises:
            ValueError: the lengths differ, a picture is not RGB, or a seed is out of range.
        """
        if not len(images) == len(prompts) == len(seeds):
            counts = f"{len(images)} pictures, {len(prompts)} prompts, {len(seeds)} seeds"
            raise ValueError(f"{counts}: give each picture one of both")
        if modes := {image.mode for image in images} - {"RGB"}:
            raise ValueError(f"pictures of mode {', '.join(sorted(modes))}; convert them to RGB first")
        if any(not 0 <= seed < 2**63 for seed in seeds):
            raise ValueError("a seed is out of range; take it modulo 2**63")
        results: list[Image.Image | None] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            results += self._translate_batch(images[part], prompts[part], seeds[part])
        return results

    def _translate_batch(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        square = (self.model.size, self.model.size)
        count, spare = len(images), self.batch_size - len(images)
        # Pillow's bilinear filter widens with the scale: it is the antialiased one.
        inputs = [image.resize(square, Image.Resampling.BILINEAR) for image in images]
        inputs += [Image.new("RGB", square)] * spare
        # On the CPU for every device, so that a seed means the same noise on each of them.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in [*seeds, *[0] * spare]]
        with self._lock, quiet(), torch.inference_mode():
            pixels = self._impl(inputs, [*prompts, *[""] * spare], generators)[:count]
        return [_picture(p) if np.isfinite(p).all() else None for p in pixels]

    @abstractmethod
    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        """Translate exactly `batch_size` square RGB pictures.

        Returns:
            float32[batch_size,size,size,3] in [0,1].
        """


def _picture(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


class SDEdit(Translator):
    """Noise the latent up to the strength, then denoise it under the prompt (Meng et al. 2022).

    diffusers' own image-to-image pipelines do it: Stable Diffusion, XL, 3, Kandinsky 3, Kolors and more.
    """

    loader = "AutoPipelineForImage2Image"
    accepts = ()

    def __init__(self, model: DiffusionModel, pipeline: Any, revision: str) -> None:
        super().__init__(model, pipeline, revision)
        self._parameters = set(inspect.signature(pipeline.__call__).parameters)
        if missing := {"prompt", "image", "strength", "guidance_scale", "generator"} - self._parameters:
            raise TranslatorError(
                f"{type(pipeline).__name__} takes no {', '.join(sorted(missing))}: it is no SDEdit "
                "pipeline; choose another model"
            )
        if type(pipeline).__name__ == "Kandinsky3Img2ImgPipeline":
            # It averages over the tokens of the batch's longest prompt: a neighbor would change the picture.
            self.batch_size = 1
        if getattr(pipeline, "watermark", None) is not None:
            # XL pipelines watermark their output where a certain package happens to be installed.
            pipeline.watermark = None

    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        # Stable Diffusion 3 and Kolors use their native size by default; the others by the pictures'.
        sides = {name: self.model.size for name in ("height", "width") if name in self._parameters}
        output = self.pipeline(
            prompt=prompts,
            image=images,
            strength=self.model.strength,
            num_inference_steps=self.model.steps,
            guidance_scale=self.model.guidance,
            generator=generators,
            output_type="np",
            **sides,
        )
        return np.asarray(output.images, np.float32)


class InstructPix2Pix(Translator):
    """From noise, by a U-Net trained on pictures, instructions and edited pictures (Brooks et al. 2023)."""

    loader = "StableDiffusionInstructPix2PixPipeline"
    accepts = ("StableDiffusionInstructPix2PixPipeline",)

    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        output = self.pipeline(
            prompt=prompts,
            image=images,
            num_inference_steps=self.model.steps,
            guidance_scale=self.model.guidance,
            image_guidance_scale=IMAGE_GUIDANCE,
            generator=generators,
            output_type="np",
        )
        return np.asarray(output.images, np.float32)


@dataclass(frozen=True)
class DdimStep:
    """One DDIM step (Song et al. 2021, Eq. 12 with σ = 0): x₍ₜ₋₁₎ = a·xₜ + b·ε(xₜ, t).

    With ᾱ as in the scheduler: a = √(ᾱ₍ₜ₋₁₎/ᾱₜ), b = √(1−ᾱ₍ₜ₋₁₎) − a·√(1−ᾱₜ).
    """

    timestep: int
    a: float
    b: float


class DdimTranslator(Translator):
    """What inversion needs of a Stable Diffusion pipeline: latents, noise, and the steps between.

    Latents are float64 for every dtype of the networks, because inversions live on small differences.
    """

    def __init__(self, model: DiffusionModel, pipeline: Any, revision: str) -> None:
        from diffusers import DDIMScheduler

        super().__init__(model, pipeline, revision)
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self._alphas = self.scheduler.alphas_cumprod.double()
        if self.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise TranslatorError(
                f"{model.name} predicts {self.scheduler.config.prediction_type}; {model.paradigm} knows "
                "epsilon and v_prediction"
            )

    @functools.cached_property
    def timesteps(self) -> list[int]:
        """Return the timesteps of `model.steps` steps, ascending."""
        self.scheduler.set_timesteps(self.model.steps)
        # With as many steps as in training and an offset, the last one would lie beyond them.
        last = len(self._alphas) - 1
        return sorted(min(int(t), last) for t in self.scheduler.timesteps)

    def steps(self, timesteps: Sequence[int]) -> list[DdimStep]:
        """Return the DDIM steps that end at the picture, the last one first.

        Args:
            timesteps: ascending.
        """
        levels = [float(self.scheduler.final_alpha_cumprod), *self._alphas[list(timesteps)].tolist()]
        steps = []
        for timestep, near, far in zip(timesteps, levels[:-1], levels[1:], strict=True):
            a = (near / far) ** 0.5
            steps.append(DdimStep(timestep, a, (1 - near) ** 0.5 - a * (1 - far) ** 0.5))
        return steps

    def encode(self, images: list[Image.Image]) -> torch.Tensor:
        """Encode pictures to scaled latents float64[B,c,h,w]: the posterior's mode, so nothing is drawn."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(images).to(vae.device, vae.dtype)
        return torch.as_tensor(vae.encode(pixels).latent_dist.mode().double() * vae.config.scaling_factor)

    def decode(self, latents: torch.Tensor) -> NDArray[np.float32]:
        """Decode scaled latents to pictures float32[B,h,w,3] in [0,1]."""
        vae = self.pipeline.vae
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        return np.asarray(self.pipeline.image_processor.postprocess(pixels, output_type="np"), np.float32)

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the text features [B,tokens,d] of prompts."""
        embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.pipeline.device, 1, False)
        return torch.as_tensor(embeddings)

    def noise(self, latents: torch.Tensor, timestep: int, text: torch.Tensor) -> torch.Tensor:
        """Return ε(xₜ, t, text), the noise in latents float64[B,c,h,w], also where the network predicts v."""
        unet = self.pipeline.unet
        output = unet(latents.to(unet.dtype), timestep, encoder_hidden_states=text).sample.double()
        if self.scheduler.config.prediction_type == "epsilon":
            return torch.as_tensor(output)
        alpha = float(self._alphas[timestep])
        return torch.as_tensor(alpha**0.5 * output + (1 - alpha) ** 0.5 * latents)

    def predictor(self, prompts: Sequence[str], guidance: float) -> Predictor:
        """Return ε with classifier-free guidance: ε(∅) + guidance·(ε(prompt) − ε(∅))."""
        text = self.embed(prompts)
        if guidance == 1:
            return lambda latents, timestep: self.noise(latents, timestep, text)
        both = torch.cat([self.embed([""] * len(prompts)), text])

        def guided(latents: torch.Tensor, timestep: int) -> torch.Tensor:
            plain, prompted = self.noise(torch.cat([latents, latents]), timestep, both).chunk(2)
            return plain + guidance * (prompted - plain)

        return guided
