"""Matchers that look at an upload under several views, see `id2core.encoders.views`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from id2core.encoders import images, views
from id2core.encoders.images import Decoded
from id2core.errors import ExperimentError
from id2core.experiments.upload_sets import PixelView


def _inset(number: int) -> PixelView:
    def look(data: bytes, size: int) -> NDArray[np.uint8] | None:
        decoded = images.decode(data, size, look=views.insets)
        if not isinstance(decoded, Decoded):
            raise ExperimentError(f"an upload that an edit made cannot be decoded: {decoded}")
        return decoded.insets[number] if number < len(decoded.insets) else None

    return PixelView(f"inset-{number + 1}", 1, look)


INSETS = (_inset(0), _inset(1))
