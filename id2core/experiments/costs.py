"""What methods cost: training, feature extraction and matching, the efficiency columns of Table 3."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from id2core.encoders import images
from id2core.encoders.base import Encoder
from id2core.encoders.images import Decoded
from id2core.errors import StorageError
from id2core.experiments.evaluation_sets import TEST, EvaluationSet
from id2core.experiments.results import Column
from id2core.store import storage, strict_json
from id2core.training.finetune import REPORT
from id2core.transforms.linear import Transform

COLUMNS = (
    Column("train_s", "train, s"),
    Column("extract_ms", "extract, ms/picture", digits=2),
    Column("match_s", "match, 1e-10 s/pair", digits=2),
)
NOTE = (
    "Extraction is the encoder, then W, on a decoded picture. All times are of this machine, which may have "
    "had other work. Compare them with each other only."
)
_EXTRACTED, _MATCHED = 64, 2000


class Clock:
    """Measures what a method costs on an evaluation set, whose encoder is loaded once.

    `extract_ms` is None where it is not known which encoder made the latents, or that or the pictures of
    the test are not there.
    """

    def __init__(self, data: EvaluationSet) -> None:
        self._data = data
        self._network = data.network()
        self._pixels = None if self._network is None else _pixels(data, self._network.preprocess.size)

    def costs(self, w: Transform, train_s: float | None) -> dict[str, float | None]:
        """Return a row's `train_s`, `extract_ms` (milliseconds) and `match_s` (10⁻¹⁰ seconds)."""
        return {"train_s": train_s, "extract_ms": self._extract(w), "match_s": self._match(w)}

    def _extract(self, w: Transform) -> float | None:
        if self._network is None or self._pixels is None:
            return None
        _described(self._network, w, self._pixels[: self._network.batch_size])  # buffers, kernels
        started = time.perf_counter()
        _described(self._network, w, self._pixels)
        return 1e3 * (time.perf_counter() - started) / len(self._pixels)

    def _match(self, w: Transform) -> float:
        r = w.apply(self._data.references[:_MATCHED])
        started = time.perf_counter()
        repeated = 5
        for _ in range(repeated):
            r @ r.T
        return 1e10 * (time.perf_counter() - started) / (repeated * len(r) ** 2)


def _described(network: Encoder, w: Transform, pixels: NDArray[np.uint8]) -> None:
    w.apply(network.encode(pixels))


def _pixels(data: EvaluationSet, size: int) -> NDArray[np.uint8] | None:
    """Return pictures of the test, uint8[P,size,size,3]; None where they are gone."""
    try:
        decoded = [images.decode(storage.read_bytes(uri), size) for uri in data.uris(TEST)[:_EXTRACTED]]
    except (FileNotFoundError, StorageError):
        return None
    pixels = [picture.pixels for picture in decoded if isinstance(picture, Decoded)]
    return np.stack(pixels) if pixels else None


def tuning_seconds(data: EvaluationSet) -> float | None:
    """Return how long `finetune` trained the encoder of an evaluation set; None where it is not known."""
    if data.spec is None:
        return None
    try:
        return float(strict_json.read_file(Path(data.spec) / REPORT)["seconds"])
    except (OSError, ValueError, LookupError):
        return None
