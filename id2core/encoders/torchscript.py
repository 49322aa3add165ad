"""TorchScript files as encoders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from id2core.encoders import sidecars
from id2core.encoders.base import Encoder
from id2core.errors import EncoderError


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Load a TorchScript file that maps float32[B,3,H,W] to float32[B,…]; it runs in float32 in any case.

    A JSON file beside it (`NAME.json`) may give `size`, `mean` and `std`; by default 256 and [−1,1]. Copy
    detection models take ImageNet's scaling, `"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]`,
    and their own size: SSCD's authors stretch to 320 for batches. No such file has ever run here.
    TorchScript is a program: load only files that you trust.
    """
    path = Path(spec)
    preprocess = sidecars.preprocess_beside(path)
    try:
        module = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise EncoderError(
            f"{path} is neither a TorchScript file nor a diffusers directory: {error}"
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Encoder(path.stem, digest, module, device, torch.float32, preprocess, batch_size)
