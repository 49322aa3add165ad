"""W in closed form: linear discriminant analysis (LDA) with shrinkage.

A class is an origin with its translations. The paper (Section 4) wants W with (E(g) − E(o)) · W ≈ 0 for
every origin o and translation g, and its loss keeps origins apart. That is LDA with the scatter within
classes taken about the origin, S_W = E[(g−o)(g−o)ᵀ], and the covariance of origins as the scatter between
classes, S_B: the best directions are those of largest ratio ρ of the generalized eigenproblem

    S_B v = ρ (S_W + λ·s·I) v,    s = tr(S_W)/n,

scaled to equal scatter within classes, vᵀ (S_W + λ·s·I) v = s. λ is the shrinkage: the fewer pairs there are,
the larger it should be; a very large one gives the principal components of origins. A column of W is

    v · √(ρ/(ρ+½)) · (ρ+½)^power.

ρ/(ρ+½) is the share of the spread of images along v that is due to their origins: directions that say little
about the origin count little. At power 0 a translation errs by as much in all others. Power −½ levels the
spread of images instead, so that no direction dominates the cosine.

The cosine is about 0, and W has no bias that would subtract the mean μ of origins. Where W is `centered`, the
direction μ·W is taken out of it: then latent · W = (latent − μ) · W, at the price of one direction of m. It
pays where translations change the contrast: that scales latent − μ, which the cosine then does not see. What
all translations have in common, the mean of g − o, is part of S_W: differences are not centered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import JsonValue

from id2core.errors import ClosedFormError
from id2core.evaluation import ranking
from id2core.runs.progress import OnStage, silent
from id2core.training.moments import Moments
from id2core.training.pairs import Pairs
from id2core.transforms.linear import Transform

SHRINKAGES = (0.01, 0.1, 1.0, 10.0, 100.0)
POWERS = (-0.75, -0.5, -0.25, 0.0)
BLOCK_ROWS = 8192
MOST_QUERIES = 1000
MOST_REFERENCES = 10_000
BATCH_ROWS = 1024

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """How W is made of the directions; see the head of this file."""

    power: float
    centered: bool


@dataclass(frozen=True)
class Candidate:
    """Settings of a W, and what it reached on held-out classes.

    Attributes:
        score: the mean of 1/rank, the paper's mAP.
        separation: decides between equal scores; see `lookup`.
    """

    shrinkage: float
    power: float
    centered: bool
    score: float
    separation: float


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A fitted W.

    Attributes:
        transform: W, float32[n,m], the direction of largest ratio first.
        shrinkage, power, centered: the settings of this W.
        eigenvalues: float32[m], the ratios ρ, falling. Origins that span less than m directions leave
            zeros, and columns of W that are zero.
        validation: every candidate with its score; empty where nothing was held out.
    """

    transform: Transform
    shrinkage: float
    power: float
    centered: bool
    eigenvalues: Matrix
    validation: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class Directions:
    """The solution for one shrinkage.

    Attributes:
        vectors: float32[n,m], scaled to equal scatter within classes.
        ratios: float32[m], ρ, falling, none negative.
        mean: float32[m], the mean origin along the vectors.
        shrinkage: λ.
    """

    vectors: Matrix
    ratios: Matrix
    mean: Matrix
    shrinkage: float

    def shaped(self, along: Matrix, shape: Shape) -> Matrix:
        """Turn coordinates along the vectors, or the vectors themselves, into those of W: float32[…,m]."""
        level = self.ratios + 0.5
        weights = np.sqrt(self.ratios / level) * level ** np.float32(shape.power)
        y = along * weights
        axis = self.mean * weights
        length = float(np.linalg.norm(axis))
        if shape.centered and length > 0:
            axis /= length
            y -= np.outer(y @ axis, axis)
        return np.asarray(y)


