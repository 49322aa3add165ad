"""‖T·W‖, singular values and the VAE gap on data whose answers follow from how they are made."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.stats import ortho_group

from id2core.encoders.autoencoders import load_autoencoder
from id2core.errors import TheoryError
from id2core.experiments import theory
from id2core.experiments.theory import Existence
from id2core.training.pairs import Pairs
from id2core.transforms.files import BUNDLED_FOLDER

N, CLASSES, EACH = 32, 24, 3
RNG = np.random.default_rng(0)
ROTATION = ortho_group.rvs(N, random_state=0)
# Translations move in the first half of these directions only; origins differ in all.
MOVED, KEPT = ROTATION[:, : N // 2], ROTATION[:, N // 2 :]
ALL = np.ones(CLASSES, np.bool_)


def pairs_of(moves: NDArray[np.float64], seed: int = 1) -> Pairs:
    """Origins of random numbers; a translation adds a random mixture of `moves`, float[n,k]."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(CLASSES):
        origin = rng.standard_normal(N)
        rows += [origin, *(origin + moves @ rng.standard_normal(moves.shape[1]) for _ in range(EACH))]
    offsets = np.arange(CLASSES + 1) * (1 + EACH)
    return Pairs(np.array(rows, np.float16), [f"{i:02}" for i in range(CLASSES)], offsets, {})


def measured(pairs: Pairs, w: NDArray[np.float64]) -> Existence:
    return Existence.of(theory.ratios(pairs, ALL, w))


def test_a_w_of_kept_directions_takes_translations_to_their_origins() -> None:
    pairs = pairs_of(MOVED)
    report = measured(pairs, KEPT)
    assert report.own.count == CLASSES * EACH and report.left_out == 0
    assert report.own.mean < 0.005 and report.frobenius_own < 0.005  # zero but for float16
    assert 0.3 < report.unrelated.mean < 0.9
    assert report.relative.mean < 0.01 and report.nearer == 1
    wrong = measured(pairs, MOVED)
    assert wrong.own.mean == pytest.approx(1, abs=1e-4) and wrong.relative.mean > 1 and wrong.nearer == 0


def test_a_w_that_shrinks_everything_does_not_look_good() -> None:
    pairs = pairs_of(MOVED)
    shrunk = measured(pairs, 0.001 * np.eye(N))
    assert shrunk.own.mean == pytest.approx(0.001) and shrunk.frobenius_own == pytest.approx(0.001)
    assert shrunk.relative.mean == pytest.approx(1) and shrunk.frobenius_relative == pytest.approx(1)
    mixed = RNG.standard_normal((N, 8))
    assert measured(pairs, 7 * mixed).relative.mean == pytest.approx(measured(pairs, mixed).relative.mean)


def test_ratios_are_those_of_the_definition_for_any_block() -> None:
    pairs, w = pairs_of(RNG.standard_normal((N, N))), RNG.standard_normal((N, 5))
    classes = np.arange(CLASSES) % 3 == 0
    seen: list[tuple[str, int, int]] = []
    measured_ratios = theory.ratios(pairs, classes, w, block_rows=5, progress=lambda *step: seen.append(step))
    whole = theory.ratios(pairs, classes, w)
    assert np.allclose(measured_ratios.own, whole.own) and np.allclose(
        measured_ratios.unrelated, whole.unrelated
    )
    assert seen[-1] == ("pairs", 24, 24) and len(seen) == 5
    x = pairs.latents.astype(np.float64).reshape(CLASSES, 1 + EACH, N)[classes]
    t = (x[:, 1:] - x[:, :1]).reshape(-1, N)
    expected = np.linalg.norm(t @ w, axis=1) / np.linalg.norm(t, axis=1)
    assert np.allclose(measured_ratios.own, expected, rtol=1e-5)
    assert measured_ratios.frobenius_own == pytest.approx(np.linalg.norm(t @ w) / np.linalg.norm(t))
    # Each is measured against the origin of some other held-out class, never its own.
    among = [
        [np.linalg.norm((g - o) @ w) / np.linalg.norm(g - o) for o in np.delete(x[:, 0], c, axis=0)]
        for c in range(len(x))
        for g in x[c, 1:]
    ]
    nearest = np.abs(np.array(among) - measured_ratios.unrelated[:, None]).min(axis=1)
    assert nearest.max() < 1e-5


def test_pairs_without_a_ratio_are_counted_and_what_has_none_is_refused() -> None:
    pairs = pairs_of(MOVED)
    latents = pairs.latents.copy()
    latents[1] = latents[0]  # a translation that changed nothing
    changed = Pairs(latents, pairs.origin_ids, pairs.offsets, {})
    report = measured(changed, KEPT)
    assert report.left_out == 1 and report.own.count == CLASSES * EACH - 1
    assert json.loads(json.dumps(asdict(report)))["own"]["count"] == report.own.count
    with pytest.raises(TheoryError, match="W is zero"):
        theory.ratios(pairs, ALL, np.zeros((N, 4)))
    with pytest.raises(TheoryError, match="two or more"):
        theory.ratios(pairs, np.arange(CLASSES) == 3, KEPT)
    with pytest.raises(TheoryError, match="shape"):
        theory.ratios(pairs, ALL, np.eye(N + 1))


