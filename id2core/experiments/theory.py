"""What the paper's two theorems and its look at VAEs claim, measured.

Existence (Theorem 1): W takes the difference T = E(g) − E(o) of a translation g and its origin o to about 0.
Generalizability (Theorem 2): so does a W that was trained on another model's translations, which the paper
rests on the singular values of two Ws being alike (Observation 1, Table 1). That the VAEs of the models are
unlike (Section 5.3, Table 4) shows that it is not a shared encoder that makes W general.

A small ‖T·W‖ and like singular values are weak evidence: a W that shrinks everything has the one, two
matrices of random numbers have the other. So each figure of the paper is beside one of ours that such
a W does not pass; docstrings say which is whose. `dataclasses.asdict` of results without arrays is JSON-able.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from id2core.errors import TheoryError
from id2core.runs.progress import OnStage, silent
from id2core.training.pairs import Pairs
from id2core.transforms.linear import Transform

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BLOCK_ROWS = 4096

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean and spread of numbers.

    Attributes:
        count: how many.
        mean: of them.
        std: standard deviation of a sample (divided by count − 1); 0 for a single number.
        quantiles: (share, value) for each of `QUANTILES`.
    """

    count: int
    mean: float
    std: float
    quantiles: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, values: NDArray[Any] | Sequence[float]) -> Spread:
        """Summarize at least one number."""
        x = np.asarray(values, np.float64)
        if not len(x):
            raise TheoryError("there is nothing to measure: give data with at least one pair of pictures")
        ends = np.quantile(x, QUANTILES)
        std = float(x.std(ddof=1)) if len(x) > 1 else 0.0
        return cls(len(x), float(x.mean()), std, tuple(zip(QUANTILES, ends.tolist(), strict=True)))


@dataclass(frozen=True, eq=False)
class Ratios:
    """What W leaves of the difference of two latents, for P translations.

    Attributes:
        own: float64[P], ‖T·W‖ / ‖T‖ with T = E(g) − E(o), o the origin of g.
        unrelated: float64[P], the same with D = E(g) − E(o′) for T, o′ the origin of some other class.
        frobenius_own, frobenius_unrelated: the same ratios of the matrices with one row for each of the P.
        left_out: translations without such ratios: equal to one of the origins, or to the other after W.
    """

    own: Matrix
    unrelated: Matrix
    frobenius_own: float
    frobenius_unrelated: float
    left_out: int


@dataclass(frozen=True)
class Existence:
    """Theorem 1 (Eq. 1) on pairs of pictures. `own` and `frobenius_own` are the paper's, the others ours.

    Scores are cosines, not lengths: a W with `relative` above 1 can still separate origins from others by
    score, see `closed_form.Trial`.

    Attributes:
        own: ‖T·W‖ / ‖T‖ of each translation and its origin: small by the theorem, or for a small W.
        unrelated: the same of each translation and the origin of some other.
        relative: own / unrelated of each translation: below 1 where W takes more off the way to its origin
            than off that to another. It is 1 for the identity, and the same for W and any multiple of W.
        nearer: share of the translations with `relative` below 1.
        frobenius_own: ‖T·W‖ / ‖T‖ of the matrix T of all pairs, as in the proof of Theorem 2.
        frobenius_relative: frobenius_own over the same ratio of unrelated pictures.
        left_out: translations without such ratios, see `Ratios`.
    """

    own: Spread
    unrelated: Spread
    relative: Spread
    nearer: float
    frobenius_own: float
    frobenius_relative: float
    left_out: int

    @classmethod
    def of(cls, ratios: Ratios) -> Existence:
        """Summarize the ratios of translations."""
        relative = ratios.own / ratios.unrelated
        return cls(
            Spread.of(ratios.own),
            Spread.of(ratios.unrelated),
            Spread.of(relative),
            float(np.mean(relative < 1)),
            ratios.frobenius_own,
            ratios.frobenius_own / ratios.frobenius_unrelated,
            ratios.left_out,
        )


def ratios(
    pairs: Pairs,
    classes: NDArray[np.bool_],
    w: NDArray[Any],
    *,
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
    progress: OnStage = silent,
) -> Ratios:
    """Measure what W leaves of the differences of pictures, in one pass over the translations of classes.

    For Theorem 1 the translations are by the model that W was trained on, for Theorem 2 by another; the
    classes are held out in both cases. Memory: 4 blocks of float32[block_rows,n], 8 numbers a translation.

    Args:
        pairs: C classes with latents of n numbers.
        classes: bool[C], which of them count; the other origins are from these too.
        w: float[n,m].
        seed: of the choice of other origins, which is the same for any W and any `block_rows`.
        block_rows: translations that are read at once.
        progress: called with "pairs" and translations measured.

    Raises:
        TheoryError: fewer than two classes, a W for other latents, or no pair that has ratios.
    """
    weights = np.ascontiguousarray(w, np.float32)
    chosen = np.flatnonzero(classes)
    if len(chosen) < 2:
        raise TheoryError(f"{len(chosen)} classes are held out; hold out two or more, to have unrelated ones")
    if weights.ndim != 2 or len(weights) != pairs.latents.shape[1]:
        raise TheoryError(f"W has the shape {weights.shape}, latents have {pairs.latents.shape[1]} numbers")
    rows = np.flatnonzero(classes[pairs.labels] & ~pairs.is_origin)
    own = pairs.labels[rows]
    step = np.random.default_rng(seed).integers(1, len(chosen), len(rows))
    other = chosen[(np.searchsorted(chosen, own) + step) % len(chosen)]
    lengths = np.empty((4, len(rows)))  # of T, T·W, D, D·W
    for start in range(0, len(rows), block_rows):
        block = slice(start, start + block_rows)
        translated = pairs.latents[rows[block]].astype(np.float32)
        for at, origin in ((0, own), (2, other)):
            difference = translated - pairs.latents[pairs.offsets[origin[block]]]
            lengths[at : at + 2, block] = _lengths(difference), _lengths(difference @ weights)
        progress("pairs", min(start + block_rows, len(rows)), len(rows))
    return _ratios(lengths)


