"""Experimental: non-linear networks in the place of W (paper, Section 5.5, Table 7 and Figure 9).

The paper finds that they fit the diffusion model they were trained on and lose on others; they are here to
measure that. It gives no sizes. Ours, for latents of n numbers, C×S×S, and descriptors of m:

- `mlp-K`, K from 1 to 7 layers: h₁ = x·W, h_{k+1} = h_k + Linear(ReLU(h_k)), each of m numbers; K = 1 is W;
- `convolution`: one layer, of as fine a grid as leaves at least C of its output channels: for 4×32×32 and
  m = 512, 8×8 of 8 channels, seen by kernels of 6×6 with a stride of 4;
- `attention`: the latent as 8×8 patches (fewer where S is less), one layer of multi-head self-attention among
  them with learned positions, added to the patches, then W.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor, nn

from id2core.errors import TransformError
from id2core.store import strict_json
from id2core.transforms.kinds import ALL, KINDS, LINEAR, MLP
from id2core.transforms.linear import HEAD, METADATA, Multiply, Transform

__all__ = ["ALL", "KINDS", "LINEAR", "MLP", "Architecture", "Head", "build"]

_CHANNELS = 4  # of the latent where only its length is known: SD2's VAE, SDXL's, and `mini`
_PATCHES = 8  # along a side
_HEADS = (8, 4, 2, 1)
BATCH_ROWS = 1024

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Architecture:
    """What network a head is, JSON-able.

    Attributes:
        kind: one of `KINDS`.
        n, m: numbers of a latent and of a descriptor.
        latent_shape: (C, S, S); None for that of `build`.
    """

    kind: str
    n: int
    m: int
    latent_shape: Shape | None = None


class Residual(nn.Module):
    """A residual connection around a layer: x + layer(x)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x + layer(x)."""
        return torch.as_tensor(x + self.layer(x))


class PatchAttention(nn.Module):
    """Multi-head self-attention among the patches of a latent: float[B,C,S,S] to float[B,patches,size]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, side, _ = shape
        across = max(g for g in range(1, min(_PATCHES, side) + 1) if side % g == 0)
        size = channels * (side // across) ** 2
        self.cut = nn.PixelUnshuffle(side // across)
        self.norm = nn.LayerNorm(size)
        self.positions = nn.Parameter(0.02 * torch.randn(across**2, size))
        number = next(h for h in _HEADS if size % h == 0)
        self.attention = nn.MultiheadAttention(size, number, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the patches with what they attend to added."""
        patches = self.cut(x).flatten(2).transpose(1, 2)
        asked = self.norm(patches) + self.positions
        return torch.as_tensor(patches + self.attention(asked, asked, asked, need_weights=False)[0])


def build(kind: str, n: int, m: int, latent_shape: Shape | None = None) -> nn.Module:
    """Build a network with random weights: float32[B,n] to float32[B,m], of any length.

    Args:
        kind: `linear` for W itself, or one of `KINDS`.
        n, m: numbers of a latent and of a descriptor.
        latent_shape: (C, S, S) with C·S·S = n; by default 4 channels.

    Raises:
        TransformError: there is no such kind, or the latent is no such square where the kind needs one.
    """
    if kind == LINEAR:
        return nn.Linear(n, m, bias=False)
    if kind in MLP:
        more = [Residual(nn.Sequential(nn.ReLU(), nn.Linear(m, m))) for _ in range(MLP.index(kind))]
        return nn.Sequential(nn.Linear(n, m, bias=False), *more)
    if kind not in KINDS:
        raise TransformError(f"no head {kind!r}: choose {', '.join(ALL)}")
    shape = _square(kind, n, latent_shape)
    if kind == "attention":
        return nn.Sequential(
            nn.Unflatten(1, shape), PatchAttention(shape), nn.Flatten(), nn.Linear(n, m, bias=False)
        )
    return nn.Sequential(nn.Unflatten(1, shape), _convolution(shape, m), nn.Flatten())


def _square(kind: str, n: int, given: Shape | None) -> Shape:
    side = round((n / _CHANNELS) ** 0.5)
    shape = given or (_CHANNELS, side, side)
    if shape[1] != shape[2] or shape[0] * shape[1] * shape[2] != n:
        raise TransformError(
            f"{kind} needs to know the shape of a latent: {n} numbers are not {'×'.join(map(str, shape))}; "
            "give latent_shape, or choose an mlp"
        )
    return shape


def _convolution(shape: Shape, m: int) -> nn.Module:
    channels, side, _ = shape
    grids = [g for g in range(1, side + 1) if side % g == 0 and m % g**2 == 0 and m // g**2 >= channels]
    if not grids:
        raise TransformError(
            f"a convolution of {channels} channels gives {channels} numbers or more, not {m}"
        )
    stride = side // grids[-1]
    return nn.Conv2d(channels, m // grids[-1] ** 2, stride + 2, stride, padding=1)


@dataclass(frozen=True, eq=False)
class Head(Transform):
    """A non-linear network where a transform is wanted; experimental, see the head of this file.

    Attributes:
        architecture: what network it is.
        tensors: its weights by name, float32.
        device: where it is applied; by default the first GPU, or else the CPU.
    """

    architecture: Architecture = field(kw_only=True)
    tensors: Mapping[str, NDArray[np.float32]] = field(kw_only=True)
    device: str | None = field(default=None, kw_only=True)

    @staticmethod
    def of(
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        metadata: dict[str, JsonValue],
        device: str | None = None,
    ) -> Head:
        """Make a head of a copy of the `state_dict` of a network that `build` made."""
        tensors = {k: v.detach().cpu().numpy().astype(np.float32) for k, v in weights.items()}
        return Head(None, metadata, architecture=architecture, tensors=tensors, device=device)

    @functools.cached_property
    def transform_id(self) -> str:
        """First 12 hex of the SHA-256 of the architecture and all weights."""
        digest = hashlib.sha256(json.dumps(asdict(self.architecture), sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = np.ascontiguousarray(self.tensors[name])
            digest.update(f"{name}{tensor.shape}".encode())
            digest.update(tensor.tobytes())
        return digest.hexdigest()[:12]

    @functools.cached_property
    def _module(self) -> nn.Module:
        module = build(**asdict(self.architecture))
        try:
            module.load_state_dict({k: torch.from_numpy(v) for k, v in self.tensors.items()})
        except RuntimeError as error:
            raise TransformError(f"these weights are no {self.architecture.kind}: {error}") from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return module.eval().requires_grad_(False).to(device)

    def output_size(self, latent_size: int) -> int:
        """m for latents of n = `latent_size`; raises TransformError when it does not take such latents."""
        if self.architecture.n != latent_size:
            raise TransformError(
                f"{self.source} takes latents of {self.architecture.n} numbers, the encoder gives "
                f"{latent_size}: it belongs to another encoder"
            )
        return self.architecture.m

    def apply(self, latents: NDArray[Any], multiply: Multiply = np.matmul) -> NDArray[np.float32]:
        """Compute the descriptors of latents, 1,024 at once.

        Args:
            latents: float16 or float32 [B,n].
            multiply: of a matrix; the network has its own device.

        Returns:
            float32[B,m], each row of length 1.
        """
        device = next(self._module.parameters()).device
        out = np.empty((len(latents), self.output_size(latents.shape[1])), np.float32)
        with torch.inference_mode():
            for i in range(0, len(latents), BATCH_ROWS):
                x = torch.from_numpy(latents[i : i + BATCH_ROWS].astype(np.float32)).to(device)
                out[i : i + BATCH_ROWS] = self._module(x).cpu().numpy()
        return Transform().apply(out)

    def save(self, path: Path) -> None:
        """Write `path` (safetensors): all weights; in the header, metadata and architecture as JSON."""
        from safetensors.numpy import save_file

        header = {METADATA: json.dumps(self.metadata, sort_keys=True)}
        header[HEAD] = json.dumps(asdict(self.architecture), sort_keys=True)
        save_file({k: np.ascontiguousarray(v) for k, v in self.tensors.items()}, path, metadata=header)


def from_file(tensors: Mapping[str, NDArray[Any]], header: Mapping[str, str], spec: str) -> Head:
    """Read the head in a file that `Head.save` wrote.

    Args:
        tensors: of the file, by name.
        header: the file's metadata.
        spec: names the file in errors.

    Raises:
        TransformError: the weights are not those of the architecture, or not finite.
    """
    try:
        facts = strict_json.parse_object(header[HEAD])
        shape = facts["latent_shape"]
        architecture = Architecture(**facts | {"latent_shape": shape and tuple(shape)})
        metadata = strict_json.parse_object(header.get(METADATA, "{}"))
        with torch.device("meta"):  # takes no memory, whatever sizes the file names
            expected = {k: tuple(v.shape) for k, v in build(**asdict(architecture)).state_dict().items()}
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, StopIteration) as error:
        raise TransformError(f"{spec} is not a head: {error}") from error
    if {k: v.shape for k, v in tensors.items()} != expected:
        raise TransformError(f"{spec}: these weights are no {architecture.kind} of the sizes in its header")
    if not all(v.dtype.kind == "f" and np.isfinite(v.astype(np.float32)).all() for v in tensors.values()):
        raise TransformError(f"{spec}: a head's weights must be finite float32 numbers")
    head = Head(None, metadata, architecture=architecture, tensors=dict(tensors))
    head._module  # noqa: B018 (fails here rather than at the first use)
    return head
