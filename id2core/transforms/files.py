"""Files of W: the one that ships, `Transform.save`'s own, and the authors' published checkpoint."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core import defaults
from id2core.errors import TransformError
from id2core.store import storage, strict_json
from id2core.transforms import cohorts
from id2core.transforms.cohorts import Cohort
from id2core.transforms.linear import (
    AUTO,
    BUNDLED,
    GIVEN,
    HEAD,
    IDENTITY,
    METADATA,
    NONE,
    TENSOR,
    Transform,
    save_as,
)

# The encoder that ships with the package, its W and its calibration.
BUNDLED_FOLDER = Path(__file__).parents[1] / "data" / defaults.ENCODER
WEIGHTS = "W.safetensors"


def bundled_folder() -> Path:
    """Return the folder of the encoder that ships with the package, its W and its calibration."""
    return BUNDLED_FOLDER


def load_transform(spec: str | None, encoder_id: str | None = None) -> Transform:
    """Load a transform by name.

    Args:
        spec: None or `none` for the identity; `auto` for the transform that belongs to the encoder; the path
            or gs:// URI of a `.safetensors` file written by `Transform.save`, or of the authors' published
            checkpoint (`.pth`, `.tar`, `.pt`).
        encoder_id: of the latents; what `auto` needs to know.

    Raises:
        TransformError: the file is missing, is neither of the two, or holds numbers that are no weights.
    """
    if spec is None or spec == NONE:
        return Transform()
    if spec == AUTO:
        return bundled_transform(encoder_id)
    try:
        data = storage.read_bytes(storage.normalize(spec))
    except FileNotFoundError as error:
        raise TransformError(
            f"{spec}: no such transform file (or `auto` for the encoder's own, `none` for raw latents)"
        ) from error
    read = _from_safetensors if spec.endswith(".safetensors") else _from_published
    return replace(read(data, spec), source=spec)


def bundled_transform(encoder_id: str | None, folder: Path | None = None) -> Transform:
    """Load the bundled transform that was trained for an encoder; the identity where there is none.

    Args:
        encoder_id: of the latents; the transform's metadata must name it.
        folder: with `W.safetensors` (float16 or float32); by default the package's own.
    """
    path = (folder or bundled_folder()) / WEIGHTS
    if encoder_id is None or not path.is_file():
        return Transform()
    bundled = load_transform(str(path))
    return bundled if bundled.trained_for == encoder_id else Transform()


def source_of(spec: str | None, transform_id: str, encoder_id: str) -> str:
    """Return where the transform in use is from: `none`, `bundled`, its file, or `data set`.

    Args:
        spec: what was asked for, as `load_transform` takes it.
        transform_id, encoder_id: of the descriptors.
    """
    if transform_id == IDENTITY:
        return NONE
    if spec not in (None, NONE, AUTO):
        return storage.normalize(str(spec))
    return BUNDLED if bundled_transform(encoder_id).transform_id == transform_id else GIVEN


def local_file(spec: str | None) -> Path | None:
    """Return the local file that `load_transform(spec)` would read; None where there is none."""
    path = bundled_folder() / WEIGHTS if spec == AUTO else Path(spec or NONE)
    return path if path.is_file() else None


def save_half(transform: Transform, path: Path) -> Transform:
    """Write a W in float16, at half the size; return it as `load_transform` reads it, with its own id.

    Raises:
        TransformError: it has no weights, or they do not fit into float16.
    """
    weights = np.empty(0) if transform.weights is None else transform.weights
    with np.errstate(over="ignore"):
        fits = np.isfinite(weights.astype(np.float16)).all()
    if not fits:
        raise TransformError("these weights are too large for float16: save them whole")
    save_as(transform, path, np.float16)
    return load_transform(str(path))


def _from_safetensors(data: bytes, spec: str) -> Transform:
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        tensors = load_tensors(data)
        header = strict_json.parse_object(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header = header.get("__metadata__", {})
        if HEAD in header:
            from id2core.transforms import heads  # torch, which W itself does not need

            return heads.from_file(tensors, header, spec)
        metadata = strict_json.parse_object(header.get(METADATA, "{}"))
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise TransformError(f"{spec} is not a transform: {error}") from error
    if set(tensors) - {cohorts.DESCRIPTORS, cohorts.CROPS} != {TENSOR}:
        names = ", ".join(sorted(tensors)[:5]) or "none"
        raise TransformError(
            f"{spec} is not a transform: it must hold one tensor, {TENSOR}, and may hold a cohort beside it; "
            f"it holds {names}"
        )
    if not isinstance(metadata.get("encoder_id", ""), str):
        raise TransformError(f"{spec} is not a transform: its metadata are no facts about a W")
    weights = _checked(tensors[TENSOR], spec)
    try:
        cohort = Cohort.read(tensors, weights.shape[1])
    except ValueError as error:
        raise TransformError(f"{spec} is not a transform: {error}") from error
    return Transform(weights, metadata, cohort=cohort)


def _from_published(data: bytes, spec: str) -> Transform:
    """The authors' format: one tensor of shape (m, n), descriptor = latent @ tensorᵀ."""
    import torch

    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a foreign or unsafe file
        raise TransformError(
            f"{spec} is neither a .safetensors file nor one plain tensor that torch saved, or it is damaged"
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise TransformError(f"{spec} holds a {type(tensor).__name__}, not one tensor of shape (m, n)")
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise TransformError(
            f"{spec} holds a {tensor.dtype} tensor ({tensor.layout}): W is a matrix of floats"
        )
    return Transform(_checked(tensor.detach().float().numpy().T, spec), {"imported_from": Path(spec).name})


def _checked(weights: NDArray[Any], spec: str) -> NDArray[np.float32]:
    """Return W as float32[n,m]; raise TransformError for numbers that are no weights."""
    if weights.ndim != 2 or 0 in weights.shape or weights.dtype.kind != "f":
        raise TransformError(f"{spec}: W must be a matrix of floats, this is {weights.dtype}{weights.shape}")
    with np.errstate(over="ignore"):
        w = np.ascontiguousarray(weights, np.float32)
    # NaN and infinities fail this too. A latent of the largest float16 numbers must not overflow float32.
    sums = np.abs(w).sum(axis=0, dtype=np.float64)
    if not (sums * np.finfo(np.float16).max < np.finfo(np.float32).max).all():
        raise TransformError(f"{spec}: W must be a finite matrix whose products fit into float32")
    if not sums.any():  # some columns may be: a closed form of few origins leaves them
        raise TransformError(f"{spec}: W is zero, so all pictures would be the same")
    return w
