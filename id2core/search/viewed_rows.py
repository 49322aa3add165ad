"""What references keep for views of uploads, in a shard: rows of crops, and the bits of their detail."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import DatasetError
from id2core.search import indexes
from id2core.search.flat import FlatIndex
from id2core.search.topk import Places
from id2core.store import schemas
from id2core.transforms import crop_rows
from id2core.transforms.crop_rows import CROPS, Crop
from id2core.transforms.reference_rows import MOVED_COLUMNS

COLUMNS: Final = ("crops", "detail")


@dataclass(frozen=True, eq=False)
class RowIndex:
    """A row of a few numbers for each reference, and the index over them.

    Attributes:
        rows: float32[N,c], of length 1.
        index: over them.
    """

    rows: NDArray[np.float32]
    index: FlatIndex

    @classmethod
    def of(cls, numbers: NDArray[Any]) -> RowIndex:
        """Build the index over rows of any length."""
        rows = crop_rows.unit(numbers)
        return cls(rows, FlatIndex(rows))

    def best(
        self, heads: NDArray[np.float32], places: Places, k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return exact products float32[Q,k] of first columns float32[Q,c] with the best rows, int64[Q,k]."""
        return indexes.best(self.index, heads, self.rows, places, k)


@dataclass(frozen=True, eq=False)
class ViewedRows:
    """Rows of N references.

    Attributes:
        crops: int8[N,c], see `crop_rows.CropRows`.
        detail: uint8[N,n/8], see `details.detail_bits`.
    """

    crops: NDArray[np.int8]
    detail: NDArray[np.uint8]

    def among(self, rows: NDArray[np.int64]) -> ViewedRows:
        """Return those of some rows, int64[n]."""
        return ViewedRows(self.crops[rows], self.detail[rows])

    @functools.cached_property
    def by_crop(self) -> list[tuple[Crop, RowIndex]]:
        """The rows of each crop."""
        parts = np.split(self.crops, len(CROPS), axis=1)
        return [(crop, RowIndex.of(part)) for crop, part in zip(CROPS, parts, strict=True)]

    @functools.cached_property
    def _heads(self) -> list[RowIndex]:
        return []

    def heads(self, descriptors: NDArray[np.float32]) -> RowIndex:
        """Return the first columns of the descriptors float32[N,m] of these references."""
        if not self._heads:
            self._heads.append(RowIndex.of(descriptors[:, :MOVED_COLUMNS]))
        return self._heads[0]


def row_bytes(latent_size: int) -> int:
    """Return the bytes that a reference takes in the memory of a worker for its rows and their indexes."""
    stored = len(CROPS) * crop_rows.COLUMNS
    return stored + latent_size // 8 + 4 * (stored + MOVED_COLUMNS)


def read(tables: Sequence[pa.Table], uri: str) -> ViewedRows:
    """Return the rows of tables of references, in their order.

    Args:
        tables: with `COLUMNS`.
        uri: of the data set, for errors.

    Raises:
        DatasetError: some references have none, or rows of several sizes.
    """
    held = {name: [schemas.column_to_bytes(table[name]) for table in tables] for name in COLUMNS}
    parts = [part for each in held.values() for part in each]
    if any(part is None for part in parts):
        raise DatasetError(
            f"{uri} has references without rows for views of uploads, made by an earlier version or with "
            "--views none: run id2 reproject with the --out that they are in, or search with --views none"
        )
    crops, detail = (np.concatenate([part for part in held[name] if part is not None]) for name in COLUMNS)
    if crops.shape[1] != len(CROPS) * crop_rows.COLUMNS:
        raise DatasetError(f"{uri} has rows for other views than this version searches: run id2 reproject")
    return ViewedRows(crops.view(np.int8), detail)
