"""Small random vision backbones of each family, saved as the hub publishes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIDE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VIT: dict[str, Any] = SMALL | {"image_size": SIDE, "patch_size": 8}
WORDS: dict[str, Any] = SMALL | {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS: dict[str, Any] = {"hidden_sizes": [4, 8], "depths": [1, 1]}
PAIR: dict[str, Any] = {"text_config": WORDS | {"sep_token_id": 2}, "vision_config": VIT}
# Configuration and how many numbers an embedding has.
FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "swin": (
        lambda: transformers.SwinConfig(
            image_size=SIDE, patch_size=4, window_size=4, embed_dim=4, depths=[1, 1], num_heads=[1, 2]
        ),
        8,
    ),
    "resnet": (
        lambda: transformers.ResNetConfig(embedding_size=4, layer_type="basic", **LAYERS),
        8,
    ),
    "convnext": (lambda: transformers.ConvNextConfig(num_stages=2, **LAYERS), 8),
    "efficientnet": (
        lambda: transformers.EfficientNetConfig(
            image_size=SIDE,
            width_coefficient=0.1,
            depth_coefficient=0.1,
            hidden_dim=128,
            batch_norm_eps=1e-9,
        ),
        128,
    ),
    "vit": (lambda: transformers.ViTConfig(**VIT), 8),
    "dinov2": (lambda: transformers.Dinov2Config(**VIT), 8),
    "vit_mae": (
        lambda: transformers.ViTMAEConfig(
            **VIT,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=8,
        ),
        8,
    ),
    "clip": (lambda: transformers.CLIPConfig(**PAIR, projection_dim=6), 6),
    "blip": (lambda: transformers.BlipConfig(**PAIR), 8),
    "siglip": (lambda: transformers.SiglipConfig(**PAIR), 8),
}
PUBLISHED = {
    "vit": "ViTForImageClassification",
    "vit_mae": "ViTMAEForPreTraining",
    "blip": "BlipForImageTextRetrieval",
    "swin": "SwinForImageClassification",
    "resnet": "ResNetForImageClassification",
    "convnext": "ConvNextForImageClassification",
    "efficientnet": "EfficientNetForImageClassification",
}


def pictures(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def saved(family: str, folder: Path, processor: dict[str, Any] | None = None) -> Path:
    """A random model as the hub has one of this family: the class that was published, and a processor."""
    torch.manual_seed(0)
    config = FAMILIES[family][0]()
    name = PUBLISHED.get(family)
    model = getattr(transformers, name)(config) if name else transformers.AutoModel.from_config(config)
    # With their own small start, the deeper ones give every picture the same vector.
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.normal_(std=1 / values[0].numel() ** 0.5)
        if family == "efficientnet":  # its batch norms must have seen pictures
            for module in model.modules():
                module.momentum = 1.0
            model.train()(pixel_values=scaled(pictures(5)))
    model.save_pretrained(folder)
    facts = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}} | IMAGENET
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or facts))
    return folder


def scaled(pixels: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(IMAGENET[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
