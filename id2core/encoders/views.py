"""Views of an upload: the picture inside its frame, the halves of a collage, mirrored, turned by a quarter.

What a frame is, is seen in the pixels (`insets`). The inner picture costs one encoder call more, and only where
a frame was seen. Mirrored and turned views cost none (`MIRRORED`, `TURNED_LEFT`, `TURNED_RIGHT`): an encoder of
convolutions is nearly equivariant, so the latent of the mirrored picture is nearly the mirrored latent. What is
left of the difference is mostly a shift by part of a cell, which a small filter undoes. It is learned once for
an encoder, by least squares (`Equivariance.fit`).

A frame is one of three things around the picture:

- *plain*: bars or a border of one color, or the chrome of an app's post, lettering on paper of one color;
- *blurred*: the same thickness at opposite sides, without fine detail, as of an enlarged and blurred copy;
- a *seam*: a straight cut across the whole picture, with or without a gap, between two pictures.

All three have a straight line across, where most columns have a larger step than a few pixels before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Gray = NDArray[np.int16]
Shares = NDArray[np.float64]

# Smaller pictures have too few pixels to see a line in.
LEAST_SIDE: Final = 32
# A step at a line is larger by so many tones than those two pixels before and after.
_STEP, _GAP = 4, 2
# Paper and what differs from it, in tones.
_TOLERANCE: Final = 14
# Plain frames: share of columns at a line; the most that differs from paper outside; the least inside.
_LINE, _MOST_OUTSIDE, _LEAST_INSIDE = 0.45, 0.42, 0.4
_LEAST_PICTURE: Final = 0.2  # of a side
_LINES: Final = 12  # candidates at most
# Blurred frames: share of columns at two opposite lines, where one pair and where two pairs were seen; roughness
# of what is outside, in tones and over that inside.
_ONE_PAIR, _TWO_PAIRS, _ROUGH, _ROUGH_RATIO = 0.28, 0.12, 1.3, 0.62
_MOST_BLURRED: Final = 1 / 3  # of a side
# Seams: share of columns at the cut, down and across, where steps go up and down; across where they may all have
# one sign (a horizon does); and where an even strip lies between.
_SEAM_DOWN, _SEAM_ACROSS, _SEAM_SURE, _SEAM_STRIP = 0.7, 0.65, 0.7, 0.45
_BOTH_SIGNS, _EVEN, _EVEN_RATIO = 0.1, 9.0, 0.5
_MARGIN: Final = 0.2  # a seam lies so far from both ends
# What is cut off inside a line, in pixels: half of the frame's color in the last row would cost more.
_INSET: Final = 1


@dataclass(frozen=True)
class Box:
    """A part of a picture, in shares of its width and height, from the left and from the top."""

    left: float
    top: float
    right: float
    bottom: float

    def within(self, outer: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return the part of a rectangle that this is: left, top, right, bottom, as Pillow has them."""
        left, top, right, bottom = outer
        width, height = right - left, bottom - top
        return (
            left + self.left * width,
            top + self.top * height,
            left + self.right * width,
            top + self.bottom * height,
        )

    def before(self, orientation: int) -> Box:
        """Return where this part of an upright picture lies in the picture as stored.

        Args:
            orientation: by EXIF, 1 to 8.
        """
        left, top, right, bottom = self.left, self.top, self.right, self.bottom
        if orientation in (2, 3, 6, 7):
            left, right = 1 - right, 1 - left
        if orientation in (3, 4, 7, 8):
            top, bottom = 1 - bottom, 1 - top
        if orientation in (5, 6, 7, 8):
            return Box(top, left, bottom, right)
        return Box(left, top, right, bottom)


WHOLE: Final = Box(0, 0, 1, 1)


@dataclass(frozen=True)
class _Band:
    """Rows from `start` to before `stop`."""

    start: int
    stop: int
    score: float = 0.0


