"""Scatter matrices of linear discriminant analysis, gathered block by block and in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Sums over pairs and origins, from which the scatter within and between classes follows.

    A block is multiplied in float32 and summed in float64, so that the number and order of blocks do not
    show in the result beyond float32. Moments of parts of the data can be gathered in other processes and
    merged. Memory: two float64[n,n] and one block's float32[n,n].

    Attributes:
        pairs: differences added so far.
        origins: origins added so far.
    """

    def __init__(self, n: int) -> None:
        self.pairs = self.origins = 0
        self._differences = np.zeros((n, n))
        self._products = np.zeros((n, n))
        self._sum = np.zeros(n)

    def add(self, differences: NDArray[Any], origins: NDArray[Any]) -> None:
        """Add a block of differences and origins to the sums.

        Args:
            differences: float[P,n], latents of translations less those of their origins; P may be 0.
            origins: float[O,n], latents of origins, each once; O may be 0.
        """
        _add_products(self._differences, differences)
        _add_products(self._products, origins)
        self._sum += origins.sum(axis=0, dtype=np.float64)
        self.pairs += len(differences)
        self.origins += len(origins)

    def merge(self, other: Moments) -> None:
        """Add the sums of `other`, which come from other data."""
        self._differences += other._differences
        self._products += other._products
        self._sum += other._sum
        self.pairs += other.pairs
        self.origins += other.origins

    @property
    def mean(self) -> NDArray[np.float64]:
        """Return the mean origin, float64[n]."""
        return self._sum / max(1, self.origins)

    @property
    def within_scatter(self) -> NDArray[np.float64]:
        """Return S_W, the mean of d·dᵀ over all differences d added: float64[n,n]."""
        return self._differences / max(1, self.pairs)

    @property
    def between_scatter(self) -> NDArray[np.float64]:
        """Return S_B, the covariance of origins about their mean: float64[n,n]."""
        return self._products / max(1, self.origins) - np.outer(self.mean, self.mean)


def _add_products(total: NDArray[np.float64], rows: NDArray[Any]) -> None:
    if len(rows):
        x = np.ascontiguousarray(rows, np.float32)
        total += x.T @ x  # NumPy computes one triangle only, as both sides are the same array
