from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoPipelineForImage2Image
from PIL import Image

from factory import diffusion, photo_sets, tokenizer
from id2core.encoders.autoencoders import load_autoencoder
from id2core.errors import TrainError
from id2core.experiments import captions

CONFIG = diffusion.DiffusionConfig(
    widths=(8, 16, 16),
    groups=4,
    heads=2,
    text_width=16,
    text_layers=1,
    variants=3,
    steps=4,
    batch=4,
    warmup=1,
)


def run(folder: Path, vae: str, out: Path, recipe: diffusion.DiffusionConfig = CONFIG) -> diffusion.Trainer:
    loaded: AutoencoderKL = load_autoencoder(vae).float()
    return diffusion.Trainer(recipe, folder, loaded, out, checked=6)


def weights(pipeline: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{part}.{k}": v
        for part in ("unet", "text_encoder")
        for file in (pipeline / part).glob("*.safetensors")
        for k, v in load_file(file).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_training_killed_and_resumed_gives_the_weights_of_an_undisturbed_one(
    photo_folder: Path, tiny_vae: str, tmp_path: Path, prediction: str
) -> None:
    class KilledError(Exception):
        pass

    class Dies(diffusion.Trainer):
        def loss(self) -> torch.Tensor:
            if self.step == 2:
                raise KilledError
            return super().loss()

    recipe = CONFIG.replace(prediction=prediction)
    run(photo_folder, tiny_vae, tmp_path / "whole", recipe).run(checkpoint_every=1)
    vae = load_autoencoder(tiny_vae).float()
    with pytest.raises(KilledError):
        Dies(recipe, photo_folder, vae, tmp_path / "parts", checked=6).run(checkpoint_every=1)
    run(photo_folder, tiny_vae, tmp_path / "parts", recipe).run(checkpoint_every=1)
    whole, parts = (weights(tmp_path / name / "pipeline") for name in ("whole", "parts"))
    assert len(whole) > 50 and whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert (
        log[0]["step"] == 0 and log[-1]["step"] == 4 and {"train_error", "held_out_error"} <= log[-1].keys()
    )
    with pytest.raises(TrainError, match="another recipe"):
        run(photo_folder, tiny_vae, tmp_path / "parts", recipe.replace(lr=1.0)).resume()


@pytest.mark.slow
def test_training_lowers_the_noise_error_and_the_pipeline_loads_as_it_is(
    photo_folder: Path, tiny_vae: str, tmp_path: Path
) -> None:
    trainer = run(photo_folder, tiny_vae, tmp_path, CONFIG.replace(steps=60, batch=8, ema=0.9, lr=3e-3))
    before = trainer.measure()
    trainer.run(log_every=60, checkpoint_every=60)
    after = trainer.measure()
    assert after["train_error"] < 0.9 * before["train_error"]
    assert after["held_out_error"] < 0.9 * before["held_out_error"]

    assert not any(tiny_vae in path.read_text() for path in (tmp_path / "pipeline").rglob("*.json"))
    pipe = AutoPipelineForImage2Image.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.scaling_factor == pytest.approx(trainer.scale)
    latents = trainer.train.latents[:1].astype(np.float32) * pipe.vae.config.scaling_factor
    assert latents.std() == pytest.approx(1, abs=0.2)
    pipe.to(torch.float32)
    picture = Image.new("RGB", (64, 64), "teal")
    made = pipe("a dark mostly blue photo", image=picture, strength=0.5, num_inference_steps=4).images[0]
    assert made.size == picture.size


@pytest.mark.parametrize(
    ("color", "words"),
    [
        ((250, 250, 250), "bright grey"),
        ((10, 10, 10), "dark grey"),
        ((20, 40, 160), "dark mostly blue"),
        ((200, 30, 40), "mostly red"),
        ((60, 180, 60), "mostly green"),
    ],
)
def test_a_picture_is_described_by_its_light_and_color(color: tuple[int, int, int], words: str) -> None:
    assert captions.describe(np.full((64, 64, 3), color, np.uint8)) == words


def test_a_prompt_names_look_and_subject_in_many_wordings() -> None:
    made = {captions.prompt("mostly blue", "a canoe", np.random.default_rng(i)) for i in range(60)}
    assert len(made) > 8
    assert any("mostly blue" in p and p.endswith("of a canoe") for p in made)
    assert any("mostly blue" not in p for p in made) and any("canoe" not in p for p in made)
    assert not any("  " in p for p in made)


def test_the_tokenizer_reads_any_text_and_survives_saving(tmp_path: Path) -> None:
    made = tokenizer.train(captions.corpus(["a canoe", "a t shirt"]), 700, 12)
    assert len(made(["a dark photo of a canoe"])["input_ids"][0]) <= 10
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    for text in ("a bright photo of a t shirt", "Ünïcode 雨 & emoji 🦆", ""):
        ids = again(text)["input_ids"]
        assert ids == made(text)["input_ids"]
        assert again.unk_token_id not in ids[1:-1]
        assert again.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
    assert made.model_max_length == again.model_max_length == 12


def test_variants_differ_and_are_the_same_every_time() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (photo_sets.SIZE, photo_sets.SIZE, 3), np.uint8)
    from factory.diffusion_data import variant

    def made(number: int) -> np.ndarray:
        return variant(photo, number, np.random.default_rng(number))

    assert np.array_equal(made(0), photo) and np.array_equal(made(1), photo[:, ::-1])
    assert not np.array_equal(made(2), photo) and not np.array_equal(made(2), made(3))
    assert np.array_equal(made(3), made(3))
