"""Frozen image encoders behind one call: autoencoders, vision backbones, ONNX and TorchScript files, a hash.

`load_encoder(name)` takes, in this order: `mini`, `pdq` (see `pdq`) or a short name of `hub.HUB` or
`hub.BACKBONES`; a local file of ONNX or TorchScript; a local directory that diffusers saved (an autoencoder,
or a pipeline with a `vae/`) or that transformers saved (a vision backbone, see `backbones`); a hub id
`owner/name[:subfolder][@revision]`. The `config.json` of a directory or repository says which of both it is.

`identify(name)` answers without loading weights, and without torch, where a record will do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from id2core.encoders import records
from id2core.encoders.hub import MINI, PDQ, config_of, is_short_name, locate
from id2core.encoders.records import EncoderIds, Record
from id2core.environment import best_dtype, usable_device

if TYPE_CHECKING:
    from id2core.encoders.base import Encoder


@dataclass(frozen=True)
class Kind:
    """One kind of encoder.

    Attributes:
        name: of the kind.
        takes: whether it loads a spec; called without torch.
        loader: MODULE:FUNCTION, imported when it is needed; called with the spec, a torch device, a torch
            dtype and a batch size or None, it returns an `Encoder`.
    """

    name: str
    takes: Callable[[str], bool]
    loader: str

    def load(self, spec: str, device: str, dtype: str, batch_size: int | None) -> Encoder:
        """Load an encoder of this kind."""
        import torch

        where = usable_device(device)
        number = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
        module, _, function = self.loader.partition(":")
        encoder: Encoder = getattr(importlib.import_module(module), function)(spec, where, number, batch_size)
        return encoder


def _is_onnx(spec: str) -> bool:
    return _is_file(spec) and spec.lower().endswith(".onnx")


def _is_file(spec: str) -> bool:
    return Path(spec).is_file() and not is_short_name(spec)


def _is_of_transformers(spec: str) -> bool:
    """Whether `config.json` is one of transformers, not of diffusers; a pipeline has none at its root."""
    config = config_of(locate(spec)) or {}
    return "model_type" in config and "_class_name" not in config


# Ways to compile an encoder → options of torch's compiler.
COMPILED: Final[dict[str, dict[str, bool]]] = {"on": {}, "tuned": {"coordinate_descent_tuning": True}}
# The first that takes a spec loads it. A new kind is a module and a row here, above the last, which takes
# everything.
KINDS: Final[list[Kind]] = [
    Kind("bundled", lambda spec: spec == MINI, "id2core.encoders.autoencoders:load_encoder"),
    Kind("pdq", lambda spec: spec == PDQ, "id2core.encoders.pdq:load_encoder"),
    Kind("onnx", _is_onnx, "id2core.encoders.onnx:load_encoder"),
    Kind("torchscript", _is_file, "id2core.encoders.torchscript:load_encoder"),
    Kind("transformers", _is_of_transformers, "id2core.encoders.backbones:load_encoder"),
    Kind("diffusers", lambda spec: True, "id2core.encoders.autoencoders:load_encoder"),
]


def kind_of(spec: str) -> Kind:
    """Return the kind that loads a spec.

    Raises:
        EncoderError: the spec is no short name, no local directory or file, and no hub id.
    """
    return next(kind for kind in KINDS if kind.takes(spec))


def load_encoder(
    spec: str = MINI,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    compile: str = "off",
) -> Encoder:
    """Load an encoder by short name, local directory, ONNX or TorchScript file, or hub id.

    Args:
        spec: see the module's docstring.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (see `best_dtype`), `float32`, `bfloat16` or `float16`.
        batch_size: pictures in one call of the network; by default 64 on a GPU, 16 on a CPU.
        compile: `off`, `on` or `tuned`, see `Encoder.compile`.

    Raises:
        EncoderError: nothing of that name can be loaded, or it gives no finite latents.
    """
    encoder = kind_of(spec).load(spec, device, dtype, batch_size)
    if compile in COMPILED:
        encoder.compile(COMPILED[compile])
    if records.find(spec) is None:
        records.write(spec, record_of(encoder))
    return encoder


def record_of(encoder: Encoder) -> Record:
    """Return the record of a loaded encoder; its latents' size is tried out on plain pictures."""
    return Record(encoder.encoder_id, encoder.preprocess, encoder.latent_size)


def recorded(spec: str = MINI) -> Record:
    """Return the record of an encoder, which is loaded on the CPU where there is none.

    Raises:
        EncoderError: nothing of that name can be loaded, or it gives no finite latents.
    """
    record = records.find(spec)
    return record or record_of(load_encoder(spec, device="cpu", dtype="float32"))


def identify(spec: str = MINI) -> EncoderIds:
    """Return the ids of an encoder; see `recorded`."""
    return recorded(spec).ids
