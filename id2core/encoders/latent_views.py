"""Views of a latent that cost no encoder call: mirrored, and turned by a quarter to either side.

An encoder of convolutions is nearly equivariant: the latent of the mirrored picture is nearly the mirrored
latent. Its strides pad one side only, so what is left is mostly a shift by part of a cell, and channels that
see an edge's direction. A filter of 3×3 cells over all channels undoes most of it. It is learned once for an
encoder by least squares, from some hundred latents of pictures and of the same pictures mirrored or turned.

A view is linear, so `LatentView.fold` makes it part of W: columns more instead of latents more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from id2core.errors import EncoderError
from id2core.transforms.files import bundled_folder

MIRRORED, TURNED_LEFT, TURNED_RIGHT = "mirrored", "turned-left", "turned-right"
FILE: Final = "views.safetensors"
_ENCODER_ID = "encoder_id"
_REACH: Final = (-1, 0, 1)

Cells = NDArray[np.int64]
# A square of cells → the same square mirrored or turned, as a picture would be.
MOVES: Final[Mapping[str, Callable[[Cells], Cells]]] = {
    MIRRORED: lambda cells: cells[:, ::-1],
    TURNED_LEFT: lambda cells: np.rot90(cells, 1),
    TURNED_RIGHT: lambda cells: np.rot90(cells, -1),
}


@dataclass(frozen=True, eq=False)
class LatentView:
    """The latent of a moved picture, from that of the picture.

    Attributes:
        name: one of `MOVES`.
        taps: float32[9,C,C], the filter: of the cells around, by row and column, from channel to channel.
    """

    name: str
    taps: NDArray[np.float32]

    @classmethod
    def plain(cls, name: str, channels: int) -> LatentView:
        """Return the view that only moves cells."""
        taps = np.zeros((len(_REACH) ** 2, channels, channels), np.float32)
        taps[len(taps) // 2] = np.eye(channels)
        return cls(name, taps)

    @classmethod
    def fit(
        cls, name: str, latents: NDArray[np.floating], moved: NDArray[np.floating], channels: int
    ) -> LatentView:
        """Learn the filter by least squares.

        Args:
            name: one of `MOVES`.
            latents: float[N,n] of N pictures.
            moved: float[N,n] of the same pictures, mirrored or turned before they were encoded.
            channels: C of the latents; n / C is a square.

        Raises:
            ValueError: n / C is no square.
        """
        around = _around(name, _side(latents.shape[1], channels))
        size = len(around) * channels
        squares, products = np.zeros((size, size)), np.zeros((size, channels))
        for latent, target in zip(latents, moved, strict=True):
            cells = latent.astype(np.float64).reshape(channels, -1)[:, around]
            x = cells.transpose(1, 0, 2).reshape(size, -1)
            squares += x @ x.T
            products += x @ target.astype(np.float64).reshape(channels, -1).T
        taps = np.linalg.lstsq(squares, products, rcond=None)[0]
        return cls(name, taps.reshape(len(around), channels, channels).astype(np.float32))

    @property
    def channels(self) -> int:
        """Return the channels of the latents that it is for."""
        return int(self.taps.shape[1])

    def __call__(self, latents: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return the latents of moved pictures, float16[N,n], from those of the pictures, float16[N,n]."""
        moved = self._matrix(latents.shape[1]).T @ latents.T.astype(np.float32)
        return np.asarray(moved.T, np.float16)

    def fold(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the W that sees a latent as this view: latent · fold(W) is view(latent) · W.

        Args:
            weights: float32[n,m].
        """
        return np.asarray(self._matrix(len(weights)) @ weights, np.float32)

    @functools.lru_cache(maxsize=1)  # noqa: B019 (views live as long as their process)
    def _matrix(self, size: int) -> csr_array:
        """Return the view as a matrix n×n: latent · matrix is the latent of the moved picture."""
        channels = self.channels
        around = _around(self.name, _side(size, channels))
        cells = around.shape[1]
        tap, source, target, cell = np.ix_(*(range(k) for k in (*self.taps.shape, cells)))
        rows = source * cells + around[tap, cell]
        columns = np.broadcast_to(target * cells + cell, (*rows.shape[:2], channels, cells))
        rows, values = (
            np.broadcast_to(rows, columns.shape),
            np.broadcast_to(self.taps[..., None], columns.shape),
        )
        entries = (values.ravel(), (rows.ravel(), columns.ravel()))
        return csr_array(entries, shape=(size, size), dtype=np.float32)


def _side(size: int, channels: int) -> int:
    side = math.isqrt(size // channels)
    if channels * side * side != size:
        raise ValueError(f"a latent of {size} numbers has no square of {channels} channels")
    return side


def _around(name: str, side: int) -> Cells:
    """Return which cells of a latent are around each cell of the moved one, int64[9,side²]."""
    cells = MOVES[name](np.arange(side * side).reshape(side, side))
    padded = np.pad(cells, 1, mode="edge")
    around = [padded[1 + i : 1 + i + side, 1 + j : 1 + j + side].ravel() for i in _REACH for j in _REACH]
    return np.stack(around)


def save(views: Mapping[str, LatentView], path: Path, encoder_id: str) -> None:
    """Write the views of an encoder to a file."""
    save_file({name: view.taps for name, view in views.items()}, path, {_ENCODER_ID: encoder_id})


def load(path: Path) -> tuple[dict[str, LatentView], str]:
    """Read the views of an encoder, and its encoder_id.

    Raises:
        EncoderError: the file is missing, or is none that `save` wrote.
    """
    try:
        with safe_open(path, "numpy") as file:
            taps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            encoder_id = (file.metadata() or {})[_ENCODER_ID]
    except (OSError, SafetensorError, KeyError) as error:
        raise EncoderError(f"{path} holds no views of a latent: {error}") from error
    for name, values in taps.items():
        if (
            name not in MOVES
            or values.ndim != 3
            or values.shape != (len(_REACH) ** 2, *values.shape[1:2] * 2)
        ):
            raise EncoderError(f"{path}: {name!r} of shape {values.shape} is no view")
    return {name: LatentView(name, values.astype(np.float32)) for name, values in taps.items()}, encoder_id


def bundled(encoder_id: str) -> dict[str, LatentView]:
    """Return the views that ship for an encoder, none where it is another one."""
    path = bundled_folder() / FILE
    if not path.is_file():
        return {}
    views, made_for = load(path)
    return views if made_for == encoder_id else {}
