"""An encoder kind as somebody would add it: a module with `load_encoder`, and a row in `registry.KINDS`."""

from __future__ import annotations

import time

import torch

from id2core.encoders.base import Encoder
from id2core.encoders.preprocess import Preprocess


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Encode the mean color of `toy:SIDE`, or of `toy:SIDE@SECONDS` two pictures in so many seconds."""
    side, _, seconds = spec[4:].partition("@")

    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(float(seconds))
        return _mean_color(x)

    work, batch_size = (slow, 2) if seconds else (_mean_color, batch_size)
    return Encoder("toy", "0" * 64, work, device, torch.float32, Preprocess(int(side)), batch_size)


def _mean_color(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3))
