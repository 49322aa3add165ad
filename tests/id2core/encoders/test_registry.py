from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from id2core.encoders import images
from id2core.encoders.autoencoders import _mode
from id2core.encoders.embed_job import COMPILED_FROM, EmbedJob
from id2core.encoders.preprocess import Preprocess
from id2core.encoders.registry import identify, load_encoder
from id2core.environment import best_memory_format
from id2core.errors import EncoderError
from id2core.transforms.linear import Transform
from tests.drawing import scene

FLAT = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 4),
    "norm_num_groups": 2,
}
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
CLASSES = {
    "AutoencoderKL": ({**FLAT, "latent_channels": 4}, 4 * 128 * 128),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (4, 4, 4, 4),
            "decoder_block_out_channels": (4, 4, 4, 4),
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        },
        4 * 32 * 32,
    ),
    "AutoencoderDC": (
        {
            "latent_channels": 8,
            "attention_head_dim": 4,
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": (4, 8),
            "decoder_block_out_channels": (4, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
        },
        8 * 128 * 128,
    ),
    "AutoencoderKLFlux2": ({**FLAT, "latent_channels": 4}, 4 * 128 * 128),
    "AutoencoderKLWan": (WAN, 4 * 32 * 32),
    "AutoencoderKLCogVideoX": (
        {
            "block_out_channels": (4, 4, 4, 4),
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            "norm_num_groups": 2,
            "layers_per_block": 1,
            "latent_channels": 4,
        },
        4 * 32 * 32,
    ),
}


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 256, 3), np.uint8)


@pytest.mark.parametrize("name", CLASSES)
def test_any_diffusers_autoencoder_loads_from_its_directory(name: str, tmp_path: Path) -> None:
    config, size = CLASSES[name]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config)
    model.save_pretrained(tmp_path / "vae")
    encoder = load_encoder(str(tmp_path), dtype="float32", batch_size=2)  # a pipeline: its VAE is in vae/
    assert encoder.latent_size == size
    assert encoder.encoder_id == f"{tmp_path.name}-{encoder.encoder_id[-12:]}"
    x = torch.from_numpy(noise(1)).permute(0, 3, 1, 2).float() / 127.5 - 1
    video = "Wan" in name or "Video" in name
    with torch.no_grad():
        out = model.eval().encode(x[:, :, None] if video else x)
    expected = _mode(out).flatten(1).numpy()
    np.testing.assert_allclose(encoder.encode(noise(1)), expected, atol=2e-3, rtol=2e-3)


def test_a_latent_does_not_depend_on_its_neighbours(tiny_vae: str) -> None:
    encoder = load_encoder(tiny_vae, batch_size=4)
    pixels = noise(7)
    together = encoder.encode(pixels)
    alone = np.concatenate([encoder.encode(pixels[i : i + 1]) for i in range(7)])
    assert np.array_equal(together, alone)
    assert encoder.encode(pixels[:0]).shape == (0, encoder.latent_size)


@pytest.mark.parametrize(
    ("device", "layout"), [("cpu", torch.channels_last), ("cuda", torch.contiguous_format)]
)
def test_the_layout_is_the_fastest_of_the_device(device: str, layout: torch.memory_format) -> None:
    assert best_memory_format(torch.device(device)) == layout


