"""Measure a small diffusion model on photos it never saw, and write its directory and model card.

Run as `python -m factory.diffusion_card --model mini-a --photos DIR --run RUN --show DIR --out DIR`
after `factory.diffusion`: `--show` is a folder of pictures that may be shown in the card.

Two things are measured: the error of the predicted noise on training and on held-out photos while it
trained (from its log), and how often raw latents find the origin of a translation, by strength. The second
has the shape of the paper's Table 8 when the model translates as diffusion models do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from factory import photo_sets
from factory import vae as vae_training
from id2core.encoders.autoencoders import load_autoencoder
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI
from id2core.encoders.registry import load_encoder
from id2core.experiments import captions
from id2core.translation import loading, models

STRENGTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))
QUERIES = 200
SHOWN_STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SHOWN_SIDE = 128
# How the VAE of a model was made, where no card of its own says so.
VAE_COMMANDS = {
    "mini-b": "python -m factory.vae --seed 7 --channels 16 48 64 96 --steps 4000 "
    "--photos PHOTOS --out VAE_RUN",
}
STEPS = 30


@dataclass(frozen=True)
class Point:
    """Retrieval by raw latents at one strength: Acc (rank 1) and mAP (mean of 1/rank), 0 to 1."""

    strength: float
    acc: float
    map: float


@dataclass(frozen=True)
class Bench:
    """Held-out photos to translate, and a pool to find them in.

    Attributes:
        queries: uint8[Q,256,256,3], the origins.
        prompts: one for each.
        pool: float32[R,n] unit latents of origins and distractors; row i is the origin of query i.
    """

    queries: NDArray[np.uint8]
    prompts: list[str]
    pool: NDArray[np.float32]


def unit_latents(encoder: Encoder, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return latents scaled to length 1, float32[N,n]."""
    latents = encoder.encode(pictures).astype(np.float32)
    return np.asarray(latents / np.linalg.norm(latents, axis=1, keepdims=True))


def make_bench(photos: Path, encoder: Encoder, count: int = QUERIES) -> Bench:
    """Origins are the first `count` held-out photos, distractors all other photos there are."""
    names = photo_sets.split(photos)
    held_out = names.held_out[:count]
    rest = sorted({p.name for p in photos.glob("*.jpg")} - set(held_out))
    origins = photo_sets.load(photos, held_out)
    subjects = sorted(set(captions.read(photos).values()))
    prompts = [captions.invented(subjects, i) for i in range(count)]
    pool = unit_latents(encoder, np.concatenate([origins, photo_sets.load(photos, rest)]))
    return Bench(origins, prompts, pool)


def ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rank of column i in row i of scores float32[Q,R], 1 the best; ties count against the origin."""
    own = scores[np.arange(len(scores)), np.arange(len(scores))]
    return np.asarray((scores >= own[:, None]).sum(1))


def translate(
    model: str, pictures: NDArray[np.uint8], prompts: list[str], strength: float
) -> NDArray[np.uint8]:
    """Pictures translated by a pipeline directory: uint8[N,256,256,3]."""
    chosen = models.find(model, strength=strength, steps=STEPS, size=photo_sets.SIZE)
    translator = loading.load(chosen)
    made = translator.translate([Image.fromarray(p) for p in pictures], prompts, list(range(len(pictures))))
    return np.stack([np.asarray(image) for image in made])


def curve(model: str, bench: Bench, encoder: Encoder) -> list[Point]:
    """Measure retrieval by raw latents over all strengths."""
    points = []
    for strength in STRENGTHS:
        made = translate(model, bench.queries, bench.prompts, strength)
        rank = ranks(unit_latents(encoder, made) @ bench.pool.T)
        points.append(Point(strength, float((rank == 1).mean()), float((1 / rank).mean())))
        print(points[-1], flush=True)
    return points


def measured(photos: Path, out: Path) -> list[Point]:
    """The curve of the model in `out`, kept in `strengths.json` there: it takes minutes."""
    file, revision = out / "strengths.json", loading.hash_weights(out)
    if file.exists() and (kept := json.loads(file.read_text()))["revision"] == revision:
        return [Point(**point) for point in kept["points"]]
    encoder = load_encoder(MINI)
    points = curve(str(out), make_bench(photos, encoder), encoder)
    file.write_text(json.dumps({"revision": revision, "points": [asdict(p) for p in points]}, indent=1))
    return points


def vae_quality(folder: Path, photos: Path) -> float:
    """Mean PSNR in dB of a VAE's reconstructions of held-out photos."""
    names = photo_sets.split(photos).held_out[:QUERIES]
    images = photo_sets.load(photos, names)
    vae = load_autoencoder(str(folder)).float()
    return float(vae_training.psnr(images, vae_training.reconstruct(vae, images)).mean())


def contact_sheet(model: str, pictures: NDArray[np.uint8], prompts: list[str]) -> Image.Image:
    """One row for each picture and prompt: the picture, then its translations by rising strength."""
    columns = [pictures] + [translate(model, pictures, prompts, s) for s in SHOWN_STRENGTHS]
    rows = [np.hstack([_small(column[i]) for column in columns]) for i in range(len(pictures))]
    return Image.fromarray(np.vstack(rows))


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = (SHOWN_SIDE, SHOWN_SIDE)
    return np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.LANCZOS))


def write_card(model: str, photos: Path, run: Path, show: Path, out: Path) -> list[Point]:
    """Write pipeline, log, recipe, contact sheet, curve and `README.md` to `out`; returns the curve."""
    shutil.copytree(run / "pipeline", out, dirs_exist_ok=True)
    for name in ("log.jsonl", "recipe.json"):
        shutil.copyfile(run / name, out / name)
    points = measured(photos, out)
    names = sorted(p.name for p in show.iterdir())[:: max(1, len(list(show.iterdir())) // 4)][:4]
    shown = np.repeat(photo_sets.load(show, names), 2, axis=0)
    subjects = sorted(set(captions.read(photos).values()))
    prompts = [captions.invented(subjects, i, seed=7) for i in range(len(shown))]
    contact_sheet(str(out), shown, prompts).save(out / "translations.jpg", quality=85)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    facts: dict[str, Any] = {
        "name": model,
        "points": points,
        "prompts": prompts,
        "pictures": names,
        "shown_strengths": SHOWN_STRENGTHS,
        "queries": QUERIES,
        "steps": STEPS,
        "pool": sum(1 for _ in photos.glob("*.jpg")),
        "recipe": json.loads((run / "recipe.json").read_text()),
        "log": [row for row in log if row["step"] % 1000 == 0 or row is log[-1]],
        "trained_on": len(photo_sets.split(photos).train),
        "bytes": {p: _bytes(out / p) for p in ("unet", "vae", "text_encoder")},
        "revision": loading.hash_weights(out),
        "vae_command": VAE_COMMANDS.get(model),
        "vae_psnr": vae_quality(out / "vae", photos),
        "vae": json.loads((out / "vae" / "config.json").read_text()),
    }
    loader = Environment(loader=PackageLoader("factory"), undefined=StrictUndefined, trim_blocks=True)
    (out / "README.md").write_text(loader.get_template("diffusion_card.md.j2").render(facts))
    return points


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def main() -> None:
    """Measure and write from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    for name in ("photos", "run", "show", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    write_card(args.model, args.photos, args.run, args.show, args.out)


if __name__ == "__main__":
    main()
