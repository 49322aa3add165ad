"""The cohort of a W: pictures that say what any picture scores by chance.

Looks at an upload are not equal: a bland half of a collage lies near everything, the other half near nothing.
What a look scores in the cohort makes its scores comparable with those of the whole upload (`search.chance`).
A cohort holds what a search reads of references, and nothing that a picture could be drawn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Pictures of a cohort, where there are so many.
SIZE: Final = 1000
# Scores of a picture that are averaged, the best of them left out: the picture itself may be in the cohort.
BEST: Final = 10
# A smaller cohort says too little.
LEAST: Final = 10 * BEST
DESCRIPTORS, CROPS = "cohort", "cohort_crops"
# Squared length of a descriptor, with room for one that was stored in float16.
LONGEST: Final = 1.01


def chosen(count: int) -> NDArray[np.int64]:
    """Return which of so many pictures make a cohort, int64[B]: some at equal distances, or all of a few."""
    return np.linspace(0, max(count - 1, 0), min(SIZE, count)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Cohort:
    """B pictures, as references are.

    Attributes:
        descriptors: float16[B,m].
        crops: int8[B,c], see `crop_rows.CropRows`; None where W allows none.
    """

    descriptors: NDArray[np.float16]
    crops: NDArray[np.int8] | None = None

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what a file of W keeps of it."""
        held: dict[str, NDArray[Any]] = {DESCRIPTORS: self.descriptors}
        return held if self.crops is None else held | {CROPS: self.crops}

    @staticmethod
    def read(tensors: Mapping[str, NDArray[Any]], columns: int) -> Cohort | None:
        """Return the cohort among the tensors of a file; None where there is none.

        Args:
            tensors: of the file.
            columns: m of W.

        Raises:
            ValueError: they are no cohort of this W.
        """
        descriptors, crops = tensors.get(DESCRIPTORS), tensors.get(CROPS)
        if descriptors is None and crops is None:
            return None
        if descriptors is None or descriptors.dtype != np.float16 or descriptors.shape[1:] != (columns,):
            raise ValueError(f"{DESCRIPTORS} must be descriptors in float16, of {columns} numbers each")
        if len(descriptors) < LEAST:
            raise ValueError(f"{DESCRIPTORS} must be of {LEAST} pictures or more, not {len(descriptors)}")
        wide = descriptors.astype(np.float32)
        if not np.vecdot(wide, wide).max() <= LONGEST:  # NaN fails, too
            raise ValueError(f"{DESCRIPTORS} holds descriptors that are not finite, or longer than 1")
        if crops is not None and (crops.dtype != np.int8 or crops.shape[:-1] != (len(descriptors),)):
            raise ValueError(f"{CROPS} must be a row of int8 for each picture of {DESCRIPTORS}")
        return Cohort(descriptors, crops)