def _lengths(x: NDArray[np.float32]) -> Matrix:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)))


def _ratios(lengths: Matrix) -> Ratios:
    before, after = lengths[::2], lengths[1::2]
    ratios = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
    # What W takes to zero comes out of float32 as something that is only small.
    kept = (before > 0).all(axis=0) & (ratios[1] > 1e-6 * ratios[1].max(initial=0))
    if not kept.any():
        raise TheoryError(
            "there is no translation that differs from its origin and, after W, from another origin: look "
            "whether W is zero, and whether the pictures are all alike"
        )
    norms = np.linalg.norm(lengths[:, kept], axis=1)
    own, unrelated = (norms[1::2] / norms[::2]).tolist()
    return Ratios(ratios[0, kept], ratios[1, kept], own, unrelated, int((~kept).sum()))


def singular_value_cosine(w1: NDArray[Any], w2: NDArray[Any]) -> float:
    """cos φ (Eq. 4) of the vectors of singular values of two Ws, largest first. Random numbers give 1 too.

    Args:
        w1, w2: float[n,m], of equal min(n,m).

    Raises:
        TheoryError: the numbers of singular values differ, or all of one W are zero.
    """
    if min(w1.shape) != min(w2.shape):
        raise TheoryError(f"Ws of shape {w1.shape} and {w2.shape} do not compare: train both with one m")
    first, second = (np.linalg.svd(np.asarray(w, np.float64), compute_uv=False) for w in (w1, w2))
    return _cosine(first, second, "a W")


def _cosine(x: Matrix, y: Matrix, what: str) -> float:
    lengths = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    if lengths == 0:
        raise TheoryError(f"{what} is zero and has no direction; look at where it comes from")
    return float(np.vdot(x, y)) / lengths


@dataclass(frozen=True, eq=False)
class SubspaceAgreement:
    """How far two Ws look into the same directions of latents: ours, stricter than Table 1.

    Attributes:
        cosines: float64[k], of the principal angles of the two subspaces, falling; all 1 for the same one.
        overlap: the mean of their squares.
        by_chance: the overlap that k random directions have with k others, k/n.
        metric_cosine: the cosine of the matrices W·Wᵀ, which alone decide what scores a W gives: 1 for W
            and c·W·Q with orthogonal Q, m/(n+m) for random numbers. Singular values weigh directions.
    """

    cosines: Matrix
    overlap: float
    by_chance: float
    metric_cosine: float


def subspace_agreement(w1: NDArray[Any], w2: NDArray[Any], k: int | None = None) -> SubspaceAgreement:
    """Compare the spaces that the leading left singular vectors of two Ws span.

    Args:
        w1, w2: float[n,m1] and float[n,m2].
        k: how many vectors; by default the lower of the two ranks. Where it is near n, any two subspaces
            overlap: compare with `by_chance`.

    Raises:
        TheoryError: other n, a W that is zero, or more directions than the ranks have.
    """
    if len(w1) != len(w2):
        raise TheoryError(f"Ws of shape {w1.shape} and {w2.shape} take the latents of different encoders")
    (left, s1), (right, s2) = _bases(w1), _bases(w2)
    most = min(len(s1), len(s2))
    k = most if k is None else k
    if not 0 < k <= most:
        raise TheoryError(f"cannot compare {k} directions of Ws of rank {len(s1)} and {len(s2)}")
    products = left.T @ right
    cosines = np.clip(np.linalg.svd(products[:k, :k], compute_uv=False), 0, 1)
    metric = float(np.sum((s1[:, None] * products * s2) ** 2))
    scale = float(np.linalg.norm(s1**2) * np.linalg.norm(s2**2))
    return SubspaceAgreement(cosines, float(np.mean(cosines**2)), k / len(w1), metric / scale)


def _bases(w: NDArray[Any]) -> tuple[Matrix, Matrix]:
    """Left singular vectors and singular values of a W, as many as its rank."""
    x = np.asarray(w, np.float64)
    vectors, values, _ = np.linalg.svd(x, full_matrices=False)
    # W is stored in float32: what is smaller than its rounding is no direction.
    rank = int(np.count_nonzero(values > values[0] * max(x.shape) * np.finfo(np.float32).eps))
    return vectors[:, :rank], values[:rank]