def test_singular_values_say_nothing_of_directions_but_subspaces_do() -> None:
    w = RNG.standard_normal((N, 8)) * np.arange(1, 9)
    turned = ROTATION @ w @ ortho_group.rvs(8, random_state=1)
    assert theory.singular_value_cosine(w, 3 * turned) == pytest.approx(1)
    assert theory.subspace_agreement(w, turned).overlap < 0.6
    same = theory.subspace_agreement(w, -2 * w @ ortho_group.rvs(8, random_state=2))
    assert same.cosines == pytest.approx(np.ones(8)) and same.metric_cosine == pytest.approx(1)
    apart = theory.subspace_agreement(MOVED, KEPT)
    assert apart.overlap == pytest.approx(0, abs=1e-12) and apart.metric_cosine == pytest.approx(0, abs=1e-12)
    assert apart.by_chance == 0.5


def test_subspaces_agree_with_scipy_and_with_chance() -> None:
    a, b = RNG.standard_normal((N, 6)), RNG.standard_normal((N, 9))
    agreement = theory.subspace_agreement(a, b, 6)
    left = np.linalg.svd(b, full_matrices=False)[0][:, :6]
    assert agreement.cosines == pytest.approx(np.sort(np.cos(subspace_angles(a, left)))[::-1])
    draws = [theory.subspace_agreement(*(RNG.standard_normal((N, 6)) for _ in range(2))) for _ in range(200)]
    assert np.mean([draw.overlap for draw in draws]) == pytest.approx(draws[0].by_chance, rel=0.1)
    # A column of zeros is no direction.
    assert len(theory.subspace_agreement(np.column_stack([a, np.zeros(N)]), b).cosines) == 6
    for other in (np.zeros((N, 3)), RNG.standard_normal((N + 1, 6))):
        with pytest.raises(TheoryError):
            theory.subspace_agreement(a, other)


def test_the_cosine_of_singular_values_is_that_of_equation_4() -> None:
    a, b = np.diag([3.0, 4.0]), np.diag([0.0, 2.0])
    assert theory.singular_value_cosine(a, b) == pytest.approx(4 / 5)  # (4, 3) and (2, 0)
    with pytest.raises(TheoryError, match="one m"):
        theory.singular_value_cosine(np.eye(3), np.eye(4))
    with pytest.raises(TheoryError, match="zero"):
        theory.singular_value_cosine(a, np.zeros((2, 2)))


def test_agreement_of_runs_has_mean_and_deviation_and_a_control() -> None:
    runs = [(RNG.standard_normal((N, 8)), RNG.standard_normal((N, 8))) for _ in range(5)]
    agreement = theory.agreement([a for a, _ in runs], [b for _, b in runs])
    cosines = [theory.singular_value_cosine(a, b) for a, b in runs]
    assert agreement.singular_values.mean == pytest.approx(np.mean(cosines))
    assert agreement.singular_values.std == pytest.approx(np.std(cosines, ddof=1))
    # Ws that have learned nothing: like by singular values, unlike by all else.
    assert agreement.singular_values.mean > 0.98 and agreement.random.mean > 0.98
    assert agreement.overlap.mean == pytest.approx(agreement.by_chance, abs=0.08)
    assert agreement.metric_cosine.mean < 0.4
    with pytest.raises(TheoryError, match="as many"):
        theory.agreement([runs[0][0]], [])


def test_embeddings_of_two_encoders() -> None:
    x = RNG.standard_normal((50, N)).astype(np.float16)
    similarity = theory.embedding_similarity(x, -3 * x, block_rows=7)
    assert (
        similarity is not None and similarity.same.mean == pytest.approx(-1) and similarity.same.count == 50
    )
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    assert similarity.unrelated.mean == pytest.approx(
        -np.mean(np.sum(unit * np.roll(unit, -1, 0), 1)), abs=1e-4
    )
    common = theory.embedding_similarity(x + 10, RNG.standard_normal((50, N)) + 10)
    assert common is not None and common.same.mean == pytest.approx(common.unrelated.mean, abs=0.01)
    assert theory.embedding_similarity(x, np.ones((50, 2 * N))) is None
    for other in (x[:-1], np.zeros_like(x)):
        with pytest.raises(TheoryError):
            theory.embedding_similarity(x, other)


def test_last_convolutions_of_encoders() -> None:
    from diffusers import AutoencoderKL, VQModel

    torch.manual_seed(0)
    shape = {"block_out_channels": (8,), "norm_num_groups": 2, "latent_channels": 4}
    kl, quantized = AutoencoderKL(**shape), VQModel(**shape)
    distribution, plain = (theory.last_convolution(model) for model in (kl, quantized))
    assert np.array_equal(distribution, kl.encoder.conv_out.weight.detach().numpy())
    assert distribution.shape == (8, 8, 3, 3) and plain.shape == (4, 8, 3, 3)
    assert theory.convolution_similarity(distribution, 2 * distribution) == pytest.approx(1)
    means = distribution[:4].ravel()
    # Of unrelated weights it is near zero, where float32 leaves few digits: what counts is the distance.
    cosine = pytest.approx(means @ plain.ravel() / np.linalg.norm(means) / np.linalg.norm(plain), abs=1e-6)
    assert theory.convolution_similarity(distribution, plain) == cosine
    assert theory.convolution_similarity(plain, distribution) == cosine
    assert theory.convolution_similarity(plain, plain[:, :4]) is None
    assert theory.convolution_similarity(distribution, distribution[:2]) is None
    bundled = theory.last_convolution(load_autoencoder(str(BUNDLED_FOLDER)))
    assert bundled.shape[0] == 8
    with pytest.raises(TheoryError, match="no encoder"):
        theory.last_convolution(object())