def insets(pixels: NDArray[np.uint8]) -> tuple[Box, ...]:
    """Find the pictures that a picture shows: one inside a frame, two in a collage.

    Args:
        pixels: uint8[H,W,3] RGB, best a square of 256: thresholds are for that resolution.

    Returns:
        No box where there is neither frame nor seam. No content of `pixels` makes it raise.
    """
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return ()
    gray = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.int16)
    found = _plain(gray) or _blurred(gray)
    if found:
        return (_box(*found, gray),)
    return _halves(gray)


def _box(rows: _Band, columns: _Band, gray: Gray) -> Box:
    """Return a part as a box, less a pixel at each side that lies inside of the picture."""
    height, width = gray.shape
    top, bottom = _inset(rows, height)
    left, right = _inset(columns, width)
    return Box(left / width, top / height, right / width, bottom / height)


def _inset(band: _Band, size: int) -> tuple[int, int]:
    return band.start + _INSET * (band.start > 0), band.stop - _INSET * (band.stop < size)


def _turned(gray: Gray) -> Gray:
    return np.ascontiguousarray(gray.T)


def _line_shares(gray: Gray) -> Shares:
    """Return for each place between two rows, 0 to H, the share of columns with a line there, float64[H+1]."""
    height = len(gray)
    steps = np.zeros((height + 2 * _GAP, gray.shape[1]), np.int16)
    np.abs(gray[2:] - gray[:-2], out=steps[_GAP + 1 : _GAP + height - 1])
    beside = np.maximum(steps[: -2 * _GAP], steps[2 * _GAP :])
    rows = (steps[_GAP:-_GAP] > beside + _STEP).mean(axis=1)
    shares = np.zeros(height + 1)
    np.maximum(rows[:-1], rows[1:], out=shares[1:height])
    return shares


def _sums(rows: NDArray[np.floating]) -> Shares:
    """Return sums of all rows before each place, float64[H+1]."""
    return np.concatenate([[0.0], np.cumsum(rows, dtype=np.float64)])


def _plain(gray: Gray) -> tuple[_Band, _Band] | None:
    """Return rows and columns inside a plain frame."""
    rows, columns = _Band(0, len(gray)), _Band(0, gray.shape[1])
    seen = False
    # Lines of the top and the bottom are clearer without the columns beside the picture.
    for _ in range(2):
        down = _plain_rows(gray[:, columns.start : columns.stop])
        rows = down or rows
        across = _plain_rows(_turned(gray[rows.start : rows.stop]))
        columns = across or columns
        seen = seen or bool(down or across)
        if across is None:
            break
    return (rows, columns) if seen else None


def _plain_rows(gray: Gray) -> _Band | None:
    """Return the rows between two lines, outside of which nearly all has one tone."""
    height = len(gray)
    tones = np.median(gray[[0, -1]], axis=1)
    if abs(tones[0] - tones[1]) > _TOLERANCE:
        return None
    paper = int(tones.mean())
    if (np.abs(gray[[0, -1]] - paper) > _TOLERANCE).mean(axis=1).max() > 0.05:
        return None
    shares = _line_shares(gray)
    before = _sums((np.abs(gray - paper) > _TOLERANCE).mean(axis=1))
    lines = _clearest(shares)
    starts, stops = lines[:, None], lines[None, :]
    inside = before[stops] - before[starts]
    length = np.maximum(stops - starts, 1)
    outside = (before[-1] - inside) / np.maximum(height - length, 1)
    inside = inside / length
    score = shares[starts] + shares[stops] + 2 * (inside - outside)
    allowed = (stops - starts >= _LEAST_PICTURE * height) & (outside <= _MOST_OUTSIDE)
    score = np.where(allowed & (inside >= _LEAST_INSIDE), score, -np.inf)
    if not score.size or not np.isfinite(score.max()):
        return None
    start, stop = np.unravel_index(score.argmax(), score.shape)
    return _Band(int(lines[start]), int(lines[stop]), float(score.max()))


