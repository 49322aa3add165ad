"""Autoencoders of diffusers as encoders: the mode of the posterior, or the latent itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from id2core.encoders import cores
from id2core.encoders.base import Encoder, hash_tensors
from id2core.encoders.hub import MOVED, Place, locate, narrowed
from id2core.encoders.preprocess import Preprocess
from id2core.environment import best_memory_format
from id2core.errors import EncoderError

_DECODER_PARTS = ("decoder.", "post_quant_conv.")


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Load `mini`, a short name, a directory or a hub id as an encoder."""
    return encoder_of_autoencoder(locate(spec), device, dtype, batch_size)


def encoder_of_autoencoder(
    place: Place, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Encoder:
    """Load the autoencoder at a place as an encoder; its decoder is dropped."""
    model = load_autoencoder(place.source, place.subfolder, place.revision)
    if dtype == torch.float16 and model.force_upcast:
        dtype = torch.float32
    digest = hash_tensors({k: v for k, v in model.state_dict().items() if not k.startswith(_DECODER_PARTS)})
    model.decoder = None
    # Module.to itself: diffusers' own `to` warns about every cast.
    torch.nn.Module.to(model, device, dtype)
    one_frame = any(isinstance(m, torch.nn.Conv3d) for m in model.encoder.modules())
    layout = best_memory_format(device)
    if not one_frame:
        torch.nn.Module.to(model, memory_format=layout)  # type: ignore[call-overload]

    def network(x: torch.Tensor) -> torch.Tensor:
        return _mode(model.encode(x.unsqueeze(2) if one_frame else x))

    # Those of videos keep the frames of a picture in themselves: they take one batch at a time.
    spread = device.type == "cpu" and not one_frame
    size = batch_size or (cores.batch_size() if spread else None)
    again = functools.partial(encoder_of_autoencoder, place, device, torch.float32, batch_size)
    call = cores.on_cores(network) if spread else network
    return Encoder(place.name, digest, call, device, dtype, Preprocess(), size, layout, again, compiles=True)


def load_autoencoder(source: str, subfolder: str | None = None, revision: str | None = None) -> Any:
    """Load a diffusers autoencoder of any class in float32 on the CPU, frozen.

    Raises:
        EncoderError: not found, or not an autoencoder that has an encoder.
    """
    errors = []
    for folder in [subfolder] if subfolder else [None, "vae"]:
        try:
            kind, config = _autoencoder_class(source, folder, revision)
            model = kind.from_pretrained(source, torch_dtype=torch.float32, **narrowed(folder, revision))
            # As the file says: diffusers takes it for true wherever a file says nothing.
            model.force_upcast = bool(config.get("force_upcast", False))
            return model.eval().requires_grad_(False)
        except (OSError, ValueError, TypeError) as error:
            errors.append(str(error).splitlines()[0])
    hint = "" if Path(source).is_dir() else "; without access to the hub, give a local directory"
    if source in MOVED:
        hint = f"; it was withdrawn from the hub, try {MOVED[source]}{hint}"
    raise EncoderError(f"cannot load an autoencoder from {source}: {' / '.join(errors)}{hint}")


def _autoencoder_class(
    source: str, subfolder: str | None, revision: str | None
) -> tuple[Any, dict[str, Any]]:
    """Return the class of an autoencoder and its configuration as it stands in the file."""
    import diffusers

    config = diffusers.AutoencoderKL.load_config(
        source, **narrowed(subfolder, revision)
    )  # reads the configuration of any class
    config = dict(config)
    name = config.get("_class_name", "")
    kind = getattr(diffusers, name, None)
    if not hasattr(kind, "encode"):
        raise ValueError(f"{source} holds a {name or 'nameless model'}, not an autoencoder with an encoder")
    return kind, config


def _mode(output: Any) -> torch.Tensor:
    """The latent in what an autoencoder's `encode` returns: a posterior's mode, or the latent itself."""
    if hasattr(output, "latent_dist"):
        return torch.as_tensor(output.latent_dist.mode())
    return torch.as_tensor(output.latents if hasattr(output, "latents") else output.latent)
