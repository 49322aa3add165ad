"""ONNX files as encoders, run by onnxruntime (extra `onnx`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from id2core.encoders import sidecars
from id2core.encoders.base import Encoder
from id2core.encoders.preprocess import Preprocess
from id2core.errors import EncoderError

# onnxruntime's names of what a model may take → NumPy's.
_TYPES: Final[dict[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
# A model that takes uint8 scales by itself: pixels pass as they are, from 0 to 255.
_AS_THEY_ARE: Final = Preprocess(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
_FACTS: Final = ("size", "mean", "std")
_ON_A_GPU: Final = "CUDAExecutionProvider"


@dataclass(frozen=True)
class _Input:
    """What a model takes.

    Attributes:
        name: of the input.
        kind: of its numbers.
        channels_last: [B,H,W,3], and not [B,3,H,W].
        batch: pictures of a call, where the model fixes them.
        side: of the pictures in pixels, where the model fixes it.
    """

    name: str
    kind: type[np.generic]
    channels_last: bool
    batch: int | None
    side: int | None

    @staticmethod
    def of(path: Path, inputs: list[Any]) -> _Input:
        """Return the input of a model. Raises EncoderError where it takes anything but pictures."""
        described = ", ".join(f"{x.type} {x.shape}" for x in inputs)
        refused = EncoderError(
            f"{path} takes {described or 'nothing'}: an encoder takes one input, float32, float16 or uint8, "
            "of [batch,3,side,side] or [batch,side,side,3]"
        )
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
            raise refused
        (one,) = inputs
        fixed = [x if isinstance(x, int) else None for x in one.shape]
        channels_last = fixed[1] != 3
        sides = {*fixed[1:3]} if channels_last else {*fixed[2:4]}
        if (channels_last and fixed[3] != 3) or len(sides - {None}) > 1:
            raise refused
        side = next(iter(sides - {None}), None)
        return _Input(one.name, _TYPES[one.type], channels_last, fixed[0], side)

    def array(self, x: torch.Tensor) -> NDArray[Any]:
        """Return a batch float32[B,3,H,W] as the model takes it."""
        laid = x.permute(0, 2, 3, 1) if self.channels_last else x
        values = laid.contiguous().numpy()
        return (np.rint(values) if self.kind is np.uint8 else values).astype(self.kind)


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Load an ONNX file that maps pictures to one row of numbers each; it runs in its own precision.

    It takes float32, float16 or uint8, [B,3,H,W] or [B,H,W,3], and its first output counts. The JSON file
    beside it (`NAME.json`), or else the metadata of the model, give `size`, `mean`, and `std`. A model that
    takes uint8 scales by itself, and one that fixes the size of its input needs none. Weights in files beside
    it are not read. With onnxruntime-gpu, it runs on the GPU.

    Raises:
        EncoderError: onnxruntime is missing or refuses the file, it takes or gives something else, or no size
            is known.
    """
    path = Path(spec)
    data = path.read_bytes()
    session = _session(path, data, device)
    taken = _Input.of(path, session.get_inputs())
    preprocess = _preprocess(path, taken, session.get_modelmeta().custom_metadata_map)
    digest = hashlib.sha256(data).hexdigest()
    size = taken.batch or batch_size
    # onnxruntime takes arrays of the host, wherever it computes.
    host = torch.device("cpu")
    layout = torch.contiguous_format
    return Encoder(
        path.stem, digest, _network(path, session, taken), host, torch.float32, preprocess, size, layout
    )


def _session(path: Path, data: bytes, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EncoderError(f"{path} needs onnxruntime: pip install 'id2[onnx]'") from error
    there = onnxruntime.get_available_providers()
    providers = [_ON_A_GPU] if device.type == "cuda" and _ON_A_GPU in there else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        # From bytes: the file cannot name others, and what is hashed is what runs.
        return onnxruntime.InferenceSession(data, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own, which share no base
        raise EncoderError(f"{path} is no ONNX file that onnxruntime runs: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first line of what onnxruntime says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _preprocess(path: Path, taken: _Input, metadata: Mapping[str, str]) -> Preprocess:
    """Return what a model's pictures must look like."""
    beside = sidecars.read(path)
    facts: dict[str, Any] = {name: beside[name] for name in _FACTS if name in beside}
    for name in _FACTS:
        if name not in facts and name in metadata:
            facts[name] = _value(path, name, metadata[name])
    if taken.kind is np.uint8 and {"mean", "std"} & set(facts):
        raise EncoderError(f"{path} takes uint8, so it scales by itself: leave out mean and std")
    if facts.setdefault("size", taken.side) is None:
        raise EncoderError(
            f"{path} takes pictures of any size: write the size it was made for into "
            f'{sidecars.file_of(path)}, such as {{"size": 288}}'
        )
    preprocess = sidecars.preprocess_of(facts, path, _AS_THEY_ARE if taken.kind is np.uint8 else None)
    if taken.side not in (None, preprocess.size):
        raise EncoderError(f"{path} takes {taken.side} pixels, and its size is given as {preprocess.size}")
    return preprocess


def _value(path: Path, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path}: its metadata gives no JSON as {name}: {error}") from error


def _network(path: Path, session: Any, taken: _Input) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model as a function of a batch float32[B,3,H,W]."""
    wanted = [session.get_outputs()[0].name]

    def run(x: torch.Tensor) -> torch.Tensor:
        try:
            (made,) = session.run(wanted, {taken.name: taken.array(x)})
        except Exception as error:  # as above
            raise EncoderError(f"{path} cannot encode: {_reason(error)}") from error
        return torch.from_numpy(np.asarray(made))

    return run
