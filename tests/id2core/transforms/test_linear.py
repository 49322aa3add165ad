from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.errors import TransformError
from id2core.transforms import files
from id2core.transforms.cohorts import Cohort
from id2core.transforms.files import WEIGHTS, bundled_transform, load_transform, save_half, source_of
from id2core.transforms.linear import Transform

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 5)).astype(np.float32)


def test_descriptors_are_projected_and_of_length_one() -> None:
    latents = RNG.standard_normal((3, 16)).astype(np.float16)
    latents[1] = 0
    out = Transform(W).apply(latents)
    assert out.dtype == np.float32 and out.shape == (3, 5)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(out[0], latents[0] @ W / np.linalg.norm(latents[0] @ W), atol=1e-5)
    identity = load_transform(None)
    np.testing.assert_allclose(identity.apply(latents)[2], latents[2] / np.linalg.norm(latents[2]), atol=1e-3)
    assert identity.transform_id == "identity" and identity.output_size(16) == 16


def test_a_saved_transform_comes_back_with_its_id_and_metadata(tmp_path: Path) -> None:
    saved = Transform(W, {"encoder_id": "mini-0123"})
    saved.save(tmp_path / "w.safetensors")
    loaded = load_transform(str(tmp_path / "w.safetensors"))
    assert loaded.transform_id == saved.transform_id != Transform(W + 1).transform_id
    assert loaded.weights is not None and np.array_equal(loaded.weights, W)
    loaded.check_encoder("mini-0123")
    with pytest.raises(TransformError, match="trained for mini-0123"):
        loaded.check_encoder("sd2-4567")
    with pytest.raises(TransformError, match="another encoder"):
        loaded.output_size(17)


def test_one_learned_from_samples_fits_the_encoder_of_that_name() -> None:
    sampled = Transform(W, {"encoder_id": "sd2-sample"})
    for fits in ("sd2-sample", "sd2-0123456789ab"):
        sampled.check_encoder(fits)
    for other in (
        "sd2",
        "sd2-other-0123456789ab",
        "sdxl-0123456789ab",
        "sd2-0123456789ab-sample",
        "sd3-sample",
    ):
        with pytest.raises(TransformError, match="trained for sd2-sample"):
            sampled.check_encoder(other)


def test_auto_is_the_bundled_transform_of_the_encoder_and_else_raw_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BUNDLED_FOLDER", tmp_path)
    assert load_transform("auto", "mini-0123").transform_id == "identity"
    halved = save_half(Transform(W, {"encoder_id": "mini-0123"}), tmp_path / WEIGHTS)
    assert (tmp_path / WEIGHTS).stat().st_size < W.nbytes
    transform = load_transform("auto", "mini-0123")
    assert transform.weights is not None and transform.weights.dtype == np.float32
    assert np.array_equal(transform.weights, W.astype(np.float16))
    assert transform.transform_id == halved.transform_id == bundled_transform("mini-0123").transform_id
    assert [load_transform("auto", other).transform_id for other in ("sd2-4567", None)] == ["identity"] * 2
    with pytest.raises(TransformError, match="too large for float16"):
        save_half(Transform(W * 1e6), tmp_path / "large.safetensors")


def test_where_a_transform_is_from_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BUNDLED_FOLDER", tmp_path)
    Transform(W, {"encoder_id": "mini-0123"}).save(tmp_path / WEIGHTS)
    mine = load_transform("auto", "mini-0123").transform_id
    assert source_of("auto", mine, "mini-0123") == "bundled"
    assert source_of("auto", "identity", "sd2-4567") == "none"
    assert source_of("auto", "another", "sd2-4567") == "data set"
    assert source_of(str(tmp_path / "mine.safetensors"), mine, "x") == str(tmp_path / "mine.safetensors")


def test_the_published_checkpoint_is_one_tensor_transposed(tmp_path: Path) -> None:
    path = tmp_path / "w_512f.pth.tar"
    torch.save(torch.from_numpy(W.T.copy()), path)
    loaded = load_transform(str(path))
    assert loaded.weights is not None and np.array_equal(loaded.weights, W)


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('/tmp/id2-was-here', 'w')",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(_Hostile()))
    torch.save({"state": W.tolist()}, tmp_path / "dict.pth")
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 64)
    for name in ("w.pth", "dict.pth", "w.safetensors", "missing.safetensors"):
        with pytest.raises(TransformError):
            load_transform(str(tmp_path / name))
    assert not Path("/tmp/id2-was-here").exists()


