"""Frozen image encoders behind one call: autoencoders, vision backbones, TorchScript files, a hash.

`load_encoder(name)` takes, in this order: `mini`, `pdq` (see `pdq`) or a short name of `hub.HUB` or
`hub.BACKBONES`; a local directory that diffusers saved (an autoencoder, or a pipeline with a `vae/`)
or that transformers saved (a vision backbone, see `backbones`); a local TorchScript file; a hub id
`owner/name[:subfolder][@revision]`. What a directory or repository holds is told by its `config.json`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from id2core.encoders.autoencoders import encoder_of_autoencoder
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI, PDQ, Place, is_short_name, locate, read_config
from id2core.encoders.pdq import PdqEncoder
from id2core.encoders.torchscript import encoder_of_torchscript
from id2core.environment import best_device, best_dtype


def load_encoder(
    spec: str = MINI, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> Encoder:
    """Load an encoder by short name, local directory, TorchScript file or hub id.

    Args:
        spec: see the module's docstring.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (see `best_dtype`), `float32`, `bfloat16` or `float16`.
        batch_size: pictures in one call of the network; by default 64 on a GPU, 16 on a CPU.

    Raises:
        EncoderError: nothing of that name can be loaded.
    """
    where = torch.device(best_device() if device == "auto" else device)
    kind = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
    if spec == MINI:
        with resources.as_file(resources.files("id2core") / "data" / MINI) as folder:
            return encoder_of_autoencoder(Place(MINI, str(folder)), where, kind, batch_size)
    if spec == PDQ:
        return PdqEncoder(batch_size)
    if Path(spec).is_file() and not is_short_name(spec):
        return encoder_of_torchscript(Path(spec), where, kind, batch_size)
    place = locate(spec)
    make = _from_transformers if _is_of_transformers(place) else encoder_of_autoencoder
    return make(place, where, kind, batch_size)


def _is_of_transformers(place: Place) -> bool:
    """Whether `config.json` is one of transformers, not of diffusers; a pipeline has none at its root."""
    try:
        config = read_config(place.source, place.subfolder, place.revision)
    except (OSError, ValueError):
        return False
    return "model_type" in config and "_class_name" not in config


def _from_transformers(
    place: Place, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Encoder:
    from id2core.encoders import backbones

    backbone = backbones.load(place.source, place.subfolder, place.revision)
    return backbones.encoder_of_backbone(backbone, place.name, device, dtype, batch_size)