def fit(
    pairs: Pairs,
    m: int = 512,
    shrinkage: float | None = None,
    power: float | None = None,
    centered: bool | None = None,
    *,
    validation_share: float = 0.1,
    block_rows: int = BLOCK_ROWS,
    progress: OnStage = silent,
) -> ClosedForm:
    """Fit W to pairs; settings that are not given are chosen on held-out classes.

    The classes of `pairs.held_out(validation_share)` are no part of W, so that it can be compared with
    another W on them. At most 1,000 of their translations are looked up among at most 10,000 origins: their
    own and others, those of training too.

    Memory beside the pairs: about 10 matrices of float32[n,n] and 3 blocks of float32[block_rows,n].

    Args:
        pairs: the classes.
        m: columns of W, at most n.
        shrinkage: λ, above 0; by default the best of `SHRINKAGES`.
        power: by default the best of `POWERS`.
        centered: by default the better of the two.
        validation_share: of the classes; 0 holds none out, then all three settings must be given.
        block_rows: latents that are read at once.
        progress: called with "statistics" and latents read, then with "shrinkage" and values tried.

    Raises:
        ClosedFormError: a setting is out of range, or the pairs are too few or too much alike.
        PairsError: the share is out of range.
    """
    _check(pairs, m, shrinkage)
    held_out = pairs.held_out(validation_share)
    shrinkages = SHRINKAGES if shrinkage is None else (shrinkage,)
    shapes = [
        Shape(p, c)
        for p in (POWERS if power is None else (power,))
        for c in ((False, True) if centered is None else (centered,))
    ]
    _check_held_out(held_out, choose=len(shrinkages) * len(shapes) > 1)
    trial = Trial.of(pairs, held_out) if held_out.any() else None
    moments = gather(pairs, ~held_out, block_rows, progress)
    used = {"origins": moments.origins, "pairs": moments.pairs}
    solved = _solved(moments, m, shrinkages, progress)
    best, shape, tried = _best(solved, shapes, trial)
    facts: dict[str, JsonValue] = {
        **pairs.ids,
        "method": "closed form",
        "shrinkage": best.shrinkage,
        "power": shape.power,
        "centered": shape.centered,
        "validation_map": max((c.score for c in tried), default=None),
        "data": pairs.digest,
        **used,
    }
    weights = best.shaped(best.vectors, shape)
    return ClosedForm(
        Transform(weights, facts), best.shrinkage, shape.power, shape.centered, best.ratios, tuple(tried)
    )


def gather(
    pairs: Pairs,
    classes: NDArray[np.bool_],
    block_rows: int = BLOCK_ROWS,
    progress: OnStage = silent,
) -> Moments:
    """Gather the moments of classes in one pass over the latents.

    Args:
        pairs: the classes.
        classes: bool[C], which of them count.
        block_rows: latents that are read at once; a class may lie in several blocks.
        progress: called with "statistics", and how many latents of how many were read.
    """
    rows, n = pairs.latents.shape
    moments = Moments(n)
    none = np.empty((0, n), np.float32)
    heads = pairs.offsets[:-1][classes]
    for start in range(0, len(heads), block_rows):
        moments.add(none, pairs.latents[heads[start : start + block_rows]])
    buffer = np.empty((min(block_rows, rows), n), np.float32)  # a new one each time costs more than the sums
    for start in range(0, rows, block_rows):
        block = slice(start, start + block_rows)
        labels = pairs.labels[block]
        first, last = int(labels[0]), int(labels[-1])
        origins = pairs.latents[pairs.offsets[first : last + 1]].astype(np.float32)
        translated = np.flatnonzero(classes[labels] & ~pairs.is_origin[block])
        differences = buffer[: len(translated)]
        np.take(origins, labels[translated] - first, axis=0, out=differences, mode="clip")
        np.subtract(pairs.latents[block][translated], differences, out=differences)
        moments.add(differences, none)
        progress("statistics", min(start + block_rows, rows), rows)
    return moments


