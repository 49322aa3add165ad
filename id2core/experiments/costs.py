"""What methods cost: training, feature extraction and matching, the efficiency columns of Table 3."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from id2core.encoders import images
from id2core.encoders.base import Encoder
from id2core.encoders.images import Decoded
from id2core.errors import StorageError
from id2core.experiments.evaluation_sets import TEST, Bench
from id2core.experiments.results import Column
from id2core.store import storage
from id2core.training.finetune import REPORT
from id2core.transforms.linear import Transform

COLUMNS = (
    Column("train_s", "train, s"),
    Column("extract_ms", "extract, ms/picture", digits=2),
    Column("match_s", "match, 1e-10 s/pair", digits=2),
)
NOTE = (
    "Extraction is of a decoded picture: the encoder, then W. All times are of this machine, which may have "
    "had other work; compare them with each other only."
)
_EXTRACTED, _MATCHED = 64, 2000


class Clock:
    """Measures what a method costs on a bench, whose encoder is loaded once.

    `extract_ms` is None where it is not known which encoder made the latents, or that or the pictures of
    the test are not there.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._network = bench.network()
        self._pixels = None if self._network is None else _pixels(bench, self._network.preprocess.size)

    def costs(self, w: Transform, train_s: float | None) -> dict[str, float | None]:
        """A row's `train_s`, `extract_ms` (milliseconds) and `match_s` (10⁻¹⁰ seconds)."""
        return {"train_s": train_s, "extract_ms": self._extract(w), "match_s": self._match(w)}

    def _extract(self, w: Transform) -> float | None:
        if self._network is None or self._pixels is None:
            return None
        _described(self._network, w, self._pixels[: self._network.batch_size])  # buffers, kernels
        started = time.perf_counter()
        _described(self._network, w, self._pixels)
        return 1e3 * (time.perf_counter() - started) / len(self._pixels)

    def _match(self, w: Transform) -> float:
        r = w.apply(self._bench.references[:_MATCHED])
        started = time.perf_counter()
        repeated = 5
        for _ in range(repeated):
            r @ r.T
        return 1e10 * (time.perf_counter() - started) / (repeated * len(r) ** 2)


def _described(network: Encoder, w: Transform, pixels: NDArray[np.uint8]) -> None:
    w.apply(network.encode(pixels))


def _pixels(bench: Bench, size: int) -> NDArray[np.uint8] | None:
    """uint8[P,size,size,3]: some pictures of the test; None where they are gone."""
    try:
        found = [images.decode(storage.read_bytes(uri), size) for uri in bench.uris(TEST)[:_EXTRACTED]]
    except (FileNotFoundError, StorageError):
        return None
    pixels = [picture.pixels for picture in found if isinstance(picture, Decoded)]
    return np.stack(pixels) if pixels else None


def of_tuning(bench: Bench) -> dict[str, Any]:
    """What `finetune` wrote beside the encoder of a bench; empty where that is not known or not there."""
    if bench.spec is None:
        return {}
    try:
        return dict(json.loads((Path(bench.spec) / REPORT).read_text()))
    except (OSError, ValueError):
        return {}
