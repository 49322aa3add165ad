"""W: the learned matrix that takes a latent to the space in which translations lie near their origin.

descriptor = normalise(latent · W), compared by cosine (paper, Section 4, Eq. 1). A W belongs to the encoder
that its metadata name; the one that ships with the package is found by `auto`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core import storage

IDENTITY = "identity"
# The transform_id of a data set that holds latents, and one zero in place of each descriptor.
LATENTS_ONLY = "latents-only"
# How an encoder_id ends that names samples of an encoder's posterior instead of its mode.
SAMPLE = "-sample"
# What stands for a transform on a command line instead of a file.
AUTO, NONE = "auto", "none"
# Where a transform in use can come from besides a file or `none`.
BUNDLED, GIVEN = "bundled", "data set"
# The encoder that ships with the package, its W and its calibration.
FOLDER = Path(__file__).parent / "data" / "mini"
WEIGHTS = "W.safetensors"
_KEY = "W"
# In the header of a file: the metadata; the architecture where it holds a non-linear head.
METADATA, HEAD = "id2", "head"


class TransformError(Exception):
    """A transform that cannot be loaded or does not fit; the message says what to do."""


@dataclass(frozen=True)
class Transform:
    """A matrix W without bias, or the identity.

    Attributes:
        weights: float32[n,m], or None for the identity (raw latents are compared).
        metadata: JSON-able facts kept with the weights: `encoder_id` they were trained for, recipe, data.
    """

    weights: NDArray[np.float32] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def transform_id(self) -> str:
        """First 12 hex of the weights' SHA-256, or `identity`."""
        if self.weights is None:
            return IDENTITY
        header = repr(self.weights.shape).encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.weights).tobytes()).hexdigest()[:12]

    def output_size(self, latent_size: int) -> int:
        """m for latents of n = `latent_size`; raises TransformError when W does not take such latents."""
        if self.weights is None:
            return latent_size
        if self.weights.shape[0] != latent_size:
            raise TransformError(
                f"this transform takes latents of {self.weights.shape[0]} numbers, the encoder gives "
                f"{latent_size}: it belongs to another encoder"
            )
        return int(self.weights.shape[1])

    def check_encoder(self, encoder_id: str) -> None:
        """Raise TransformError when the metadata names another encoder than `encoder_id`.

        One trained for `NAME-sample` fits every encoder called NAME, with an id NAME-<12 hex>: samples of a
        posterior and its mode lie in one space, and samples scatter about the mode. Nobody has hashed the
        weights that those samples are of: that NAME means one model in both is the name's word. What the
        difference costs is not known; thresholds calibrated on the scores as they are allow for it.
        """
        trained_for = self.metadata.get("encoder_id")
        if trained_for is not None and trained_for != encoder_id and not _is_of(trained_for, encoder_id):
            raise TransformError(f"this transform was trained for {trained_for}, not for {encoder_id}")

    def apply(self, latents: NDArray[Any]) -> NDArray[np.float32]:
        """Descriptors of latents.

        Args:
            latents: float16 or float32 [B,n].

        Returns:
            float32[B,m], each row of length 1 (a zero row stays zero).
        """
        x = latents.astype(np.float32)
        y = x if self.weights is None else x @ self.weights
        norms = np.sqrt(np.einsum("ij,ij->i", y, y, dtype=np.float64)).astype(np.float32)[:, None]
        return np.asarray(np.divide(y, norms, out=np.zeros_like(y), where=norms > 0))

    def save(self, path: Path) -> None:
        """Write `path` (safetensors): the tensor `W`, and the metadata as JSON in its header."""
        from safetensors.numpy import save_file

        if self.weights is None:
            raise TransformError("the identity has no weights to save")
        header = {METADATA: json.dumps(self.metadata, sort_keys=True)}
        save_file({_KEY: np.ascontiguousarray(self.weights)}, path, metadata=header)


