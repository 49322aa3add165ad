from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import id2core
from factory import pca_start, photo_sets, vae, vae_card
from id2core.encoders.autoencoders import load_autoencoder
from id2core.encoders.registry import load_encoder
from id2core.errors import TrainError
from id2core.experiments import photo_folders

CONFIG = vae.VaeConfig(
    channels=(8, 16, 32, 48), steps=4, crop=64, batch=2, fit_crops=8, full_size_from=0.75, warmup=1
)


def test_the_split_is_fixed_disjoint_and_spares_the_demo(photo_folder: Path) -> None:
    split = photo_sets.split(photo_folder)
    assert split == photo_sets.split(photo_folder) and len(split.held_out) == photo_folders.HELD_OUT
    assert not set(split.train) & set(split.held_out)
    assert not any(name.startswith(photo_sets.NEVER_TRAINED) for name in split.train)
    assert any(name.startswith(photo_sets.NEVER_TRAINED) for name in split.held_out)


@pytest.mark.slow
def test_training_starts_where_pca_ends(photo_folder: Path) -> None:
    images = photo_sets.load(photo_folder, photo_sets.split(photo_folder).held_out[:12])
    model = vae.build(CONFIG)
    from_noise = vae.psnr(images, vae.reconstruct(model, images)).mean()
    pca_start.fit_linear_path(model, photo_sets.to_tensor(images)[:, :, :64, :64])
    started = vae.psnr(images, vae.reconstruct(model, images)).mean()
    pca = vae.psnr(images, vae_card.pca_reconstruct(images, images, 4)).mean()
    assert started > from_noise + 5 and started > pca - 1


@pytest.mark.slow
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(photo_folder: Path, tmp_path: Path) -> None:
    class InterruptedRunError(Exception):
        pass

    class Dies(vae.Trainer):
        def _one_step(self) -> float:
            if self.step == 2:
                raise InterruptedRunError
            return super()._one_step()

    whole = vae.Trainer(CONFIG, photo_folder, tmp_path / "whole", checked=2)
    whole.run(log_every=4, checkpoint_every=1)
    with pytest.raises(InterruptedRunError):
        Dies(CONFIG, photo_folder, tmp_path / "parts", checked=2).run(log_every=4, checkpoint_every=1)
    again = vae.Trainer(CONFIG, photo_folder, tmp_path / "parts", checked=2)
    again.run(log_every=4, checkpoint_every=1)
    for name, value in whole.vae.state_dict().items():
        assert torch.equal(value, again.vae.state_dict()[name]), name
    with pytest.raises(TrainError, match="another recipe"):
        vae.Trainer(CONFIG.replace(lr=1.0), photo_folder, tmp_path / "parts", checked=2).resume()


def test_the_shipped_vae_is_what_its_card_says() -> None:
    data = Path(id2core.__file__).parent / "data" / "mini"
    card = (data / "README.md").read_text()
    assert (data / "diffusion_pytorch_model.safetensors").stat().st_size <= 6_000_000
    assert load_encoder().encoder_id.removeprefix("mini-") in card
    assert load_encoder().latent_size == 4 * 32 * 32
    log = [json.loads(line) for line in (data / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == vae.VaeConfig().steps and log[-1]["psnr"] > log[0]["psnr"]


@pytest.mark.slow  # the weights change rarely
def test_the_shipped_vae_reconstructs_pictures_it_never_saw() -> None:
    demo = Path(id2core.__file__).parent / "data" / "demo" / "references"
    images = photo_sets.load(demo, sorted(p.name for p in demo.iterdir())[::10])
    model = load_autoencoder(str(demo.parents[1] / "mini"))
    ours = vae.psnr(images, vae.reconstruct(model, images)).mean()
    pca = vae.psnr(images, vae_card.pca_reconstruct(images, images, 4)).mean()
    assert ours > 24 and ours > pca + 0.5
    assert np.isfinite(list(vae_card.latent_facts(model, images[:4]).values())).all()