def solve(moments: Moments, m: int, shrinkages: Sequence[float]) -> Iterator[Directions]:
    """Yield the directions for each shrinkage, in float32.

    Args:
        moments: of n numbers, from at least two origins.
        m: directions, at most n.
        shrinkages: values of λ, above 0.

    Raises:
        ClosedFormError: origins are all alike, no translation differs from its origin, a latent is not
            finite, or a shrinkage is too small for float32.
    """
    within, between, mean = moments.within_scatter, moments.between_scatter, moments.mean
    scale = float(np.trace(within)) / len(within)
    if not (0 < scale < np.inf and 0 < np.trace(between) < np.inf):
        raise ClosedFormError(
            "origins are all alike, translations do not differ from them, or latents are not finite: there "
            "is no W to find; look at the pictures and embed them again"
        )
    scaled_within, scaled_between = _single(within / scale), _single(between / scale)
    del within, between
    for shrinkage in shrinkages:
        vectors, ratios = _leading(scaled_within, scaled_between, m, shrinkage)
        yield Directions(vectors, ratios, (mean @ vectors).astype(np.float32), shrinkage)


def _single(matrix: NDArray[np.float64]) -> Matrix:
    """Return a float32 matrix that LAPACK takes without a copy."""
    return np.asfortranarray(matrix, np.float32)


def _leading(within: Matrix, between: Matrix, m: int, shrinkage: float) -> tuple[Matrix, Matrix]:
    """Return vectors with scatter 1 within classes, and their ratios.

    These are LAPACK's steps (Cholesky, then a standard problem) one by one: the driver that takes them in one
    call finds a subset of the vectors by inverse iteration, which is slow.
    """
    n = len(within)
    shrunk = within.copy(order="F")
    shrunk[np.diag_indices(n)] += np.float32(shrinkage)
    try:
        lower = scipy.linalg.cholesky(shrunk, lower=True, overwrite_a=True, check_finite=False)
        half = scipy.linalg.solve_triangular(lower, between, lower=True, check_finite=False)
        white = scipy.linalg.solve_triangular(lower, half.T, lower=True, check_finite=False)
        del half
        ratios, vectors = scipy.linalg.eigh(
            white, subset_by_index=(n - m, n - 1), overwrite_a=True, check_finite=False
        )
    except scipy.linalg.LinAlgError as error:
        raise ClosedFormError(
            f"shrinkage {shrinkage:g} is too small: {error}; choose a larger one"
        ) from error
    vectors = scipy.linalg.solve_triangular(lower, vectors, trans="T", lower=True, check_finite=False)
    return np.ascontiguousarray(vectors[:, ::-1]), np.maximum(ratios[::-1], 0)


def _check(pairs: Pairs, m: int, shrinkage: float | None) -> None:
    n = pairs.latents.shape[1]
    if not 1 <= m <= n:
        raise ClosedFormError(f"m is {m}: W of latents of {n} numbers has from 1 to {n} columns")
    if shrinkage is not None and not 0 < shrinkage < np.inf:
        raise ClosedFormError(f"shrinkage is {shrinkage}: choose more than 0; 0.01 is next to none")