def _clearest(shares: Shares) -> NDArray[np.int64]:
    """Return places of the clearest lines, ascending."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(shares, 2), 5).max(axis=1)
    places = np.flatnonzero((shares >= _LINE) & (shares == around))
    places = places[(places >= 2) & (places <= len(shares) - 3)]
    return np.sort(places[np.argsort(-shares[places], kind="stable")[:_LINES]])


def _blurred(gray: Gray) -> tuple[_Band, _Band] | None:
    """Return rows and columns inside a blurred frame."""
    down, across = _blurred_rows(gray), _blurred_rows(_turned(gray))
    height, width = gray.shape
    if min(down.score, across.score) >= _TWO_PAIRS:
        rows = _blurred_rows(gray[:, across.start : across.stop])
        columns = _blurred_rows(_turned(gray[down.start : down.stop]))
        return max(down, rows, key=_score), max(across, columns, key=_score)
    if max(down.score, across.score) >= _ONE_PAIR:
        if down.score > across.score:
            return down, _Band(0, width)
        return _Band(0, height), across
    return None


def _score(band: _Band) -> float:
    return band.score


def _blurred_rows(gray: Gray) -> _Band:
    """Return the rows between the clearest two lines at the same distance from both ends.

    The score is 0 where no such lines have rows outside that are smoother than those inside.
    """
    height = len(gray)
    shares = _line_shares(gray)
    rough = np.abs(2 * gray[:, 1:-1] - gray[:, :-2] - gray[:, 2:]).mean(axis=1)
    before = _sums(rough)
    distance = np.arange(3, max(int(_MOST_BLURRED * height), 4))
    # The lower line may be a pixel off.
    near = np.stack([shares[height - distance + off] for off in (-1, 0, 1)])
    score = np.minimum(shares[distance], near.max(axis=0))
    outside = (before[distance - 1] + before[-1] - before[height - distance + 1]) / (2 * distance - 2)
    inside = (before[height - distance] - before[distance]) / (height - 2 * distance)
    score = np.where((outside < _ROUGH) & (outside < _ROUGH_RATIO * inside), score, 0.0)
    best = int(score.argmax())
    stop = height - int(distance[best]) + int(near[:, best].argmax()) - 1
    return _Band(int(distance[best]), stop, float(score[best]))


def _halves(gray: Gray) -> tuple[Box, ...]:
    """Return both sides of a seam."""
    height, width = gray.shape
    whole = _Band(0, height), _Band(0, width)
    down, across = _seam(gray, _SEAM_DOWN, np.inf), _seam(_turned(gray), _SEAM_ACROSS, _SEAM_SURE)
    if down and (across is None or down.score >= across.score):
        parts = ((_Band(0, down.start), whole[1]), (_Band(down.stop, height), whole[1]))
    elif across:
        parts = ((whole[0], _Band(0, across.start)), (whole[0], _Band(across.stop, width)))
    else:
        return ()
    return tuple(_box(*part, gray) for part in parts)


def _seam(gray: Gray, least: float, sure: float) -> _Band | None:
    """Return the gap of the clearest seam between rows, empty where there is none.

    Args:
        gray: int16[H,W].
        least: share of columns at the cut, where steps go up and down.
        sure: share of columns at the cut, where they need not.
    """
    height = len(gray)
    shares = _line_shares(gray)
    low, high = int(_MARGIN * height), int((1 - _MARGIN) * height)
    place = low + int(shares[low:high].argmax())
    share = float(shares[place])
    if share < _SEAM_STRIP:
        return None
    around = gray[place - 4 : place + 4]
    uneven = np.abs(around - np.median(around, axis=1, keepdims=True).astype(np.int16)).mean(axis=1)
    even = uneven < min(_EVEN, _EVEN_RATIO * float(np.sort(uneven[[0, 1, -2, -1]])[1]))
    if even.any():
        rows = place - 4 + np.flatnonzero(even)
        return _Band(int(rows[0]), int(rows[-1]) + 1, share)
    step = gray[place + 2] - gray[place - 3]
    both = min((step > 8).mean(), (step < -8).mean()) >= _BOTH_SIGNS * (np.abs(step) > 8).mean()
    return _Band(place, place, share) if share >= (least if both else sure) else None