@settings(max_examples=30)
@given(
    start=st.integers(0, 99), count=st.integers(1, 40), large=st.floats(1e-4, 1e4), seed=st.integers(0, 99)
)
def test_a_descriptor_depends_on_its_latent_alone(start: int, count: int, large: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    latents = (large * rng.standard_normal((140, 96))).astype(np.float16)
    for transform in (Transform(), Transform(rng.standard_normal((96, 33)).astype(np.float32))):
        alone = transform.apply(latents[start : start + count])
        assert np.array_equal(alone, transform.apply(latents)[start : start + count])


def test_another_order_of_the_sums_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((9, 4096)).astype(np.float16)
    transform = Transform(rng.standard_normal((4096, 40)).astype(np.float32))

    def backwards(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.add.reduce(x[:, ::-1, None] * weights[None, ::-1], axis=1)

    assert np.array_equal(transform.apply(latents, backwards), transform.apply(latents))
    exact = latents.astype(np.float64) @ transform.weights.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(transform.apply(latents), exact, atol=2e-6)


COHORT = np.full((100, 5), 0.4, np.float16)


def test_a_cohort_is_kept_beside_w_and_is_no_part_of_its_id(tmp_path: Path) -> None:
    crops = np.arange(800, dtype=np.int8).reshape(100, 8)
    Transform(W, cohort=Cohort(COHORT, crops)).save(tmp_path / "w.safetensors")
    for loaded in (
        load_transform(str(tmp_path / "w.safetensors")),
        save_half(load_transform(str(tmp_path / "w.safetensors")), tmp_path / "half.safetensors"),
    ):
        assert loaded.cohort is not None and loaded.cohort.crops is not None
        np.testing.assert_array_equal(loaded.cohort.descriptors, COHORT)
        np.testing.assert_array_equal(loaded.cohort.crops, crops)
    assert load_transform(str(tmp_path / "w.safetensors")).transform_id == Transform(W).transform_id


def safetensors_bytes(**tensors: np.ndarray) -> bytes:
    return safetensors.numpy.save(tensors)


HOSTILE_W = {
    "nan": safetensors_bytes(W=np.where(np.arange(80).reshape(16, 5) == 7, np.nan, W)),
    "infinite": safetensors_bytes(W=np.where(np.arange(80).reshape(16, 5) == 7, np.inf, W)),
    "huge": safetensors_bytes(W=np.full((16, 5), 3e38, np.float32)),
    "huge_in_float64": safetensors_bytes(W=W.astype(np.float64) * 1e200),
    "no_columns": safetensors_bytes(W=W[:, :0]),
    "no_rows": safetensors_bytes(W=W[:0]),
    "zeros": safetensors_bytes(W=np.zeros_like(W)),
    "a_vector": safetensors_bytes(W=W[0]),
    "whole_numbers": safetensors_bytes(W=np.ones((16, 5), np.int64)),
    "no_tensor": safetensors_bytes(),
    "other_tensor": safetensors_bytes(V=W),
    "more_tensors": safetensors_bytes(W=W, V=W),
    "cohort_of_few": safetensors_bytes(W=W, cohort=COHORT[:99]),
    "cohort_of_other_columns": safetensors_bytes(W=W, cohort=COHORT[:, :4]),
    "cohort_of_floats": safetensors_bytes(W=W, cohort=COHORT.astype(np.float32)),
    "cohort_too_long": safetensors_bytes(W=W, cohort=2 * COHORT),
    "cohort_with_nan": safetensors_bytes(W=W, cohort=COHORT * np.float16(np.nan)),
    "crops_without_a_cohort": safetensors_bytes(W=W, cohort_crops=np.zeros((100, 8), np.int8)),
    "crops_of_none": safetensors_bytes(W=W, cohort=COHORT, cohort_crops=np.zeros((0, 8), np.int8)),
    "crops_of_fewer": safetensors_bytes(W=W, cohort=COHORT, cohort_crops=np.zeros((99, 8), np.int8)),
    "crops_as_one_row": safetensors_bytes(W=W, cohort=COHORT, cohort_crops=np.zeros(100, np.int8)),
    "header_beyond_the_file": (2**40).to_bytes(8, "little") + b"{}",
    "deep_header": (80_002).to_bytes(8, "little") + b'{"W":' + b"[" * 79_997,
    "empty": b"",
}


@pytest.mark.parametrize("kind", HOSTILE_W)
def test_numbers_that_are_no_weights_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.safetensors"
    path.write_bytes(HOSTILE_W[kind])
    with pytest.raises(TransformError, match=re.escape(str(path))):
        load_transform(str(path))


@pytest.mark.parametrize("metadata", ["[]", "[" * 50_000, '{"encoder_id": 5}', "no JSON"])
def test_metadata_that_are_no_facts_are_refused(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"W": W}, path, metadata={"id2": metadata})
    with pytest.raises(TransformError, match=r"w\.safetensors"):
        load_transform(str(path))


@pytest.mark.parametrize("changed", [W.astype(np.float16), W.astype(np.float64), 1e-30 * W, 1e20 * W])
def test_any_floats_that_fit_are_weights(changed: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    changed[:, 0] = 0  # a closed form of few origins leaves such columns
    safetensors.numpy.save_file({"W": changed}, path)
    descriptors = load_transform(str(path)).apply(RNG.standard_normal((3, 16)).astype(np.float16))
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-6)
    with pytest.raises(TransformError, match=r"w\.safetensors takes latents of 16 numbers"):
        load_transform(str(path)).output_size(17)


def test_published_tensors_are_matrices_of_floats(tmp_path: Path) -> None:
    for tensor in (torch.ones(5, 16, dtype=torch.int64), torch.ones(5, 16).to_sparse(), torch.ones(2, 2, 2)):
        torch.save(tensor, tmp_path / "w.pth")
        with pytest.raises(TransformError, match=r"w\.pth"):
            load_transform(str(tmp_path / "w.pth"))
