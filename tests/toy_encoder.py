"""An encoder kind as somebody would add it: a module with `load_encoder`, and a row in `registry.KINDS`."""

from __future__ import annotations

import torch

from id2core.encoders.base import Encoder
from id2core.encoders.preprocess import Preprocess


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Encode the mean color of `toy:SIDE`."""
    return Encoder("toy", "0" * 64, _mean_color, device, torch.float32, Preprocess(int(spec[4:])), batch_size)


def _mean_color(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3))