def _check_held_out(held_out: NDArray[np.bool_], choose: bool) -> None:
    training = int((~held_out).sum())
    if training < 2 or (choose and not held_out.any()):
        raise ClosedFormError(
            f"of {len(held_out)} origins, {len(held_out) - training} are held out for validation and "
            f"{training} train W: change validation_share, give shrinkage, power and centered, or translate "
            "more origins"
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """Held-out translations and the origins among which each is looked up: theirs, and others.

    Attributes:
        queries: float16[Q,n], at most 1,000 translations, at even distances.
        references: float16[R,n], at most 10,000 origins.
        own: int64[Q], which of these is each one's own.
    """

    queries: NDArray[np.float16]
    references: NDArray[np.float16]
    own: NDArray[np.int64]

    @staticmethod
    def of(pairs: Pairs, held_out: NDArray[np.bool_]) -> Trial:
        """Make the trial of the held-out classes, bool[C], of which there must be one."""
        rows = _spread(np.flatnonzero(held_out[pairs.labels] & ~pairs.is_origin), MOST_QUERIES)
        asked = np.unique(pairs.labels[rows])
        others = np.setdiff1d(np.arange(len(held_out)), asked)
        classes = np.sort(np.concatenate([asked, _spread(others, MOST_REFERENCES - len(asked))]))
        return Trial(
            np.asarray(pairs.latents[rows]),
            np.asarray(pairs.latents[pairs.offsets[classes]]),
            np.searchsorted(classes, pairs.labels[rows]),
        )

    def score(self, transform: Transform) -> tuple[float, float]:
        """Return mAP and separation, see `lookup`."""
        queries, references = (transform.apply(x) for x in (self.queries, self.references))
        return lookup(queries, references, self.own)

    def scores(self, directions: Directions, shapes: Sequence[Shape]) -> Iterator[Candidate]:
        """Yield every shape of W with its score; the latents are multiplied once for all."""
        queries, references = (_project(x, directions.vectors) for x in (self.queries, self.references))
        for shape in shapes:
            q, r = (Transform().apply(directions.shaped(x, shape)) for x in (queries, references))
            yield Candidate(directions.shrinkage, shape.power, shape.centered, *lookup(q, r, self.own))


def _spread(numbers: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most `most` of the numbers, at even distances."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]


def _project(latents: NDArray[np.float16], vectors: Matrix) -> Matrix:
    steps = range(0, len(latents), BATCH_ROWS)
    return np.concatenate([latents[i : i + BATCH_ROWS].astype(np.float32) @ vectors for i in steps])


def lookup(queries: Matrix, references: Matrix, own: NDArray[np.int64]) -> tuple[float, float]:
    """Score an exact search whose answers are known.

    Args:
        queries: float32[Q,m], rows of length 1.
        references: float32[R,m], rows of length 1.
        own: int[Q], the true reference of each query.

    Returns:
        The mean of 1/rank, where at equal scores a false reference is ahead of the true one; and the mean
        separation: by how many standard deviations the true reference's score lies above those of all. Many
        a W makes no error among the few references at hand, but among a million the separation counts.
    """
    ranked = separated = 0.0
    for start in range(0, len(queries), BATCH_ROWS):
        scores = queries[start : start + BATCH_ROWS] @ references.T
        block_own = own[start : start + BATCH_ROWS]
        true = np.take_along_axis(scores, block_own[:, None], 1)
        ranked += float((1 / ranking.ranks_of(scores, block_own)).sum())
        mean = scores.mean(axis=1)
        variance = np.einsum("ij,ij->i", scores, scores) / len(references) - mean**2
        spread = np.sqrt(np.maximum(variance, 1e-6))  # float32 is not exact enough for less
        separated += float(((true[:, 0] - mean) / spread).sum())
    return ranked / len(queries), separated / len(queries)


def _solved(moments: Moments, m: int, shrinkages: Sequence[float], progress: OnStage) -> Iterator[Directions]:
    for count, directions in enumerate(solve(moments, m, shrinkages), start=1):
        progress("shrinkage", count, len(shrinkages))
        yield directions


def _best(
    solved: Iterator[Directions], shapes: Sequence[Shape], trial: Trial | None
) -> tuple[Directions, Shape, list[Candidate]]:
    """Return the directions and shape of W with the best score, and all candidates."""
    if trial is None:
        return next(solved), shapes[0], []
    chosen: tuple[Directions, Shape] | None = None
    top, tried = (-1.0, 0.0), []
    for directions in solved:
        for candidate in trial.scores(directions, shapes):
            tried.append(candidate)
            reached = candidate.score, candidate.separation
            if reached > top:
                top, chosen = reached, (directions, Shape(candidate.power, candidate.centered))
    assert chosen is not None
    return *chosen, tried
