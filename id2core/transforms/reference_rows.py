"""What a reference keeps beside its descriptor, so that uploads meet it under more views than the whole.

Both come from its latent: rows of its crops (`crop_rows`), and its fine detail (`details`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from id2core.errors import TransformError
from id2core.transforms import cohorts, crop_rows, details
from id2core.transforms.cohorts import Cohort
from id2core.transforms.crop_rows import CropRows
from id2core.transforms.linear import Multiply, Transform

# Columns of a descriptor that meet a mirrored or turned upload: the first say most, and tolerate a shift.
MOVED_COLUMNS: Final = 160
_METHOD, _CLOSED_FORM = "method", "closed form"


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """Makes what references keep beside their descriptors.

    Attributes:
        crops: makes rows of crops.
    """

    crops: CropRows

    @classmethod
    def of(cls, transform: Transform, latent_size: int) -> ReferenceRows | None:
        """Return what makes the rows under a W; None for one that has none.

        Args:
            transform: of the descriptors beside them. Its columns must be ordered, as those of a closed form.
            latent_size: n.
        """
        return cls(CropRows(transform)) if has_rows(transform, latent_size) else None

    def __call__(
        self, latents: NDArray[Any], multiply: Multiply = np.matmul
    ) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """Return the rows of crops, int8[R,c], and the bits of detail, uint8[R,n/8].

        Args:
            latents: float[R,n].
            multiply: as of `Transform.apply`.
        """
        return self.crops(latents, multiply), details.detail_bits(latents)


def with_cohort(transform: Transform, latents: NDArray[Any]) -> Transform:
    """Return a W with its cohort; without one for a network in its place, and for too few pictures.

    Args:
        transform: W, or a network.
        latents: float[B,n], of whole pictures. W may have learned from them.
    """
    if type(transform) is not Transform or len(latents) < cohorts.LEAST:
        return transform
    make = ReferenceRows.of(transform, latents.shape[1])
    descriptors = transform.apply(latents).astype(np.float16)
    return replace(transform, cohort=Cohort(descriptors, make.crops(latents) if make else None))


def has_rows(transform: Transform, latent_size: int) -> bool:
    """Return whether a W and the latents of n = `latent_size` numbers allow such rows."""
    if type(transform) is not Transform or transform.weights is None:
        return False
    size, columns = transform.weights.shape
    is_ordered = transform.metadata.get(_METHOD) == _CLOSED_FORM
    return is_ordered and size == latent_size and sizes_allow(latent_size, columns)


def sizes_allow(latent_size: int, columns: int) -> bool:
    """Return whether latents of so many numbers, and a W of so many columns, allow such rows."""
    try:
        side = crop_rows.side_of(latent_size)
    except TransformError:
        return False
    return side >= 8 and columns >= MOVED_COLUMNS
