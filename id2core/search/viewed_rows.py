"""What references keep for views of uploads, in a shard: rows of crops, and the bits of their detail."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.encoders import views
from id2core.errors import DatasetError
from id2core.search.flat import FlatIndex
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.transforms import crop_rows
from id2core.transforms.crop_rows import CROPS, ROW_BYTES, Crop
from id2core.transforms.reference_rows import MOVED_COLUMNS

_log = logging.getLogger("id2")

COLUMNS: Final = ("crops", "detail")
_MADE_ANEW: Final = (
    "Make them from the stored latents: id2 reproject --out OUT --transform W --switch, "
    "with the --out and the W that they are of (auto for the bundled W). Or search with --views none"
)


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


@dataclass(frozen=True, eq=False)
class ViewedRows:
    """Rows of N references.

    Attributes:
        crops: int8[N,c], see `crop_rows.CropRows`.
        detail: uint8[N,n/8], see `details.detail_bits`; None for a background, which needs none.
    """

    crops: NDArray[np.int8]
    detail: NDArray[np.uint8] | None

    def among(self, rows: NDArray[np.int64]) -> ViewedRows:
        """Return those of some rows, int64[n]."""
        return ViewedRows(self.crops[rows], None if self.detail is None else self.detail[rows])

    @functools.cached_property
    def by_crop(self) -> list[tuple[Crop, RowIndex]]:
        """The rows of each crop."""
        parts = np.split(self.crops, len(CROPS), axis=1)
        return [(crop, RowIndex.of(part)) for crop, part in zip(CROPS, parts, strict=True)]


def row_bytes(latent_size: int) -> int:
    """Return the bytes that a reference takes in the memory of a worker for its rows and their indexes."""
    return ROW_BYTES + latent_size // 8 + 4 * (ROW_BYTES + MOVED_COLUMNS)


def read(tables: Sequence[pa.Table], uri: str) -> ViewedRows:
    """Return the rows of tables of references, in their order.

    Args:
        tables: with `COLUMNS`.
        uri: of the data set, for errors.

    Raises:
        DatasetError: some references have none, or rows of several sizes.
    """
    crops = _bytes(tables, "crops")
    if crops is None:
        raise DatasetError(_without_rows(uri))
    if crops.shape[1] != ROW_BYTES:
        raise DatasetError(_other_rows(uri))
    return ViewedRows(crops.view(np.int8), _bytes(tables, "detail"))


def check(references: Dataset) -> None:
    """Raise DatasetError where the first references have no rows, or others: `read` checks all of them."""
    if (first := references.first_filled) is None:
        return
    crops = references.row_group(first, 0, ["crops"])["crops"]
    if crops.null_count:
        raise DatasetError(_without_rows(references.uri))
    if len(crops[0].as_py()) != ROW_BYTES:
        raise DatasetError(_other_rows(references.uri))


def warn_of_other_looks(uploads: Dataset) -> None:
    """Warn where another version, or nobody, looked for frames in the earliest uploads."""
    filled = [file for file in uploads.files if file.rows]
    if not filled:
        return
    earliest = min(filled, key=lambda file: file.segments)
    finders = uploads.row_group(earliest, 0, ["finder"])["finder"]
    others = [f"the rules {name}" for name in sorted({*finders.drop_null().to_pylist()} - {views.FINDER})]
    # Insets hold latents: they are read only where a version without `finder` may have looked, or nobody did.
    if finders.null_count:
        unlooked = uploads.row_group(earliest, 0, ["insets"])["insets"].null_count
        others += ["the rules of an earlier version"] * (unlooked < finders.null_count)
        others += ["no rules (--views none)"] * (unlooked > 0)
    if others:
        _log.warning(
            "%s has uploads in which frames and collages were looked for by %s. This version has the rules "
            "%s, which may find copies that are missed so: embed the uploads again into another --out",
            uploads.uri,
            " and ".join(others),
            views.FINDER,
        )


def _without_rows(uri: str) -> str:
    return (
        f"{uri} has references without rows for views of uploads, made by an earlier version or with "
        f"--views none. {_MADE_ANEW}"
    )


def _other_rows(uri: str) -> str:
    return f"{uri} has rows for the views of another version of this program. {_MADE_ANEW}"


def _bytes(tables: Sequence[pa.Table], name: str) -> NDArray[np.uint8] | None:
    """Return a column of tables as uint8[N,b]; None where some rows have none, or sizes differ."""
    parts = [part for table in tables if (part := schemas.column_to_bytes(table[name])) is not None]
    alike = len(parts) == len(tables) and len({part.shape[1] for part in parts if len(part)}) <= 1
    return np.concatenate([part for part in parts if len(part)] or parts[:1]) if alike and parts else None
