"""W: the learned matrix that takes a latent to the space in which translations lie near their origin.

descriptor = normalise(latent · W), compared by cosine (paper, Section 4, Eq. 1).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core import storage

IDENTITY = "identity"
_KEY = "W"
_METADATA = "id2"


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
        """Raise TransformError when the metadata names another encoder than `encoder_id`."""
        trained_for = self.metadata.get("encoder_id")
        if trained_for not in (None, encoder_id):
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
        header = {_METADATA: json.dumps(self.metadata, sort_keys=True)}
        save_file({_KEY: np.ascontiguousarray(self.weights)}, path, metadata=header)


def load(spec: str | None) -> Transform:
    """A transform by name.

    Args:
        spec: None or `none` for the identity; the path or gs:// URI of a `.safetensors` file written by
            `Transform.save`, or of the authors' published checkpoint (`.pth`, `.tar`, `.pt`).

    Raises:
        TransformError: the file is missing or is neither of the two.
    """
    if spec is None or spec == "none":
        return Transform()
    try:
        data = storage.read_bytes(storage.normalize(spec))
    except FileNotFoundError as error:
        raise TransformError(f"{spec}: no such transform file (or `none` for raw latents)") from error
    return _from_safetensors(data, spec) if spec.endswith(".safetensors") else _from_published(data, spec)


def _from_safetensors(data: bytes, spec: str) -> Transform:
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        weights = load_tensors(data)[_KEY]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header.get("__metadata__", {}).get(_METADATA, "{}"))
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
