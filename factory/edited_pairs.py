"""Make the W that ships: translations, edited as uploads are, on a GPU and in memory.

Run `python -m factory.edited_pairs --photos DIR --data DATA --out W.safetensors`, then `factory.bundle`. DATA
is an evaluation set of these photos (`id2 experiment data`). Its photos of `train` are used, and no others.

1. Each photo is seen in ten views, each an origin: the whole, mirrored, and eight crops.
2. `mini-a` translates every view five times, at strengths from 0.5 to 1. The translation counts as it is,
   with lettering or stickers, and cropped or turned by a few degrees. Pixels stay on the GPU.
3. The closed form (`id2core.training.closed_form`) with λ = 20 gives a first W.
4. It is refined by a softmax over origins: the cosine of an edited translation with its origin against those
   with the origins of other photos, by all columns, the first 160, and the first 80 alike, because views
   compare first columns. Columns keep their order.
5. What ships is 0.7 × the first W + 0.3 × the refined one, which lie in one space. More of the refined one
   finds more translations and fewer crops (docs/w.md).

Nothing of this needs a GPU, but on two cores it would take days. It is no part of `id2 train`, because the
edits are made between two networks, where `id2 train` reads data sets that are kept.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional

from id2core.encoders import registry
from id2core.environment import usable_device
from id2core.experiments import captions, photo_bench, upload_layers
from id2core.experiments.photo_bench import SEEN, TRAIN
from id2core.training import closed_form
from id2core.training.closed_form import Shape
from id2core.training.moments import Moments
from id2core.transforms.linear import Transform
from id2core.translation import loading, models

SIZE, VIEWS, M = 256, 10, 480
SHRINKAGE, POWER = 20.0, -0.5
STEPS, GUIDANCE = 10, 7.5
PROMPTS, LAYERS = 4000, 3000
BATCH, REFINED_BATCH, NEGATIVES = 1000, 2048, 8192
REFINED_STEPS, RATE, TEMPERATURE = 2500, 1e-3, 0.05
# What the closed form, and then the softmax, learn from: shares of pairs by what was done to the translation,
# or by the strength where it was left as it is.
CLOSED_FORM = {"0.9": 0.4, "overlay": 0.2, "crop-0.9": 0.2, "turn": 0.2}
CLOSED_FORM_PAIRS = 100_000
REFINED = {
    "0.5": 0.25,
    "0.7": 0.25,
    "0.9": 0.4,
    "1.0": 0.25,
    "overlay": 0.3,
    "crop-0.9": 0.2,
    "crop-0.75": 0.15,
    "turn": 0.2,
}
# Strengths in turn, and what is done to these translations besides.
ROUNDS = ((0.9, "crop-0.9"), (0.7, "turn"), (1.0, "crop-0.75"), (0.9, "crop-0.9"), (0.5, "turn"))
# Columns that a score is made of, and the weight of each in the loss.
PREFIXES = ((M, 1.0), (160, 0.5), (80, 0.5))
REFINED_SHARE = 0.3

Pixels = Tensor  # uint8[B,3,256,256]
Change = Callable[[Pixels], Pixels]


def views(file: Path) -> NDArray[np.uint8]:
    """Return a photo in ten views, uint8[10,256,256,3]: the whole, mirrored, and crops drawn by its name."""
    with Image.open(file) as image:
        photo = image.convert("RGB")
    shown = [photo]
    for number in range(VIEWS - 1):
        buffer = io.BytesIO()
        photo_bench.view(photo, file.name, number).save(buffer, "JPEG", quality=95)
        shown.append(Image.open(buffer).convert("RGB"))
    return np.stack([np.asarray(v.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for v in shown])


def layer(seed: int) -> NDArray[np.uint8]:
    """Return lettering or stickers as uint8[256,256,4], RGBA, from what they make of black and of white."""
    made = []
    draw = upload_layers.lettering if seed % 2 else upload_layers.stickers
    for level in (0, 255):
        picture = draw(Image.new("RGB", (SIZE, SIZE), (level,) * 3), np.random.default_rng((77, seed)))
        made.append(np.asarray(picture.resize((SIZE, SIZE)), np.float32))
    alpha = np.clip(1 - (made[1] - made[0]).mean(-1, keepdims=True) / 255, 0, 1)
    color = np.clip(made[0] / np.maximum(alpha, 1e-3), 0, 255)
    return np.concatenate([color, alpha * 255], -1).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Editor:
    """Edits pictures on their device, each by its own draw.

    Attributes:
        layers: uint8[L,4,256,256], lettering and stickers.
    """

    layers: Tensor

    def overlay(self, pixels: Pixels) -> Pixels:
        """Lay lettering or stickers over pictures."""
        drawn = self.layers[torch.randint(len(self.layers), (len(pixels),), device=pixels.device)].float()
        alpha = drawn[:, 3:] / 255
        return _bytes(pixels.float() * (1 - alpha) + drawn[:, :3] * alpha)

    def crop(self, pixels: Pixels, low: float, high: float) -> Pixels:
        """Keep `low` to `high` of the area, anywhere."""
        side = torch.empty(len(pixels), device=pixels.device).uniform_(low, high).sqrt()
        place = (torch.rand(len(pixels), 2, device=pixels.device) * 2 - 1) * (1 - side)[:, None]
        moved = torch.diag_embed(torch.stack([side, side], 1))
        return _sampled(pixels, torch.cat([moved, place[:, :, None]], 2))[0]

    def turn(self, pixels: Pixels) -> Pixels:
        """Turn by 1 to 5 degrees; corners are black or white, or cut off."""
        count, device = len(pixels), pixels.device
        sign = torch.randint(0, 2, (count,), device=device) * 2 - 1
        angle = torch.empty(count, device=device).uniform_(1, 5) * math.pi / 180 * sign
        whole = torch.rand(count, device=device) < 0.5
        zoom = torch.where(whole, torch.ones_like(angle), 1 / (angle.cos() + angle.abs().sin()))
        cosine, sine = angle.cos() * zoom, angle.sin() * zoom
        rows = [torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)]
        theta = functional.pad(torch.stack(rows, 1), (0, 1))
        turned, outside = _sampled(pixels, theta)
        fill = (torch.rand(count, device=device) < 0.5).to(torch.uint8)[:, None, None, None] * 255
        return torch.where(outside & whole[:, None, None, None], fill, turned)

    @property
    def changes(self) -> dict[str, Change]:
        """Return the edits by name."""
        return {
            "overlay": self.overlay,
            "crop-0.9": functools.partial(self.crop, low=0.85, high=0.95),
            "crop-0.75": functools.partial(self.crop, low=0.68, high=0.85),
            "turn": self.turn,
        }


def _sampled(pixels: Pixels, theta: Tensor) -> tuple[Pixels, Tensor]:
    """Return pictures under affine maps float[B,2,3], and bool[B,1,256,256]: what lies outside of them."""
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    sampled = functional.grid_sample(
        pixels.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return _bytes(sampled), (grid.abs() > 1).any(-1)[:, None]


def _parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def _bytes(values: Tensor) -> Pixels:
    return values.clamp(0, 255).round().to(torch.uint8)


class Model:
    """`mini-a` on a device: SDEdit of pictures that stay there, under prompts drawn for each.

    `id2 translate` does the same with files, a seed for each picture, and the noise of a CPU.
    """

    def __init__(self, subjects: list[str], device: torch.device, prompts: int = PROMPTS) -> None:
        self.pipe = loading.load(models.find(SEEN), str(device)).pipeline
        texts = [captions.invented(subjects, number) for number in range(prompts)]
        with torch.inference_mode():
            parts = [
                self.pipe.encode_prompt(texts[i : i + 500], device, 1, True) for i in range(0, prompts, 500)
            ]
        self.texts, self.nothing = torch.cat([text for text, _ in parts]), parts[0][1][:1]

    @torch.inference_mode()
    def translate(self, pixels: Pixels, strength: float) -> Pixels:
        """Translate pictures uint8[B,3,256,256] at a strength."""
        pipe, count = self.pipe, len(pixels)
        pipe.scheduler.set_timesteps(STEPS)
        times = pipe.scheduler.timesteps[STEPS - int(STEPS * strength) :].to(pixels.device)
        scale = pipe.vae.config.scaling_factor
        shown = (pixels.float() / 127.5 - 1).to(pipe.vae.dtype)
        z = pipe.vae.encode(shown).latent_dist.sample() * scale
        z = pipe.scheduler.add_noise(z, torch.randn_like(z), times[:1].expand(count))
        drawn = self.texts[torch.randint(len(self.texts), (count,), device=pixels.device)]
        text = torch.cat([self.nothing.expand(count, -1, -1), drawn])
        for time in times:
            without, under = pipe.unet(torch.cat([z, z]), time, encoder_hidden_states=text).sample.chunk(2)
            noise = without + GUIDANCE * (under - without)
            z = pipe.scheduler.step(noise, time, z).prev_sample.to(shown.dtype)
        return torch.cat(
            [_bytes((pipe.vae.decode(part / scale).sample.float() + 1) * 127.5) for part in _parts(z, 250)]
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """Origins and edited translations, on a device.

    Attributes:
        origins: float16[N,n].
        photos: int64[N], of each origin.
        groups: by name, the latents float16[P,n] of translations, and int64[P], their origins.
    """

    origins: Tensor
    photos: Tensor
    groups: dict[str, tuple[Tensor, Tensor]]

    def draw(self, shares: dict[str, float], count: int) -> tuple[Tensor, Tensor]:
        """Draw about `count` pairs, of each group its share: latents, and their origins."""
        latents, own = [], []
        for name, share in shares.items():
            held, of = self.groups[name]
            rows = torch.randint(len(held), (round(count * share / sum(shares.values())),), device=of.device)
            latents.append(held[rows])
            own.append(of[rows])
        return torch.cat(latents), torch.cat(own)


def make_pairs(shown: Pixels, model: Model, encode: Callable[[Pixels], Tensor], editor: Editor) -> Pairs:
    """Translate and edit views, uint8[N,3,256,256], in rounds."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for strength, edit in ROUNDS:
        for rows in _parts(torch.arange(len(shown), device=shown.device), BATCH):
            made = model.translate(shown[rows], strength)
            parts.setdefault(str(strength), []).append((encode(made), rows))
            for name in ("overlay", edit):
                parts.setdefault(name, []).append((encode(editor.changes[name](made)), rows))
        print(f"translated {len(shown):,} views at strength {strength}", flush=True)
    groups = {
        name: (torch.cat([z for z, _ in held]), torch.cat([i for _, i in held]))
        for name, held in parts.items()
    }
    photos = torch.arange(len(shown) // VIEWS, device=shown.device).repeat_interleave(VIEWS)
    return Pairs(torch.cat([encode(part) for part in _parts(shown, BATCH)]), photos, groups)


def first(pairs: Pairs, count: int = CLOSED_FORM_PAIRS) -> Tensor:
    """Return the W of the closed form, float32[n,480]."""
    n = pairs.origins.shape[1]
    none, moments = np.empty((0, n), np.float32), Moments(n)
    for origins in _parts(pairs.origins, 8192):
        moments.add(none, origins.float().cpu().numpy())
    latents, own = pairs.draw(CLOSED_FORM, count)
    for part, of in zip(_parts(latents, 8192), _parts(own, 8192), strict=True):
        moments.add((part.float() - pairs.origins[of].float()).cpu().numpy(), none)
    [directions] = closed_form.solve(moments, M, (SHRINKAGE,))
    weights = directions.shaped(directions.vectors, Shape(POWER, centered=False))
    return torch.from_numpy(weights).to(pairs.origins.device)


def refine(start: Tensor, pairs: Pairs, steps: int = REFINED_STEPS) -> Tensor:
    """Return W after gradient descent; its columns move by as much as they are long."""
    unit = start.norm(dim=0, keepdim=True).clamp(min=1e-6) / math.sqrt(len(start))
    scaled = (start / unit).requires_grad_(True)
    optimizer = torch.optim.Adam([scaled], lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            RATE * min(1, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        loss = _loss(scaled * unit, pairs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    refined: Tensor = (scaled * unit).detach()
    return refined


def _loss(weights: Tensor, pairs: Pairs) -> Tensor:
    device = pairs.origins.device
    latents, own = pairs.draw(REFINED, REFINED_BATCH)
    others = torch.randint(len(pairs.origins), (NEGATIVES,), device=device)
    keys = torch.cat([own, others])
    of_photo = pairs.photos[own][:, None] == pairs.photos[keys][None, :]
    of_photo.fill_diagonal_(False)
    left, right = latents.float() @ weights, pairs.origins[keys].float() @ weights
    target = torch.arange(len(own), device=device)
    loss = torch.zeros((), device=device)
    for columns, weight in PREFIXES:
        cosines = functional.normalize(left[:, :columns]) @ functional.normalize(right[:, :columns]).T
        logits = (cosines / TEMPERATURE).masked_fill(of_photo, -1e4)
        loss = loss + weight * functional.cross_entropy(logits, target)
    return loss


def _encoder(device: torch.device) -> Callable[[Pixels], Tensor]:
    """Return what encodes pictures by `mini` in float32: uint8[B,3,256,256] to float16[B,4096]."""
    vae = loading.load(models.find(SEEN), str(device), "float32").pipeline.vae  # the same weights as `mini`

    @torch.inference_mode()
    def encode(pixels: Pixels) -> Tensor:
        parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in _parts(pixels, 250)]
        return torch.cat(parts).flatten(1).half()

    return encode


def _uploaded(pictures: Iterator[NDArray[np.uint8]], device: torch.device) -> Pixels:
    """Return pictures uint8[…,256,256,c] on a device, uint8[B,c,256,256]."""
    stacked = np.stack(list(pictures))
    flat = stacked.reshape(-1, SIZE, SIZE, stacked.shape[-1])
    return torch.from_numpy(flat).permute(0, 3, 1, 2).contiguous().to(device)


def train(photos: Path, names: list[str], device: torch.device) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Return W, float32[4096,480], and how many origins and pairs it is from."""
    subjects = sorted(set(captions.read(photos).values()))[::2]
    with ProcessPoolExecutor() as pool:
        shown = _uploaded(pool.map(views, [photos / name for name in names], chunksize=16), device)
        editor = Editor(_uploaded(pool.map(layer, range(LAYERS), chunksize=32), device))
    torch.manual_seed(9)
    pairs = make_pairs(shown, Model(subjects, device), _encoder(device), editor)
    start = first(pairs)
    weights = start + REFINED_SHARE * (refine(start, pairs) - start)
    count = sum(len(own) for _, own in pairs.groups.values())
    return weights.cpu().numpy(), {"origins": len(pairs.origins), "pairs": count}


def main() -> None:
    """Write W, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder with captions.csv")
    parser.add_argument("--data", type=Path, required=True, help="folder, see docs/experiments.md")
    parser.add_argument("--out", type=Path, required=True, help="file of W")
    options = parser.parse_args()
    files = sorted((options.data / "photos" / TRAIN).iterdir())
    names = [file.name for file in files if (options.photos / file.name).exists()]
    weights, counts = train(options.photos, names, usable_device("auto"))
    ids = registry.identify()
    facts: dict[str, JsonValue] = {
        "method": "closed form",
        "refined": REFINED_SHARE,
        "shrinkage": SHRINKAGE,
        "power": POWER,
        "centered": False,
        "encoder_id": ids.encoder_id,
        "preprocess_id": ids.preprocess_id,
        **counts,
    }
    Transform(weights, facts).save(options.out)


if __name__ == "__main__":
    main()
