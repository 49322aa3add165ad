"""W: the learned matrix that takes a latent to the space in which translations lie near their origin.

descriptor = normalize(latent · W), compared by cosine (paper, Section 4, Eq. 1). A W belongs to the encoder
that its metadata name; `auto` is the one that ships with the package.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from id2core import defaults
from id2core.errors import TransformError
from id2core.transforms.cohorts import Cohort

IDENTITY = "identity"
# The transform_id of a data set that holds latents, and one zero in place of each descriptor.
LATENTS_ONLY = "latents-only"
# How an encoder_id ends that names samples of an encoder's posterior instead of its mode.
SAMPLE = "-sample"
# Values of --transform that are no file.
AUTO, NONE = defaults.AUTO, defaults.NONE
# Where a transform in use can come from besides a file or `none`.
BUNDLED, GIVEN = "bundled", "data set"
TENSOR = "W"
# In the header of a file: the metadata; the architecture where it holds a non-linear head.
METADATA, HEAD = "id2", "head"
# Whole numbers up to 2⁵³ are exact in float64.
_EXACT_BITS = 53
# Latents that are multiplied at once, 32 MB as float64 where n is 4,096, and of them those that are prepared
# at once: what a processor's cache holds.
_ROWS, _CACHED_ROWS = 1024, 32

# float64[b,n], float64[n,m] → float64[b,m].
Multiply = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Transform:
    """A matrix W without bias, or the identity.

    Attributes:
        weights: float32[n,m], or None for the identity (raw latents are compared).
        metadata: JSON-able facts kept with the weights: `encoder_id` they were trained for, recipe, data.
        source: names it in errors: its file, where it has one.
        cohort: pictures that say what a look scores by chance; no part of its id.
    """

    weights: NDArray[np.float32] | None = None
    metadata: dict[str, JsonValue] = field(default_factory=dict)
    source: str = field(default="this transform", compare=False)
    cohort: Cohort | None = field(default=None, compare=False)

    @functools.cached_property
    def transform_id(self) -> str:
        """First 12 hex of the weights' SHA-256, or `identity`."""
        if self.weights is None:
            return IDENTITY
        header = repr(self.weights.shape).encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.weights).tobytes()).hexdigest()[:12]

    @property
    def trained_for(self) -> str | None:
        """The encoder_id that the metadata names; None where it names none."""
        encoder_id = self.metadata.get("encoder_id")
        return None if encoder_id is None else str(encoder_id)

    def output_size(self, latent_size: int) -> int:
        """m for latents of n = `latent_size`; raises TransformError when W does not take such latents."""
        if self.weights is None:
            return latent_size
        if self.weights.shape[0] != latent_size:
            raise TransformError(
                f"{self.source} takes latents of {self.weights.shape[0]} numbers, the encoder gives "
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
        name = self.trained_for
        if name is not None and name != encoder_id and not _is_of(name, encoder_id):
            raise TransformError(f"{self.source} was trained for {name}, not for {encoder_id}")

    def apply(self, latents: NDArray[Any], multiply: Multiply = np.matmul) -> NDArray[np.float32]:
        """Compute the descriptors of latents.

        A descriptor depends on its latent alone, to the last bit: not on the other rows, the library, or the
        machine. See `_whole`.

        Args:
            latents: float16 or float32 [B,n].
            multiply: float64[b,n], float64[n,m] → their product; a GPU's for many latents.

        Returns:
            float32[B,m], each row of length 1 (a zero row stays zero).
        """
        n = latents.shape[1]
        out = np.empty((len(latents), self.output_size(n)), np.float32)
        for i in range(0, len(latents), _ROWS):
            block = latents[i : i + _ROWS]
            if self.weights is None:
                y = block.astype(np.float64)
            else:
                weights, scale = self._whole_weights
                y = multiply(_whole_rows(block, _bits(n)[0]), weights) * scale
            out[i : i + _ROWS] = _normalized(y)
        return out

    @functools.cached_property
    def _whole_weights(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`_whole` of each column of W, which must not be None."""
        assert self.weights is not None
        return _whole(self.weights.astype(np.float64), _bits(len(self.weights))[1], axis=0)

    def save(self, path: Path) -> None:
        """Write `path` (safetensors): the tensor `W`, the cohort, and the metadata as JSON in its header."""
        save_as(self, path, np.float32)


def save_as(transform: Transform, path: Path, dtype: type[np.floating]) -> None:
    """Write a W in some precision; see `Transform.save`.

    Raises:
        TransformError: it has no weights.
    """
    from safetensors.numpy import save_file

    if transform.weights is None:
        raise TransformError("the identity has no weights to save")
    header = {METADATA: json.dumps(transform.metadata, sort_keys=True)}
    beside = transform.cohort.tensors() if transform.cohort else {}
    save_file({TENSOR: np.ascontiguousarray(transform.weights, dtype)} | beside, path, metadata=header)


def _bits(terms: int) -> tuple[int, int]:
    """Return how many bits two factors may have, for a float64 to hold the sum of so many products."""
    together = _EXACT_BITS - max(terms - 1, 0).bit_length()
    return together // 2, together - together // 2


def _whole(x: NDArray[np.float64], bits: int, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return vectors as whole numbers of at most so many bits, and the power of two that undoes it.

    A product of matrices of such numbers rounds nowhere, so the order in which it adds does not matter. The
    rounding here is that of a float32 product: 20 bits of the largest component where n is 4,096.
    """
    whole = x.copy()
    return whole, _make_whole(whole, bits, axis)


def _make_whole(x: NDArray[np.float64], bits: int, axis: int) -> NDArray[np.float64]:
    """Make vectors `_whole` where they are in memory; return the power of two that undoes it."""
    largest = np.maximum(x.max(axis, keepdims=True, initial=0), -x.min(axis, keepdims=True, initial=0))
    scale = np.ldexp(1.0, np.frexp(largest)[1] - bits)
    np.rint(np.divide(x, scale, out=x), out=x)
    return np.asarray(scale)


def _whole_rows(latents: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """`_whole` of each latent, without the scales: a descriptor has the length 1 anyway."""
    out = np.empty(latents.shape, np.float64)
    for i in range(0, len(latents), _CACHED_ROWS):
        rows = slice(i, i + _CACHED_ROWS)
        out[rows] = latents[rows]
        _make_whole(out[rows], bits, axis=1)
    return out


def _normalized(y: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return rows of length 1, float32[B,m]; a zero row stays zero."""
    squares, scale = _whole(y, _bits(y.shape[1])[0], axis=1)
    norms = np.sqrt(np.einsum("ij,ij->i", squares, squares))[:, None] * scale
    return np.asarray(np.divide(y, norms, out=np.zeros_like(y), where=norms > 0), np.float32)


def _is_of(samples: str, encoder_id: str) -> bool:
    """Whether an encoder_id of samples names the encoder, of any weights."""
    name = samples.removesuffix(SAMPLE)
    return name != samples and bool(re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", encoder_id))
