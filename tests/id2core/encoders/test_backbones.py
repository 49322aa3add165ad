from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from id2core.encoders import backbones
from id2core.encoders.hub import BACKBONES, HUB
from id2core.encoders.preprocess import Preprocess
from id2core.encoders.registry import load_encoder
from id2core.errors import EncoderError
from id2core.translation import models
from tests.tiny_backbones import (
    FAMILIES,
    IMAGENET,
    SIDE,
    SMALL,
    pictures,
    saved,
    scaled,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_gives_one_vector_per_picture(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "tiny")
    encoder = load_encoder(str(folder), dtype="float32", batch_size=3)
    latents = encoder.encode(pictures(5))
    assert latents.dtype == np.float16 and latents.shape == (5, FAMILIES[family][1]) == (
        5,
        encoder.latent_size,
    )
    assert len(np.unique(latents, axis=0)) == 5 and np.isfinite(latents).all()
    alone = np.concatenate([encoder.encode(pictures(5)[i : i + 1]) for i in range(5)])
    assert np.array_equal(latents, alone)
    again = load_encoder(str(folder), dtype="float32", batch_size=3)
    assert again.encoder_id == encoder.encoder_id and encoder.encoder_id.startswith("tiny-")
    assert np.array_equal(again.encode(pictures(5)), latents)
    assert encoder.preprocess == Preprocess(SIDE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_embedding_is_the_one_that_transformers_gives(tmp_path: Path) -> None:
    x = scaled(pictures(2))
    clip = transformers.CLIPModel.from_pretrained(saved("clip", tmp_path / "clip")).eval()
    vit = transformers.ViTForImageClassification.from_pretrained(saved("vit", tmp_path / "vit")).eval()
    with torch.no_grad():
        expected = {
            "clip": clip.get_image_features(pixel_values=x).pooler_output,
            "vit": vit.vit(pixel_values=x).last_hidden_state[:, 0],
        }
    for name, embedding in expected.items():
        latents = load_encoder(str(tmp_path / name), dtype="float32").encode(pictures(2))
        np.testing.assert_allclose(latents, embedding, atol=2e-3)


@pytest.mark.parametrize("family", ["vit", "vit_mae", "clip", "blip"])
def test_a_saved_backbone_loads_as_the_same_encoder(family: str, tmp_path: Path) -> None:
    original = saved(family, tmp_path / "tiny")
    backbones.load(str(original)).save(tmp_path / "copy" / "tiny")
    first, second = (load_encoder(str(f), dtype="float32") for f in (original, tmp_path / "copy" / "tiny"))
    assert second.encoder_id == first.encoder_id and second.preprocess == first.preprocess
    assert np.array_equal(second.encode(pictures(2)), first.encode(pictures(2)))


def test_the_id_is_of_the_weights_that_are_used(tmp_path: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(saved("clip", tmp_path / "clip"))
    original = load_encoder(str(tmp_path / "clip")).encoder_id
    for part, same in (("text_projection", True), ("visual_projection", False)):
        with torch.no_grad():
            getattr(model, part).weight.add_(1)
        saved("clip", tmp_path / part / "clip")
        model.save_pretrained(tmp_path / part / "clip")
        assert (load_encoder(str(tmp_path / part / "clip")).encoder_id == original) is same


def test_a_bin_file_is_read_as_tensors_and_never_unpickled(tmp_path: Path) -> None:
    folder = saved("resnet", tmp_path / "tiny")
    expected = load_encoder(str(folder)).encoder_id
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load_encoder(str(folder)).encoder_id == expected
    torch.save(weights | {"harm": Path()}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"[Ww]eights"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "asked, side, mean, std",
    [
        ({"size": 48, "crop_size": 32, "do_center_crop": True}, 32, 0.5, 0.25),
        ({"size": 48, "crop_size": 32, "do_center_crop": False}, 48, 0.5, 0.25),
        ({"size": {"shortest_edge": 40}, "do_normalize": False}, 40, 0.0, 1.0),
        ({"size": {"shortest_edge": 40}, "rescale_factor": 2 / 255}, 40, 0.25, 0.125),
        ({"size": {"shortest_edge": 40}, "do_rescale": False}, 40, 0.5 / 255, 0.25 / 255),
    ],
)
def test_size_and_scaling_are_those_of_the_image_processor(
    asked: dict, side: int, mean: float, std: float, tmp_path: Path
) -> None:
    plain = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    facts = plain | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3} | asked
    encoder = load_encoder(str(saved("resnet", tmp_path, facts)), dtype="float32")
    assert encoder.preprocess.size == side
    np.testing.assert_allclose(encoder.preprocess.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(encoder.preprocess.std, std, rtol=1e-6)
    assert encoder.encode(pictures(1, side)).shape == (1, 8)


def test_what_is_no_vision_backbone_says_what_to_do(tmp_path: Path) -> None:
    bert = transformers.BertConfig(**SMALL, vocab_size=10)
    transformers.BertModel(bert).save_pretrained(tmp_path / "text")
    saved("vit", tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    wide = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 64}} | IMAGENET
    saved("vit", tmp_path / "wide", wide)
    cut = saved("vit", tmp_path / "cut")
    model = transformers.ViTModel.from_pretrained(cut)
    weights = {k: v for k, v in model.state_dict().items() if "layers.1" not in k and "layer.1" not in k}
    model.save_pretrained(cut, state_dict=weights)
    unknown = saved("vit", tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text()) | {"model_type": "no-such-type"}
    (unknown / "config.json").write_text(json.dumps(config))
    for name, hint in {
        "text": "bert, which takes no pictures",
        "bare": "preprocessor_config.json",
        "wide": "square",
        "cut": "lacks weights",
        "unknown": "no-such-type",
    }.items():
        with pytest.raises(EncoderError, match=hint):
            load_encoder(str(tmp_path / name))
    with pytest.raises(EncoderError, match="local directory"):
        backbones.load("someone/some-vit")


def test_short_names_are_known_and_shared() -> None:
    with pytest.raises(EncoderError, match="swin-b"):
        load_encoder("no-such-name")
    assert not set(BACKBONES) & set(HUB)
    for name, (source, _, revision) in HUB.items():
        assert (models.TABLE[name].source, models.TABLE[name].revision) == (source, revision)
