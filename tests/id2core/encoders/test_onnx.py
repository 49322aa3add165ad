from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from id2core.encoders.registry import identify, load_encoder
from id2core.errors import EncoderError

Shape = list[int | str]


def write_model(
    path: Path,
    shape: Shape,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
    op: str = "ReduceMean",
) -> Path:
    """Write a model that gives the mean of each channel, or what another operator makes of all sides."""
    axes = [1, 2] if shape[3] == 3 else [2, 3]
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node(op, ["numbers", "axes"], ["latent"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, [shape[0], 3])],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for name, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.save(model, path)
    return path


def pixels(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


def means(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(pictures.mean(axis=(1, 2)))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("shape", [["n", 3, 32, 32], ["n", 3, "h", "w"], ["n", "h", "w", 3], [2, 32, 32, 3]])
def test_a_model_gets_scaled_pictures_in_its_own_layout(tmp_path: Path, shape: Shape, kind: int) -> None:
    path = write_model(tmp_path / "model.onnx", shape, kind)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    path.with_suffix(".json").write_text(json.dumps({"size": 32, "mean": mean, "std": std}))
    encoder = load_encoder(str(path), batch_size=None if shape[0] == 2 else 4)
    pictures = pixels(7, 32)
    latents = encoder.encode(pictures)
    np.testing.assert_allclose(latents, (means(pictures) / 255 - mean) / std, atol=4e-3)
    assert np.array_equal(encoder.encode(pictures[3:4])[0], latents[3])
    assert encoder.latent_size == 3


@pytest.mark.parametrize("shape", [["n", "h", "w", 3], ["n", 3, 16, 16]])
def test_a_model_of_uint8_gets_pixels_as_they_are(tmp_path: Path, shape: Shape) -> None:
    path = write_model(tmp_path / "model.onnx", shape, TensorProto.UINT8, {"size": "16"})
    pictures = pixels(3, 16)
    np.testing.assert_allclose(load_encoder(str(path)).encode(pictures), means(pictures), rtol=1e-3)
    path.with_suffix(".json").write_text('{"mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(EncoderError, match="scales by itself"):
        load_encoder(str(path))


def test_metadata_say_what_no_file_beside_the_model_does(tmp_path: Path) -> None:
    metadata = {"size": "24", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
    path = write_model(tmp_path / "model.onnx", ["n", 3, "h", "w"], metadata=metadata)
    encoder = load_encoder(str(path))
    pictures = pixels(2, 24)
    np.testing.assert_allclose(encoder.encode(pictures), means(pictures) / 255, atol=1e-3)
    ids = identify(str(path))
    path.with_suffix(".json").write_text('{"size": 8}')
    assert load_encoder(str(path)).preprocess.size == 8
    assert identify(str(path)).encoder_id == ids.encoder_id
    assert identify(str(path)).preprocess_id != ids.preprocess_id


@pytest.mark.parametrize(
    ("shape", "kind", "facts", "message"),
    [
        (["n", 3, "h", "w"], TensorProto.FLOAT, {}, "pictures of any size"),
        (["n", 3, 32, 32], TensorProto.FLOAT, {"size": 64}, "takes 32 pixels"),
        (["n", 3, 32, 48], TensorProto.FLOAT, {"size": 32}, "an encoder takes one input"),
        (["n", 1, 32, 32], TensorProto.FLOAT, {"size": 32}, "an encoder takes one input"),
        (["n", 3, 32, 32], TensorProto.DOUBLE, {"size": 32}, "an encoder takes one input"),
        (["n", 3, 32, 32], TensorProto.FLOAT, {"size": "many"}, "expected size, mean and std"),
        (["n", 3, 32, 32], TensorProto.FLOAT, {"mean": [1]}, "expected size, mean and std"),
        (["n", 3, 32, 32], TensorProto.FLOAT, [32], "expected size, mean and std"),
    ],
)
def test_a_model_that_takes_no_pictures_says_what_it_takes(
    tmp_path: Path, shape: Shape, kind: int, facts: Any, message: str
) -> None:
    path = write_model(tmp_path / "model.onnx", shape, kind)
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(path))


def test_a_file_that_is_no_model_and_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x0a" + bytes(range(256)))
    with pytest.raises(EncoderError, match="no ONNX file"):
        load_encoder(str(tmp_path / "noise.onnx"))
    path = write_model(tmp_path / "model.onnx", ["n", 3, 32, 32])
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0, convert_attribute=True
    )
    onnx.save(model, tmp_path / "split.onnx")
    with pytest.raises(EncoderError, match="no ONNX file"):
        load_encoder(str(tmp_path / "split.onnx"))
