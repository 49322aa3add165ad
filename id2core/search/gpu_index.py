"""The exact index on GPUs: float16 products propose, float32 sums decide.

A GPU multiplies float16 many times faster than float32, and choosing the best of millions of scores takes it
longer than making them. So references form groups, and of each group one number is kept, its best score in
float16. The best references are in the groups with the best numbers. Only their rows are scored in float32.
What rounding to float16 can hide is bounded. A query for which the bound leaves a doubt meets every reference
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from id2core.errors import SearchError
from id2core.search import scoring

# References of a group.
GROUP: Final = 32
# Groups and references beyond k that are scored in float32: enough that few queries stay in doubt.
_MARGIN: Final = 32
# Queries that are searched at once: with more, products become no faster.
_QUERIES: Final = 4096
# Queries whose candidates are scored at once.
_SCORED: Final = 512
# Bytes of float16 scores at a time, and of the best scores of all groups.
_SCORES: Final = 1 << 30
_NUMBERS: Final = 4 << 30
# Rows that are rounded at once.
_CONVERTED: Final = 1 << 18
# Relative error of a number that is rounded to float16.
_ROUNDING: Final = 2.0**-11


class GpuIndex:
    """Descriptors on one or more GPUs, in float32 and float16: 6 bytes for each number.

    Several GPUs hold a part of the rows each.
    """

    def __init__(self, descriptors: NDArray[np.float32], devices: Sequence[str] = ()) -> None:
        """Copy descriptors float32[N,m], rows of length 1, to GPUs.

        Args:
            descriptors: of the references.
            devices: torch's names of GPUs; by default, all that torch sees.

        Raises:
            SearchError: they do not fit.
        """
        # With it, cuBLAS may add in float16, which `_doubt` does not cover.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        names = devices or [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        names = names[: max(1, len(descriptors))]  # none is left without a row
        self._starts = [len(descriptors) * i // len(names) for i in range(len(names))]
        parts = np.split(descriptors, self._starts[1:])
        try:
            self._parts = [_Part.of(part, name) for part, name in zip(parts, names, strict=True)]
        except torch.OutOfMemoryError as error:
            raise SearchError(
                f"{len(descriptors):,} references do not fit in the memory of the GPU: lower ID2_SHARD_MEMORY"
            ) from error

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best scores float32[Q,k] of queries float32[Q,m], best first, and their rows.

        k is at most N. Scores are summed in float32.
        """
        if len(self._parts) == 1:
            return self._parts[0].search(queries, k)
        with ThreadPoolExecutor(len(self._parts)) as pool:
            found = list(pool.map(lambda part: part.search(queries, min(k, len(part))), self._parts))
        scores = np.concatenate([s for s, _ in found], axis=1)
        rows = np.concatenate([r + start for (_, r), start in zip(found, self._starts, strict=True)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def pairs(self, queries: NDArray[np.float32], rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the exact scores of each query with some rows, float32[Q,K]; see `scoring.pairs`."""
        if len(self._parts) == 1:
            return self._parts[0].pairs(queries, rows)
        scores = np.full(rows.shape, -np.inf, np.float32)
        for part, start in zip(self._parts, self._starts, strict=True):
            own = (rows >= start) & (rows < start + len(part))
            made = part.pairs(queries, np.where(own, rows - start, -1))
            scores[own] = made[own]
        return scores


@dataclass(frozen=True)
class _Part:
    """References on one GPU.

    Attributes:
        full: float32[N,m].
        half: float16[N,m], the same, rounded.
        error: the largest distance of a row from its rounded one.
    """

    full: Tensor
    half: Tensor
    error: float

    @staticmethod
    def of(descriptors: NDArray[np.float32], device: str) -> _Part:
        full = torch.from_numpy(np.ascontiguousarray(descriptors)).to(device)
        half = torch.empty(full.shape, dtype=torch.float16, device=device)
        error = 0.0
        for start in range(0, len(full), _CONVERTED):
            rows = slice(start, start + _CONVERTED)
            half[rows] = full[rows]
            error = max(error, float((full[rows] - half[rows]).norm(dim=1).max()))
        return _Part(full, half, error)

    def __len__(self) -> int:
        return len(self.full)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        at_once = min(_QUERIES, max(1, _NUMBERS * GROUP // (2 * max(1, len(self)))))
        with torch.inference_mode():
            for start in range(0, len(queries), at_once):
                some = slice(start, start + at_once)
                x = torch.from_numpy(np.ascontiguousarray(queries[some])).to(self.full.device)
                best, where = self._best(x, k)
                scores[some], rows[some] = best.cpu().numpy(), where.cpu().numpy()
        return scores, rows

    def pairs(self, queries: NDArray[np.float32], rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        scores = np.empty(rows.shape, np.float32)
        device = self.full.device
        with torch.inference_mode():
            for start in range(0, len(rows), _SCORED):
                some = slice(start, start + _SCORED)
                where = torch.from_numpy(np.ascontiguousarray(rows[some], np.int64)).to(device)
                left = _on_grid(torch.from_numpy(np.ascontiguousarray(queries[some])).to(device))
                right = _on_grid(self.full[where.clamp(min=0)])
                made = torch.bmm(right, left[:, :, None])[:, :, 0].float()
                scores[some] = made.masked_fill(where < 0, -torch.inf).cpu().numpy()
        return scores

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best scores of queries float32[Q,m], float32[Q,k], and their rows, int64[Q,k]."""
        depth = k + _MARGIN
        if depth * GROUP >= len(self):
            return self._among_all(queries, k)
        short = queries.half()
        groups, limit = self._groups(short, depth)
        pieces = [
            self._among(queries[i : i + _SCORED], short[i : i + _SCORED], groups[i : i + _SCORED], k)
            for i in range(0, len(queries), _SCORED)
        ]
        scores, rows, left = (torch.cat(column) for column in zip(*pieces, strict=True))
        limit = torch.maximum(limit, left)
        in_doubt = (limit + self._doubt(queries, short, limit) >= scores[:, -1]).nonzero()[:, 0]
        if len(in_doubt):
            scores[in_doubt], rows[in_doubt] = self._among_all(queries[in_doubt], k)
        return scores, rows

    def _doubt(self, queries: Tensor, short: Tensor, scores: Tensor) -> Tensor:
        """Return how far float16 scores of about this size can be from those in float32, float32[Q]."""
        rounded: Tensor = (queries - short).norm(dim=1) + self.error
        summed = 2 * scoring.tolerance(self.full.shape[1])
        doubt: Tensor = scoring.LONGEST**0.5 * rounded + _ROUNDING * scores.abs() + summed
        return doubt

    @property
    def _block(self) -> int:
        """Rows whose scores are made at once, whole groups."""
        return _SCORES // (2 * _QUERIES) // GROUP * GROUP

    def _groups(self, short: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return the best groups of float16 queries, int64[Q,depth], and the number of the last, float32[Q].

        The rows of a group are far from each other, so that its best is found along contiguous scores.
        """
        grouped = len(self) // GROUP * GROUP
        best = short.new_empty(len(short), grouped // GROUP)
        for start in range(0, grouped, self._block):
            rows = min(self._block, grouped - start)
            scores = short @ self.half[start : start + rows].T
            place = slice(start // GROUP, (start + rows) // GROUP)
            torch.amax(scores.view(len(short), GROUP, -1), 1, out=best[:, place])
        numbers, groups = best.topk(depth)
        return groups, numbers[:, -1].float()

    def _rows_of(self, groups: Tensor) -> Tensor:
        """Return the rows of groups int64[Q,g], int64[Q,g·GROUP], and those that are in no group."""
        grouped = len(self) // GROUP * GROUP
        start = groups * GROUP // self._block * self._block
        stride = (grouped - start).clamp(max=self._block) // GROUP
        first = start + groups - start // GROUP
        every = torch.arange(GROUP, device=groups.device)
        rows = (first[:, :, None] + stride[:, :, None] * every).flatten(1)
        rest = torch.arange(grouped, len(self), device=groups.device)
        return torch.cat([rows, rest.expand(len(groups), -1)], 1)

    def _among(self, queries: Tensor, short: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k best in some groups, and the best score in float16 that a row left out may have."""
        rows = self._rows_of(groups)
        scores = torch.bmm(self.half[rows], short[:, :, None])[:, :, 0]
        found, places = scores.topk(k + _MARGIN)
        rows = rows.gather(1, places)
        exact = torch.bmm(self.full[rows], queries[:, :, None])[:, :, 0]
        best, order = exact.topk(k)
        return best, rows.gather(1, order), found[:, -1].float()

    def _among_all(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best of all rows, in float32."""
        scores = queries.new_empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        block = max(k, self._block // 2)
        for start in range(0, len(self), block):
            made = queries @ self.full[start : start + block].T
            best, where = made.topk(min(k, made.shape[1]))
            scores, order = torch.cat([scores, best], 1).topk(min(k, scores.shape[1] + best.shape[1]))
            rows = torch.cat([rows, where + start], 1).gather(1, order)
        return scores, rows


def _on_grid(descriptors: Tensor) -> Tensor:
    """Return descriptors, rounded as for exact scores, in float64."""
    return (descriptors.double() * scoring.STEPS).round() / scoring.STEPS
