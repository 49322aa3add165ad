"""Batches of classes for training, read ahead by a thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AHEAD = 4
# Each has a random stream of its own, independent of the others.
_CLASSES, _MEMBERS, _CENTERS = range(3)

Integers = NDArray[np.int64]


class Rows(Protocol):
    """N rows sorted by class, such as the latents of `Pairs`; they are read ahead."""

    @property
    def offsets(self) -> Integers:
        """int64[C+1]; class c has the rows `offsets[c]` to `offsets[c+1]`."""

    def __getitem__(self, rows: Integers) -> NDArray[Any]:
        """Return the rows int64[B] as an array [B,…], which training sees as float32."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of one step, sorted by class.

    Attributes:
        latents: float32[B,n]; [B,…] where the rows are something else.
        labels: int64[B], numbers of the K classes that are trained on.
        centers: int64[S], ascending, the classes whose centers take part; None for all.
    """

    latents: Tensor
    labels: Tensor
    centers: Tensor | None


class Batches:
    """Makes the batch of every step, a function of the seed and the step alone.

    A pass takes every class at most once, in an order of its own; the classes at its end that do not fill a
    batch are skipped. With fewer classes than a batch takes, each batch has them all.

    Memory: `AHEAD` + 1 batches, and one order of the classes.
    """

    def __init__(
        self,
        source: Rows,
        classes: Integers,
        batch: int,
        per_class: int,
        negatives: int | None,
        seed: int,
        share: Callable[[int], slice] = slice,
    ) -> None:
        """Make batches of `batch` rows, `per_class` of each class.

        Args:
            source: of the rows.
            classes: int64[K], the classes to take; the k-th gets the label k.
            batch, per_class: rows of a batch, and of each class in it.
            negatives: how many other classes' centers take part, or None for all.
            seed: of the draws.
            share: which of a step's rows to read, by their number: by default all.
        """
        self._source = source
        self._starts = source.offsets[classes]
        self._sizes = source.offsets[classes + 1] - self._starts
        self._at_once = min(len(classes), batch // per_class)
        self._per_class, self._negatives, self._seed = per_class, negatives, seed
        self._share = share(self._at_once * per_class)
        self._order = functools.lru_cache(maxsize=1)(self._draw_order)
        self._pool = ThreadPoolExecutor(1, "batches")
        self._waiting: dict[int, Future[Batch]] = {}

    def get(self, step: int, steps: int) -> Batch:
        """Return the batch of a step, and start making those of the next steps, below `steps`."""
        for later in range(step, min(step + AHEAD + 1, steps)):
            if later not in self._waiting:
                self._waiting[later] = self._pool.submit(self.make, later)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        """Stop the thread that draws batches ahead."""
        self._pool.shutdown(cancel_futures=True)

    def rows(self, step: int) -> tuple[Integers, Integers]:
        """Return the rows of a step, ascending, and their labels, both int64[B]."""
        chosen = self._chosen(step)
        rng = np.random.default_rng((self._seed, _MEMBERS, step))
        members = _members(self._sizes[chosen], self._per_class, rng)
        rows = np.sort(self._starts[chosen, None] + members, axis=1).ravel()
        return rows, np.repeat(chosen, self._per_class)

    def make(self, step: int) -> Batch:
        """Make the batch of a step, or this process's share of it."""
        rows, labels = (x[self._share] for x in self.rows(step))
        # The rows ascend, so that a disk is read in one direction.
        latents = torch.from_numpy(self._source[rows].astype(np.float32))
        centers = None if self._negatives is None else torch.from_numpy(self._centers(step, self._negatives))
        return Batch(latents, torch.from_numpy(labels), centers)

    def _draw_order(self, number: int) -> Integers:
        return np.random.default_rng((self._seed, _CLASSES, number)).permutation(len(self._sizes))

    def _chosen(self, step: int) -> Integers:
        number, place = divmod(step, len(self._sizes) // self._at_once)
        start = place * self._at_once
        return np.sort(self._order(number)[start : start + self._at_once])

    def _centers(self, step: int, negatives: int) -> Integers:
        own = self._chosen(step)
        rng = np.random.default_rng((self._seed, _CENTERS, step))
        # Spare draws, one for each class of the batch, as these may be among the drawn ones.
        drawn = rng.choice(len(self._sizes), min(len(self._sizes), negatives + len(own)), replace=False)
        return np.sort(np.concatenate([own, drawn[~np.isin(drawn, own)][:negatives]]))


def _members(sizes: Integers, count: int, rng: np.random.Generator) -> Integers:
    """Draw `count` members of each class, int64[B/count,count]; repeated only where a class has fewer."""
    # In few calls: a thread that holds Python's lock for long would slow down the training beside it.
    keys = rng.random((len(sizes), max(count, int(sizes.max()))))
    keys[np.arange(keys.shape[1]) >= sizes[:, None]] = 1
    drawn = np.argsort(keys, axis=1)[:, :count]
    few = sizes < count
    drawn[few] = rng.integers(0, sizes[few, None], (int(few.sum()), count))
    return drawn
