"""Origins with translations drawn from a known model, and a config that trains on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.training.config import GradientConfig
from id2core.training.pairs import Pairs

N = 64
SMALL = GradientConfig(
    scale=16.0, dimensions=32, batch=64, epochs=6, iterations=30, lr=3e-2, ema=0.99, validation_share=0.3
)


def made(origins: int = 200, most: int = 6, seed: int = 0) -> Pairs:
    """Translations that differ from their origin by much, but in a quarter of all directions."""
    rng = np.random.default_rng(seed)
    noisy = rng.standard_normal((N // 4, N))
    rows: list[NDArray[Any]] = []
    sizes = rng.integers(2, most + 1, origins)
    for size in sizes:
        origin = rng.standard_normal(N)
        rows += [origin, *(origin + 1.5 * rng.standard_normal((size - 1, N // 4)) @ noisy)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = [f"{i:064x}" for i in range(origins)]
    return Pairs(np.array(rows, np.float16), ids, offsets, {"encoder_id": "mini-0"}, f"made-{seed}")


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
