"""The train flow: W from stored latents; no image is read."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import TrainRequest
from id2.results import TrainReport


@flow_of(id2.train, run_name="train {out}")
def train(request: TrainRequest) -> TrainReport | None:
    """Run `id2.train` with its stages as tasks."""
    return id2.train.run(request)
