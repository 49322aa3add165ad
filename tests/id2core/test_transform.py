from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from id2core import transform
from id2core.transform import Transform, TransformError

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 5)).astype(np.float32)


def test_descriptors_are_projected_and_of_length_one() -> None:
    latents = RNG.standard_normal((3, 16)).astype(np.float16)
    latents[1] = 0
    out = Transform(W).apply(latents)
    assert out.dtype == np.float32 and out.shape == (3, 5)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(out[0], latents[0] @ W / np.linalg.norm(latents[0] @ W), atol=1e-5)
    identity = transform.load(None)
    np.testing.assert_allclose(identity.apply(latents)[2], latents[2] / np.linalg.norm(latents[2]), atol=1e-3)
    assert identity.transform_id == "identity" and identity.output_size(16) == 16


def test_a_saved_transform_comes_back_with_its_id_and_metadata(tmp_path: Path) -> None:
    saved = Transform(W, {"encoder_id": "mini-0123"})
    saved.save(tmp_path / "w.safetensors")
    loaded = transform.load(str(tmp_path / "w.safetensors"))
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
    monkeypatch.setattr(transform, "FOLDER", tmp_path)
    assert transform.load("auto", "mini-0123").transform_id == "identity"
    halved = transform.save_half(Transform(W, {"encoder_id": "mini-0123"}), tmp_path / transform.WEIGHTS)
    assert (tmp_path / transform.WEIGHTS).stat().st_size < W.nbytes
    found = transform.load("auto", "mini-0123")
    assert found.weights is not None and found.weights.dtype == np.float32
    assert np.array_equal(found.weights, W.astype(np.float16))
    assert found.transform_id == halved.transform_id == transform.belonging_to("mini-0123").transform_id
    assert [transform.load("auto", other).transform_id for other in ("sd2-4567", None)] == ["identity"] * 2
    with pytest.raises(TransformError, match="too large for float16"):
        transform.save_half(Transform(W * 1e6), tmp_path / "large.safetensors")


def test_where_a_transform_is_from_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "FOLDER", tmp_path)
    Transform(W, {"encoder_id": "mini-0123"}).save(tmp_path / transform.WEIGHTS)
    mine = transform.load("auto", "mini-0123").transform_id
    assert transform.source("auto", mine, "mini-0123") == "bundled"
    assert transform.source("auto", "identity", "sd2-4567") == "none"
    assert transform.source("auto", "another", "sd2-4567") == "data set"
    assert transform.source(str(tmp_path / "mine.safetensors"), mine, "x") == str(
        tmp_path / "mine.safetensors"
    )


def test_the_published_checkpoint_is_one_tensor_transposed(tmp_path: Path) -> None:
    path = tmp_path / "w_512f.pth.tar"
    torch.save(torch.from_numpy(W.T.copy()), path)
    loaded = transform.load(str(path))
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
            transform.load(str(tmp_path / name))
    assert not Path("/tmp/id2-was-here").exists()
