"""Curves for TensorBoard, an optional package: without it there are none, and `log.jsonl` has the numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Scalars:
    """Numbers by step, under a folder that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step, over what an interrupted run wrote of this step and later ones."""
        if importlib.util.find_spec("tensorboard") is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and stop the thread that writes."""
        if self._writer is not None:
            self._writer.close()