def test_the_id_follows_the_weights_of_the_encoder_alone(tiny_vae: str, tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(tiny_vae)
    original = load_encoder(tiny_vae).encoder_id
    for change, same in (("decoder", True), ("encoder", False)):
        with torch.no_grad():
            getattr(vae, change).conv_in.weight.add_(1)
        vae.save_pretrained(tmp_path / change / "tiny")
        assert (load_encoder(str(tmp_path / change / "tiny")).encoder_id == original) is same


def test_float16_weights_have_the_id_of_their_float32_copy(tiny_vae: str, tmp_path: Path) -> None:
    half = diffusers.AutoencoderKL.from_pretrained(tiny_vae).half()
    half.save_pretrained(tmp_path / "half" / "tiny")
    half.float().save_pretrained(tmp_path / "single" / "tiny")
    ids = {load_encoder(str(tmp_path / kind / "tiny")).encoder_id for kind in ("half", "single")}
    assert len(ids) == 1


def test_torchscript_runs_with_its_own_size_and_scaling(tmp_path: Path) -> None:
    path = tmp_path / "copy.torchscript.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(32))).save(str(path))
    path.with_suffix(".json").write_text('{"size": 64, "mean": [0.5, 0, 0], "std": [0.5, 1, 1]}')
    encoder = load_encoder(str(path))
    pixels = np.full((1, 64, 64, 3), 255, np.uint8)
    assert encoder.encode(pixels).tolist() == [[1.0] * 12]
    assert encoder.preprocess.preprocess_id != Preprocess(64).preprocess_id
    with pytest.raises(ValueError, match="64"):
        encoder.encode(noise(1))


def test_a_copy_detection_model_gives_a_vector_of_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1))
    model = torch.nn.Sequential(trunk, torch.nn.Flatten(), torch.nn.Linear(8, 5), torch.nn.LayerNorm(5))
    path = tmp_path / "sscd.torchscript.pt"
    torch.jit.script(model).save(str(path))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    path.with_suffix(".json").write_text(json.dumps({"size": 320, "mean": mean, "std": std}))
    encoder = load_encoder(str(path), batch_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 320, 320, 3), np.uint8)
    latents = encoder.encode(pixels)
    assert latents.dtype == np.float16 and latents.shape == (3, 5) == (3, encoder.latent_size)
    x = (torch.from_numpy(pixels) / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        np.testing.assert_allclose(latents, model(x.permute(0, 3, 1, 2)), atol=2e-3)
    assert encoder.encoder_id.startswith("sscd.torchscript-")


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    diffusers.UNet2DModel(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).save_pretrained(tmp_path / "unet")
    (tmp_path / "weights.pt").write_bytes(b"no zip")
    for spec, hint in {
        "no-such-name": "short name",
        str(tmp_path / "unet"): "not an autoencoder",
        str(tmp_path / "weights.pt"): "TorchScript",
        "sd2": "local directory",
        "stabilityai/stable-diffusion-2:vae": "withdrawn.*sd2-community",
        "someone/some-vae": "local directory",
    }.items():
        with pytest.raises(EncoderError, match=hint):
            load_encoder(spec)


def test_scaled_decoding_of_large_jpegs_keeps_the_descriptor() -> None:
    encoder = load_encoder(dtype="float32")
    file = io.BytesIO()
    pixels, plain = [], []
    for seed in range(4):
        file.seek(0)
        scene(seed, (2400, 1800)).save(file, "JPEG", quality=90)
        decoded = images.decode(file.getvalue())
        assert isinstance(decoded, images.Decoded)
        pixels.append(decoded.pixels)
        with Image.open(file) as image:
            plain.append(np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)))
    ours, theirs = (Transform().apply(encoder.encode(np.stack(p))) for p in (pixels, plain))
    assert (ours * theirs).sum(axis=1).min() > 0.999


class _OneRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:1]


class _Transposed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)).T


class _NotFinite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) / 0


class _NoNumbers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :0]


class _WholeNumbers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).long()


class _Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class _Fails(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 7)


@pytest.mark.parametrize(
    "network", [_OneRow, _Transposed, _NotFinite, _NoNumbers, _WholeNumbers, _Pair, _Fails]
)
def test_an_encoder_whose_output_is_no_latent_of_each_picture_is_refused_by_name(
    network: type[torch.nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "odd.pt"
    torch.jit.script(network()).save(str(path))
    with pytest.raises(EncoderError, match=r"^odd-"):
        identify(str(path))


def overflowing_vae(folder: Path, source: str, upcast: bool | None) -> str:
    """An autoencoder whose first layer gives more than float16 holds; the next one normalizes it."""
    vae = diffusers.AutoencoderKL.from_pretrained(source)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1e6)
    vae.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("force_upcast")
    config |= {} if upcast is None else {"force_upcast": upcast}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("upcast", [True, False, None])
def test_pictures_that_overflow_float16_are_encoded_in_float32(
    upcast: bool | None, tiny_vae: str, tmp_path: Path
) -> None:
    folder = overflowing_vae(tmp_path / "loud", tiny_vae, upcast)
    half = load_encoder(folder, "cpu", "float16", batch_size=2)
    assert half.dtype == (torch.float32 if upcast else torch.float16)
    whole = load_encoder(folder, "cpu", "float32", batch_size=2)
    assert np.isfinite(whole.encode(noise(2))).all()
    assert np.array_equal(half.encode(noise(2)), whole.encode(noise(2)))


def test_a_run_compiles_from_some_pictures_on_whatever_is_left_of_it() -> None:
    job = EmbedJob("photos", "out")
    assert job.settled(COMPILED_FROM - 1).compile == "off"
    assert job.settled(COMPILED_FROM).compile == "on"
    for how in ("off", "on", "tuned"):
        asked = replace(job, compile=how)
        assert asked.settled(1) == asked.settled(10 * COMPILED_FROM) == asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles")
@pytest.mark.parametrize("how", ["on", "tuned"])
def test_on_a_cpu_nothing_is_compiled(how: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    plain, asked = (load_encoder("mini", "cpu", "float32", 2, way) for way in ("off", how))
    assert np.array_equal(plain.encode(pixels), asked.encode(pixels))
