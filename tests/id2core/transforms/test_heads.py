from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from id2core.errors import GradientError, TransformError
from id2core.training import gradient
from id2core.training.closed_form import Trial
from id2core.transforms import heads
from id2core.transforms.files import load_transform
from id2core.transforms.heads import Architecture, Head
from id2core.transforms.linear import Transform
from tests.synthetic_pairs import SMALL, log, made

N, M = 4 * 8 * 8, 16
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def head(kind: str, n: int = N, m: int = M, seed: int = 0, **metadata: str) -> Head:
    torch.manual_seed(seed)
    return Head.of(Architecture(kind, n, m), heads.build(kind, n, m).state_dict(), metadata)


@pytest.mark.parametrize("kind", heads.KINDS)
def test_a_head_does_what_a_transform_does(kind: str, tmp_path: Path) -> None:
    network = head(kind, encoder_id="mini-0123")
    latents = RNG.standard_normal((2100, N)).astype(np.float16)
    out = network.apply(latents)
    assert out.dtype == np.float32 and out.shape == (2100, network.output_size(N))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(out[2000:], network.apply(latents[2000:]), atol=1e-5)
    assert not np.allclose(out[0], out[1], atol=0.1)

    network.save(tmp_path / "head.safetensors")
    loaded = load_transform(str(tmp_path / "head.safetensors"))
    assert isinstance(loaded, Head) and loaded.architecture == network.architecture
    assert loaded.transform_id == network.transform_id and loaded.metadata == network.metadata
    assert (loaded.apply(latents[:5]) == network.apply(latents[:5])).all()
    with pytest.raises(TransformError, match="trained for mini-0123"):
        loaded.check_encoder("sd2-4567")
    with pytest.raises(TransformError, match="another encoder"):
        loaded.output_size(N + 1)


def test_every_weight_and_the_kind_have_a_part_in_the_id() -> None:
    network = head("mlp-3")
    ids = {network.transform_id, head("mlp-2").transform_id, head("mlp-3", seed=1).transform_id}
    for name, tensor in network.tensors.items():
        changed: NDArray[np.float32] = tensor.copy()
        changed.flat[-1] += 1
        ids.add(replace(network, tensors={**network.tensors, name: changed}).transform_id)
    assert len(ids) == 3 + len(network.tensors)


def test_layers_of_an_mlp_add_to_a_linear_map() -> None:
    x = RNG.standard_normal((3, N)).astype(np.float32)
    one, three = head("mlp-1"), head("mlp-3")
    weights = one.tensors["0.weight"].T
    np.testing.assert_allclose(one.apply(x), Transform(weights).apply(x), atol=1e-6)
    y = x @ three.tensors["0.weight"].T
    for layer in ("1", "2"):
        matrix, bias = (three.tensors[f"{layer}.layer.1.{part}"] for part in ("weight", "bias"))
        y = y + np.maximum(y, 0) @ matrix.T + bias
    np.testing.assert_allclose(three.apply(x), Transform().apply(y), atol=1e-5)


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_the_papers_size_and_other_latents(kind: str) -> None:
    latents = torch.randn(2, 4096)
    assert heads.build(kind, 4096, 512)(latents).shape == (2, 512)
    assert heads.build(kind, 12 * 36, 48, (12, 6, 6))(latents[:, : 12 * 36]).shape == (2, 48)
    with pytest.raises(TransformError, match="shape of a latent"):
        heads.build(kind, 4095, 512)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match="choose linear, mlp-1"):
        heads.build("mlp-8", N, M)
    with pytest.raises(TransformError, match="4 numbers or more"):
        heads.build("convolution", N, 3)
    path = tmp_path / "head.safetensors"
    head("mlp-2").save(path)
    tensors = load_file(path)
    facts = {"kind": "mlp-2", "n": N, "m": M, "latent_shape": None}
    broken: list[tuple[dict[str, Any], str]] = [
        (tensors, json.dumps(facts | {"kind": "mlp-3"})),
        (tensors, json.dumps(facts | {"size": 1})),
        (tensors, "[]"),
        ({**tensors, "0.weight": tensors["0.weight"] * np.nan}, json.dumps(facts)),
    ]
    for weights, header in broken:
        save_file(weights, path, metadata={"head": header})
        with pytest.raises(TransformError):
            load_transform(str(path))


@pytest.mark.parametrize("kind", ["mlp-2", "convolution", "attention"])
def test_heads_are_trained_like_w(kind: str, tmp_path: Path) -> None:
    pairs = made()
    recipe = SMALL.replace(head=kind, lr=3e-3, epochs=3)
    trained = gradient.fit(pairs, recipe, tmp_path / "whole")
    rows = log(tmp_path / "whole")
    assert isinstance(trained, Head) and rows[-1]["loss"] < rows[1]["loss"]
    reached = Trial.of(pairs, pairs.held_out(recipe.validation_share)).score(trained)[0]
    assert trained.metadata["validation_map"] == reached and trained.metadata["experimental"]
    saved = load_transform(str(tmp_path / "whole" / gradient.WEIGHTS))
    assert saved.transform_id == trained.transform_id and saved.metadata == trained.metadata

    class InterruptedRunError(Exception):
        pass

    def interrupt(_: str, completed: int, total: int) -> None:
        if completed == 40:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        gradient.fit(pairs, recipe, tmp_path / "parts", checkpoint_every=7, progress=interrupt)
    assert gradient.fit(pairs, recipe, tmp_path / "parts").transform_id == trained.transform_id


def test_a_recipe_whose_head_does_not_fit_says_why(tmp_path: Path) -> None:
    with pytest.raises(GradientError, match="choose linear, mlp-1"):
        gradient.fit(made(), SMALL.replace(head="resnet"), tmp_path)
    start = Transform(np.ones((64, 32), np.float32))
    with pytest.raises(GradientError, match="linear head"):
        gradient.fit(made(), SMALL.replace(head="mlp-2"), tmp_path, start=start)
