"""The two diffusion models as they are shipped: whole, small, trained, and true to their cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

import id2core
from factory import vae as training
from id2core.encoders.registry import load_encoder
from id2core.translation import loading, models
from tests.drawing import scene

DATA = Path(id2core.__file__).parent / "data"
MEGABYTE = 1_000_000
both = pytest.mark.parametrize("name", ["mini-a", "mini-b"])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def kept(name: str, file: str) -> Any:
    return json.loads((DATA / name / file).read_text())


def test_everything_that_is_shipped_is_small() -> None:
    assert size_of(DATA) < 60 * MEGABYTE
    for name in ("mini-a", "mini-b"):
        assert sum(p.stat().st_size for p in (DATA / name).rglob("*.safetensors")) <= 20 * MEGABYTE


@both
def test_the_directory_loads_as_it_is_and_keeps_more_of_the_picture_at_low_strength(name: str) -> None:
    pipe = AutoPipelineForImage2Image.from_pretrained(DATA / name, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    with Image.open(sorted((DATA / "demo/references").iterdir())[0]) as image:
        picture = image.convert("RGB").resize((256, 256))
    made = {
        strength: pipe(
            "a dark mostly blue photo of a canoe",
            image=picture,
            strength=strength,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for strength in (0.2, 0.9)
    }
    near, far = (training.psnr(np.asarray(picture)[None], np.asarray(m)[None])[0] for m in made.values())
    assert near > 18 and near > far + 4


@pytest.mark.slow
@both
def test_the_prompt_has_its_say(name: str) -> None:
    translator = loading.load(models.find(name, strength=1.0, steps=10), dtype="float32")
    pictures = [scene(i, (256, 256)) for i in range(2)]

    def redness(prompt: str) -> np.ndarray:
        made = translator.translate(pictures, [prompt] * 2, list(range(2)))
        return np.array([np.asarray(p).reshape(-1, 3).mean(0) @ [1, 0, -1] for p in made])

    shift = redness("a bright mostly red photo") - redness("a dark mostly blue photo")
    assert shift.mean() > 3 and (shift > 0).all()


def test_mini_a_stands_on_the_mini_encoder_and_mini_b_on_another() -> None:
    hashes = [load_encoder(str(DATA / n)).encoder_id.rsplit("-", 1)[-1] for n in ("mini", "mini-a", "mini-b")]
    assert hashes[0] == hashes[1] != hashes[2]
    configs = [kept(name, "vae/config.json")["block_out_channels"] for name in ("mini-a", "mini-b")]
    assert configs[0] != configs[1]
    predicted = [
        kept(name, "scheduler/scheduler_config.json")["prediction_type"] for name in ("mini-a", "mini-b")
    ]
    assert predicted == ["epsilon", "v_prediction"]


@both
def test_the_kept_curves_are_those_of_a_trained_model(name: str) -> None:
    log = [json.loads(line) for line in (DATA / name / "log.jsonl").read_text().splitlines()]
    errors = [row["held_out_error"] for row in log]
    assert errors[-1] <= 1.1 * log[-1]["train_error"]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]
    strengths = kept(name, "strengths.json")
    assert strengths["revision"] == loading.hash_weights(DATA / name)
    accuracy = {p["strength"]: p["acc"] for p in strengths["points"]}
    assert len(accuracy) == 10 and accuracy[0.3] > 0.9 and accuracy[0.9] < 0.6
    assert all(
        later <= earlier + 0.02
        for earlier, later in zip(accuracy.values(), list(accuracy.values())[1:], strict=False)
    )
