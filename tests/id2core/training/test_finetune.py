from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from id2core.encoders import images
from id2core.encoders.registry import load_encoder
from id2core.errors import FinetuneError, TrainError
from id2core.training import finetune
from id2core.training.config import FinetuneConfig
from tests.drawing import scene
from tests.tiny_backbones import saved

ORIGINS = 4
SMALL = {"batch": 8, "per_class": 4, "warmup": 2, "lr": 3e-3}


def jpeg(seed: int, blur: int) -> bytes:
    file = io.BytesIO()
    scene(seed, (64 - 2 * blur, 48 + blur)).save(file, "JPEG", quality=90 - 5 * blur)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[str | Path | bytes, str]]:
    """Bytes and files of a few origins, each in four forms, in mixed order."""
    labeled: list[tuple[str | Path | bytes, str]] = []
    for form in range(4):
        for seed in range(ORIGINS):
            data = jpeg(seed, form)
            path = tmp_path / f"{seed}-{form}.jpg"
            path.write_bytes(data)
            labeled.append((path if form % 2 else data, f"origin-{seed}"))
    return labeled


def logged(name: str, out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def decoded(side: int) -> np.ndarray:
    decoded = [images.decode(jpeg(seed, form), side) for seed in range(ORIGINS) for form in (0, 3)]
    return np.stack([picture.pixels for picture in decoded if isinstance(picture, images.Decoded)])


@pytest.mark.parametrize("loss", ["cosface", "softmax", "circle"])
def test_training_lowers_the_loss_and_saves_an_encoder(loss: str, pictures: list, tmp_path: Path) -> None:
    start = saved("vit", tmp_path / "tiny")
    config = FinetuneConfig(backbone=str(start), loss=loss, **SMALL, steps=24)
    seen: list[tuple] = []
    out = tmp_path / "run"
    folder = finetune.finetune(
        pictures, config, out, device="cpu", checkpoint_every=4, progress=lambda *facts: seen.append(facts)
    )
    values = logged("loss", out)
    assert len(values) == 6 and values[-1] < 0.8 * values[0]
    assert seen[-1] == ("training", 24, 24)
    assert folder == out / f"tiny-{loss}"
    before, after = (load_encoder(str(f), dtype="float32", batch_size=8) for f in (start, folder))
    assert after.encoder_id.startswith(f"tiny-{loss}-") and after.preprocess == before.preprocess
    pixels = decoded(32)
    assert after.latent_size == before.latent_size
    assert not np.allclose(after.encode(pixels), before.encode(pixels), atol=1e-2)


def test_an_interrupted_run_ends_with_the_same_weights(pictures: list, tmp_path: Path) -> None:
    config = FinetuneConfig(backbone=str(saved("vit", tmp_path / "tiny")), **SMALL, steps=6)
    whole = finetune.finetune(pictures, config, tmp_path / "whole", device="cpu", checkpoint_every=2)

    def stop(stage: str, completed: int, total: int) -> None:
        if completed == 5:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(pictures, config, again, device="cpu", checkpoint_every=2, progress=stop)
    first = logged("seconds", again)[-1]
    resumed = finetune.finetune(
        pictures, config, again, device="cpu", checkpoint_every=2, progress=lambda *facts: time.sleep(0.3)
    )
    seconds = logged("seconds", again)
    assert len(seconds) == 3 and seconds[1] == first and seconds[2] >= first + 0.59
    facts = json.loads((resumed / finetune.REPORT).read_text())
    assert facts["seconds"] == pytest.approx(seconds[-1], abs=0.051)
    assert load_encoder(str(resumed)).encoder_id == load_encoder(str(whole)).encoder_id
    with pytest.raises(TrainError, match="another recipe"):
        finetune.finetune(pictures[1:], config, again, device="cpu")


def test_what_cannot_be_trained_on_says_what_to_do(pictures: list, tmp_path: Path) -> None:
    start = str(saved("vit", tmp_path / "tiny"))
    broken = [(b"no picture", origin) for _, origin in pictures]
    cases: list[tuple[list, dict[str, Any], str]] = [
        (pictures, {"loss": "triplet"}, "choose cosface"),
        (pictures, {"batch": 6, "per_class": 4}, "2 or more"),
        (pictures, {"steps": 0}, "steps"),
        (pictures, {"steps": 500}, "warm-up of 1000 in 500 steps.*would be 25"),
        (pictures[:1], {**SMALL, "steps": 2}, "1 origins"),
        (broken, {**SMALL, "steps": 2}, "not_an_image.*leave it out"),
    ]
    for data, given, hint in cases:
        with pytest.raises(FinetuneError, match=hint):
            finetune.finetune(data, FinetuneConfig(backbone=start, **given), tmp_path / "out", device="cpu")