def _is_of(samples: str, encoder_id: str) -> bool:
    """Whether an encoder_id of samples names the encoder, whatever its weights."""
    name = samples.removesuffix(SAMPLE)
    return name != samples and bool(re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", encoder_id))


def load(spec: str | None, encoder_id: str | None = None) -> Transform:
    """A transform by name.

    Args:
        spec: None or `none` for the identity; `auto` for the transform that belongs to the encoder; the path
            or gs:// URI of a `.safetensors` file written by `Transform.save`, or of the authors' published
            checkpoint (`.pth`, `.tar`, `.pt`).
        encoder_id: of the latents; what `auto` needs to know.

    Raises:
        TransformError: the file is missing or is neither of the two.
    """
    if spec is None or spec == NONE:
        return Transform()
    if spec == AUTO:
        return belonging_to(encoder_id)
    try:
        data = storage.read_bytes(storage.normalize(spec))
    except FileNotFoundError as error:
        raise TransformError(
            f"{spec}: no such transform file (or `auto` for the encoder's own, `none` for raw latents)"
        ) from error
    return _from_safetensors(data, spec) if spec.endswith(".safetensors") else _from_published(data, spec)


def belonging_to(encoder_id: str | None, folder: Path | None = None) -> Transform:
    """The bundled transform that was trained for an encoder; the identity where there is none.

    Args:
        encoder_id: of the latents; the transform's metadata must name it.
        folder: with `W.safetensors` (float16 or float32); by default the package's own.
    """
    path = (folder or FOLDER) / WEIGHTS
    if encoder_id is None or not path.is_file():
        return Transform()
    found = load(str(path))
    return found if found.metadata.get("encoder_id") == encoder_id else Transform()


def source(spec: str | None, transform_id: str, encoder_id: str) -> str:
    """Where the transform in use is from: `none`, `bundled`, its file, or `data set`.

    Args:
        spec: what was asked for, as `load` takes it.
        transform_id, encoder_id: of the descriptors.
    """
    if transform_id == IDENTITY:
        return NONE
    if spec not in (None, NONE, AUTO):
        return storage.normalize(str(spec))
    return BUNDLED if belonging_to(encoder_id).transform_id == transform_id else GIVEN


def file_of(spec: str | None) -> Path | None:
    """The local file that `load(spec)` would read; None where there is none."""
    path = FOLDER / WEIGHTS if spec == AUTO else Path(spec or NONE)
    return path if path.is_file() else None


def save_half(transform: Transform, path: Path) -> Transform:
    """Write a W in float16, at half the size; returned is what `load` then gives, with an id of its own.

    Raises:
        TransformError: it has no weights, or they do not fit into float16.
    """
    from safetensors.numpy import save_file

    if transform.weights is None:
        raise TransformError("the identity has no weights to save")
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(transform.weights, np.float16)
    if not np.isfinite(halves).all():
        raise TransformError("these weights are too large for float16: save them whole")
    save_file({_KEY: halves}, path, metadata={METADATA: json.dumps(transform.metadata, sort_keys=True)})
    return load(str(path))


def _from_safetensors(data: bytes, spec: str) -> Transform:
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        if HEAD in header:
            from id2core import heads

            return heads.from_file(tensors, header, spec)
        weights, metadata = tensors[_KEY], json.loads(header.get(METADATA, "{}"))
    except (SafetensorError, ValueError, LookupError) as error:
        raise TransformError(f"{spec} is not a transform: {error}") from error
    return Transform(_checked(weights, spec), metadata)


def _from_published(data: bytes, spec: str) -> Transform:
    """The authors' format: one tensor of shape (m, n), descriptor = latent @ tensorᵀ."""
    import torch

    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a foreign or unsafe file
        raise TransformError(f"{spec} holds more than one plain tensor, or is damaged: {error}") from error
    if not isinstance(tensor, torch.Tensor):
        raise TransformError(f"{spec} holds a {type(tensor).__name__}, not one tensor of shape (m, n)")
    return Transform(_checked(tensor.float().numpy().T, spec), {"imported_from": Path(spec).name})


def _checked(weights: NDArray[Any], spec: str) -> NDArray[np.float32]:
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise TransformError(f"{spec}: W must be a finite matrix, this is {weights.dtype}{weights.shape}")
    return np.ascontiguousarray(weights, np.float32)