@dataclass(frozen=True)
class Agreement:
    """Ws of two models, trained several times; all but `singular_values` is ours.

    Attributes:
        singular_values: cos φ of each run of one with the same run of the other: a figure of Table 1.
        random: cos φ of each first with random numbers in its shape; no lower figure is a sign of likeness.
        overlap, by_chance, metric_cosine: as in `SubspaceAgreement`.
    """

    singular_values: Spread
    random: Spread
    overlap: Spread
    by_chance: float
    metric_cosine: Spread


def agreement(
    first: Sequence[NDArray[Any]],
    second: Sequence[NDArray[Any]],
    *,
    k: int | None = None,
    seed: int = 0,
) -> Agreement:
    """Compare the Ws of two models over repeated runs (Table 1, which has ten).

    Args:
        first, second: float[n,m] of run 1, 2, … of each; run i is compared with run i.
        k: as `subspace_agreement` takes it.
        seed: of the random matrices.

    Raises:
        TheoryError: no runs or unequally many, or Ws that do not compare.
    """
    if len(first) != len(second):
        raise TheoryError(f"{len(first)} runs of one model, {len(second)} of the other; give as many of both")
    random = np.random.default_rng(seed).standard_normal
    spaces = [subspace_agreement(a, b, k) for a, b in zip(first, second, strict=True)]
    return Agreement(
        Spread.of([singular_value_cosine(a, b) for a, b in zip(first, second, strict=True)]),
        Spread.of([singular_value_cosine(a, random(a.shape)) for a in first]),
        Spread.of([space.overlap for space in spaces]),
        spaces[0].by_chance,
        Spread.of([space.metric_cosine for space in spaces]),
    )


@dataclass(frozen=True)
class EmbeddingSimilarity:
    """The row "Embed." of Table 4: two encoders' latents of the same pictures.

    Attributes:
        same: cosine of the two latents of each picture; the table has the mean.
        unrelated: the same of each picture and the next, ours: what all latents have in common.
    """

    same: Spread
    unrelated: Spread


def embedding_similarity(
    first: NDArray[Any], second: NDArray[Any], block_rows: int = BLOCK_ROWS
) -> EmbeddingSimilarity | None:
    """Cosines of two encoders' latents (Section 5.3; the paper takes 100,000 origins).

    Args:
        first, second: float[P,n1] and float[P,n2], row i of both of picture i; may be memory-mapped.
        block_rows: latents that are read at once.

    Returns:
        None where n1 and n2 differ: there is no cosine, and the table has a dash (SD2 and SD3).

    Raises:
        TheoryError: fewer than two pictures, unequally many, or a latent that is zero.
    """
    if len(first) != len(second) or len(first) < 2:
        raise TheoryError(
            f"{len(first)} and {len(second)} latents: give those of the same pictures, 2 or more"
        )
    if first.shape[1] != second.shape[1]:
        return None
    same, unrelated = np.empty(len(first)), np.empty(len(first))
    for start in range(0, len(first), block_rows):
        rows = np.arange(start, min(start + block_rows, len(first)))
        x = _unit(first[rows])
        same[rows] = np.einsum("ij,ij->i", x, _unit(second[rows]))
        unrelated[rows] = np.einsum("ij,ij->i", x, _unit(second[(rows + 1) % len(first)]))
    return EmbeddingSimilarity(Spread.of(same), Spread.of(unrelated))


def _unit(latents: NDArray[Any]) -> NDArray[np.float32]:
    x = Transform().apply(latents)
    if not x.any(axis=1).all():
        raise TheoryError("a latent is zero; embed its picture again")
    return x


def last_convolution(autoencoder: Any) -> NDArray[np.float32]:
    """Return the weights of the last convolution of an autoencoder's encoder.

    Args:
        autoencoder: with a torch module `encoder`, as `encoders.load_autoencoder` gives it.

    Returns:
        float32[out,in,height,width] (one dimension more in a VAE of videos).

    Raises:
        TheoryError: there is no convolution.
    """
    encoder = getattr(autoencoder, "encoder", None)
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d | nn.Conv3d)]
    if not convolutions:
        raise TheoryError(f"a {type(autoencoder).__name__} has no encoder that ends in a convolution")
    return convolutions[-1].weight.detach().to("cpu", torch.float32).numpy()


def convolution_similarity(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return the cosine of two encoders' last convolutions (Table 4, "Conv.").

    Encoders that give a distribution have filters for means, then as many for log-variances; Kandinsky-3's
    has only the former, and is compared with those. The paper does not say how it got a figure there.

    Args:
        first, second: float[out,in,height,width], see `last_convolution`.

    Returns:
        None where the shapes still differ; the table has a dash there (SD2 and SD3).

    Raises:
        TheoryError: one of them is zero.
    """
    fewer, more = sorted((len(first), len(second)))
    outputs = fewer if more == 2 * fewer else more
    first, second = first[:outputs], second[:outputs]
    if first.shape != second.shape:
        return None
    return _cosine(np.asarray(first, np.float64), np.asarray(second, np.float64), "a convolution")
