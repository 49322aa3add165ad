"""How much a picture shows: from 0 for a blank one to 1.

Pictures without content have no origin. Blank ones, a logo on a clear ground, and a page of text are like one
another to an encoder that looks past small changes, and would match each other. `measure` tells them from
photos by tones alone. `verdicts.content` says from where on a picture has content. PDQ has a measure of its
own, see `pdq.quality`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A picture that shows less is blank, by the measure of any corpus.
BLANK: Final = 0.08
# The measure is of pictures of this side; larger ones are shrunk to it first.
SIDE: Final = 256
# Tones, of 256, that count as one.
_ONE_TONE = 9
# A cell of 8×8 pixels differs from its neighbor from here on, in tones.
_STEP = 4.0
# So many times the share of such cells is weighed against the share of other tones.
_EDGES = 3.0
# A page: one tone has this share at least, and what stands on it is as even as lines of text. Of 4,940 photos
# none is one.
_PAGE, _PAGE_EVENNESS = 0.6, 1.6


def measure(pixels: NDArray[np.uint8]) -> float:
    """Return how much a picture shows.

    The smaller of two shares: of pixels that have another tone than the most frequent one, and three times
    that of cells that differ from a neighbor. A smooth ramp has many tones and no edge. A logo has edges and
    one tone. A page of text has both, and is known by its evenness: fine strokes all over, and hardly a
    difference between one part of the page and another. It counts as 0.

    Args:
        pixels: uint8[S,S,3] RGB.
    """
    image = Image.fromarray(pixels).convert("L")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    tones = np.convolve(image.histogram(), np.ones(_ONE_TONE), "same").max() / SIDE**2
    gray = np.asarray(image, np.float32)
    if tones >= _PAGE and _means(gray, 16).std() < _PAGE_EVENNESS * _fineness(gray):
        return 0.0
    cells = _means(gray, 8)
    down, across = np.abs(np.diff(cells, axis=0))[:, :-1], np.abs(np.diff(cells, axis=1))[:-1]
    edges = (np.maximum(down, across) >= _STEP).mean()
    return float(min(1 - tones, _EDGES * edges, 1))


def _fineness(gray: NDArray[np.float32]) -> np.float32:
    """Mean difference of neighboring pixels, down and across."""
    return np.float32(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())


def _means(gray: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of cells of side² pixels."""
    count = SIDE // side
    return np.asarray(gray.reshape(count, side, count, side).mean((1, 3)))
