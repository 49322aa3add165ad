"""Views of an upload that are seen in its pixels: the picture inside a frame, the two halves of a collage.

The inner picture costs one encoder call more, and only where a frame was seen. Frames are of five kinds:

- *plain*: bars or a border of one color, or a post's chrome, which is lettering on paper of one color;
- a *bar*: at one side alone, blank or lettered, such as a caption above: at least half has one tone. A thick
  one with an object on it, such as a product on white, is one of two pictures;
- a *hairline*: a border of one color, one to three pixels thick, at all four sides;
- *blurred*: as thick at one side as at the opposite one, without fine detail: an enlarged and blurred copy;
- a *seam*: a straight cut across the whole picture, with or without a gap, between two pictures.

All but a hairline have a straight line across: in most columns, the step there is larger than a few pixels
before and after. `latent_views` has the views that cost no encoder call.

People frame what is framed already: a screenshot of a picture between bars, a border around a collage. So the
decoder looks again inside of what it found, and the innermost pictures are encoded in its place. A mistake
would lose the right one. So a frame in a frame must be clearer than a first one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Names of pictures inside a picture: in a frame, in a collage, and in the manifest of a file.
INSET, HALVES, PARENT = "inset", ("half-1", "half-2"), "parent"

Gray = NDArray[np.int16]
Shares = NDArray[np.float64]

# Name of the rules: change it whenever a change here can alter a box.
FINDER: Final = "frames-v6"
# Boxes that `insets` finds.
MOST_INSETS: Final = 2
# Frames in frames that are removed, and seams: looks at an upload, one inside the other.
MOST_DEPTH: Final = 3
# Smaller pictures have too few pixels to see a line in.
LEAST_SIDE: Final = 32
# A step at a line is larger by so many tones than those two pixels before and after.
_STEP, _GAP = 4, 2
# Paper and what differs from it, in tones; share of other tones in the outermost row.
_TOLERANCE, _STAINS = 14, 0.05
# Plain frames: share of columns at a line; the most that differs from paper outside; the least inside.
_LINE, _MOST_OUTSIDE, _LEAST_INSIDE = 0.45, 0.42, 0.4
_LEAST_PICTURE: Final = 0.2  # of a side
_LINES: Final = 12  # candidates at most
# Hairlines: the most pixels. One of more is a plain frame.
_HAIR: Final = 3
# Bars at one side: pixels at least, and share of columns at the line. Share of other tones in the last row of
# the bar and in all of it; least share of paper in it, within so many tones.
_BAR, _BAR_LINE, _BAR_STAINS, _MOST_LETTERING, _BAR_PAPER, _BAR_TONES = 8, 0.6, 0.02, 0.3, 0.5, 2
# Objects on bars: least thickness of a bar, of a side, which captions seldom have; side of a filled square,
# over that thickness, which strokes of letters seldom have; how full it is.
_HALF, _STROKE, _FILLED = 0.35, 0.12, 0.97
# Blurred frames: share of columns at two opposite lines, where one pair and where two pairs were seen;
# roughness of what is outside, in tones and over that inside.
_ONE_PAIR, _TWO_PAIRS, _ROUGH, _ROUGH_RATIO = 0.28, 0.12, 1.3, 0.62
_MOST_BLURRED: Final = 1 / 3  # of a side
# Seams: share of columns at a cut from left to right, and of rows at one from top to bottom; of either, where
# an even gap lies between.
_SEAM_ROWS, _SEAM_COLUMNS, _SEAM_GAP = 0.8, 0.65, 0.45
# How even: mean difference from the row's median, in tones, and over that beside it, which has some. Rows to
# either side of a cut that may belong to its gap, and those that may lie between the two.
_EVEN, _EVEN_RATIO, _UNEVEN = 9.0, 0.5, 3.0
_GAP_REACH, _GAP_OFF = 28, 4
# Standard deviation of tones in a half: a sky above a horizon has less.
_BLAND: Final = 8.0
_MARGIN: Final = 0.2  # a seam lies so far from both ends
# Frames in frames: pixels of a plain frame at each side; share of it that is off its tone, by so many tones;
# share of columns at lines around a blurred frame of four sides, and of two.
_THICK, _OFF, _OFF_TONES, _FOUR_LINES, _TWO_LINES = 4, 0.25, 4, 0.4, 0.5
# Seams in frames: share of columns at the cut; correlation of tones along both sides, which a horizon has;
# how many of the steps at a cut without a gap go the other way, and their tones.
_SURE_SEAM, _ALIKE, _BOTH_WAYS, _STEP_TONES = 0.8, 0.5, 0.1, 8
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
            # A sum may be rounded to beyond the rectangle.
            min(left + self.right * width, right),
            min(top + self.bottom * height, bottom),
        )

    def of(self, outer: Box) -> Box:
        """Return where this part of a part of a picture lies in the picture."""
        return Box(*self.within((outer.left, outer.top, outer.right, outer.bottom)))

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


@dataclass(frozen=True, eq=False)
class _Lines:
    """Lines between rows of a gray picture.

    Attributes:
        gray: int16[H,W].
    """

    gray: Gray

    @classmethod
    def across(cls, gray: Gray) -> _Lines:
        """Return the lines between columns, as if they were rows."""
        return cls(np.ascontiguousarray(gray.T))

    @functools.cached_property
    def shares(self) -> Shares:
        """Return the share of columns with a line at each place between rows, 0 to H, float64[H+1]."""
        height = len(self.gray)
        steps = np.zeros((height + 2 * _GAP, self.gray.shape[1]), np.int16)
        np.abs(self.gray[2:] - self.gray[:-2], out=steps[_GAP + 1 : _GAP + height - 1])
        beside = np.maximum(steps[: -2 * _GAP], steps[2 * _GAP :])
        beside += _STEP
        rows = np.count_nonzero(steps[_GAP:-_GAP] > beside, axis=1) / self.gray.shape[1]
        shares = np.zeros(height + 1)
        np.maximum(rows[:-1], rows[1:], out=shares[1:height])
        return shares


def insets(pixels: NDArray[np.uint8], depth: int = 0) -> tuple[Box, ...]:
    """Find the pictures that a picture shows: one inside a frame, two in a collage.

    Args:
        pixels: uint8[H,W,3] RGB, best a square of 256: thresholds are for that resolution.
        depth: how many frames and seams were found around it. With any, only clear ones are found.

    Returns:
        Two boxes at most, and none where there is neither frame nor seam. No content of `pixels` makes it
        raise.
    """
    if min(pixels.shape[:2]) < LEAST_SIDE:
        return ()
    gray = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.int16)
    rows, columns = _Lines(gray), _Lines.across(gray)
    if frame := _plain(rows, columns):
        is_clear = depth == 0 or _is_even(*frame, gray)
    elif frame := _blurred(rows, columns):
        is_clear = depth == 0 or _has_clear_lines(*frame, gray)
    elif parts := _beside_bar(rows, columns, depth) or _halves(rows, columns, only_clear=depth > 0):
        return tuple(_box(*part, gray) for part in parts)
    elif frame := _hairline(gray):
        is_clear = True
    else:
        return ()
    return (_box(*frame, gray),) if is_clear else ()


def _box(rows: _Band, columns: _Band, gray: Gray) -> Box:
    """Return a part as a box, less a pixel at each side that lies inside of the picture."""
    height, width = gray.shape
    top, bottom = _inset(rows, height)
    left, right = _inset(columns, width)
    return Box(left / width, top / height, right / width, bottom / height)


def _inset(band: _Band, size: int) -> tuple[int, int]:
    return band.start + _INSET * (band.start > 0), band.stop - _INSET * (band.stop < size)


def _sums(rows: NDArray[np.floating]) -> Shares:
    """Return sums of all rows before each place, float64[H+1]."""
    return np.concatenate([[0.0], np.cumsum(rows, dtype=np.float64)])


def _plain(rows: _Lines, columns: _Lines) -> tuple[_Band, _Band] | None:
    """Return rows and columns inside a plain frame."""
    gray = rows.gray
    down = _plain_rows(rows)
    across = _plain_rows(_Lines.across(gray[down.start : down.stop]) if down else columns)
    if across:
        # Lines above and below are clearer without the columns beside the picture.
        down = _plain_rows(_Lines(gray[:, across.start : across.stop])) or down
    if not (down or across):
        return None
    return down or _Band(0, len(gray)), across or _Band(0, gray.shape[1])


def _plain_rows(lines: _Lines) -> _Band | None:
    """Return the rows between two lines, outside of which nearly all has one tone."""
    gray, height = lines.gray, len(lines.gray)
    ends = gray[[0, -1]]
    tones = np.median(ends, axis=1)
    paper = int(tones.mean())
    if (
        abs(tones[0] - tones[1]) > _TOLERANCE
        or (np.abs(ends - paper) > _TOLERANCE).mean(axis=1).max() > _STAINS
    ):
        return None
    places = _clearest(lines.shares)
    if len(places) < 2:
        return None
    starts, stops = places[:, None], places[None, :]
    before = _sums(np.count_nonzero(np.abs(gray - paper) > _TOLERANCE, axis=1) / gray.shape[1])
    length = np.maximum(stops - starts, 1)
    inside = before[stops] - before[starts]
    outside = (before[-1] - inside) / np.maximum(height - length, 1)
    inside = inside / length
    allowed = (stops - starts >= _LEAST_PICTURE * height) & (outside <= _MOST_OUTSIDE)
    score = lines.shares[starts] + lines.shares[stops] + 2 * (inside - outside)
    score = np.where(allowed & (inside >= _LEAST_INSIDE), score, 0.0)
    start, stop = np.unravel_index(score.argmax(), score.shape)
    return _Band(int(places[start]), int(places[stop])) if score[start, stop] > 0 else None


def _clearest(shares: Shares) -> NDArray[np.int64]:
    """Return places of the clearest lines, ascending."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(shares, 2), 5).max(axis=1)
    places = np.flatnonzero((shares >= _LINE) & (shares == around))
    places = places[(places >= 2) & (places <= len(shares) - 3)]
    return np.sort(places[np.argsort(-shares[places], kind="stable")[:_LINES]])


def _hairline(gray: Gray) -> tuple[_Band, _Band] | None:
    """Return rows and columns inside a border of one tone that is too thin to have a line of its own."""
    sides = [gray, gray[::-1], gray.T, gray.T[::-1]]
    tones = np.array([np.median(side[0]) for side in sides])
    paper = int(tones.mean())
    if np.ptp(tones) > _TOLERANCE:
        return None
    other = np.stack([(np.abs(side[: _HAIR + 1] - paper) > _TOLERANCE).mean(axis=1) for side in sides])
    if (other[:, 0] > _STAINS).any() or (other[:, -1] < _LINE).any():
        return None
    # A row that is half border and half picture belongs to the border.
    top, bottom, left, right = (int((side >= _LINE).argmax()) for side in other)
    height, width = gray.shape
    return _Band(top, height - bottom), _Band(left, width - right)


def _beside_bar(rows: _Lines, columns: _Lines, depth: int) -> tuple[tuple[_Band, _Band], ...]:
    """Return rows and columns beside a bar at one side alone, such as a caption above a picture.

    Where the bar is a picture, too, these are of both. Inside a frame, or beside a collage, a mistake would
    lose a picture, so the bar is none there.
    """
    down, across = (max(_bars(lines), key=_score) for lines in (rows, columns))
    is_down = down.score >= across.score
    bar, gray = (down, rows.gray) if is_down else (across, columns.gray)
    if not bar.score:
        return ()
    height, width = gray.shape
    rest = _Band(0, bar.start) if bar.start else _Band(bar.stop, height)
    parts = [rest]
    is_half = depth == 0 and bar.stop - bar.start >= _HALF * height
    if is_half and _shows_object(gray[bar.start : bar.stop]):
        beside = gray[rest.start : rest.stop] if is_down else gray[rest.start : rest.stop].T
        if not _halves(_Lines(beside), _Lines.across(beside), only_clear=True):
            parts.insert(bar.start > 0, bar)
    whole = _Band(0, width)
    return tuple((part, whole) if is_down else (whole, part) for part in parts)


def _bars(lines: _Lines) -> tuple[_Band, _Band]:
    """Return the bars above and below all other rows; their score is 0 where there is none."""
    height = len(lines.gray)
    above, below = (_bar_rows(lines.gray[::way], lines.shares[::way]) for way in (1, -1))
    return above, _Band(height - below.stop, height, below.score)


def _shows_object(bar: Gray) -> bool:
    """Return whether a square in a bar is off its tone all over: most strokes of letters are narrower."""
    side = min(int(_STROKE * len(bar)), *bar.shape)
    off = np.abs(bar - np.median(bar)) > _TOLERANCE
    sums = np.pad(off.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = sums[side:] - sums[:-side]
    return bool((rows[:, side:] - rows[:, :-side]).max() >= _FILLED * side**2)


def _bar_rows(gray: Gray, shares: Shares) -> _Band:
    """Return the first rows, up to the clearest line above which at least half has one tone."""
    paper, height = np.median(gray[0]), len(gray)
    places = np.arange(_BAR, int((1 - _LEAST_PICTURE) * height))
    places = places[shares[places] >= _BAR_LINE]
    if not len(places) or (np.abs(gray[0] - paper) > _TOLERANCE).mean() > _STAINS:
        return _Band(0, 0)
    off = np.abs(gray - paper)
    other, even = (off > _TOLERANCE).mean(axis=1), (off <= _BAR_TONES).mean(axis=1)
    before, paper_before = _sums(other), _sums(even)
    allowed = (
        (other[places - _GAP] <= _BAR_STAINS)
        & (before[places] <= _MOST_LETTERING * places)
        & (paper_before[places] >= _BAR_PAPER * places)
        & (before[-1] - before[places] >= _LEAST_INSIDE * (height - places))
    )
    if not allowed.any():
        return _Band(0, 0)
    size = int(max(places[allowed], key=shares.item))
    return _Band(0, size, float(shares[size]))


def _blurred(rows: _Lines, columns: _Lines) -> tuple[_Band, _Band] | None:
    """Return rows and columns inside a blurred frame."""
    gray = rows.gray
    down, across = _blurred_rows(rows), _blurred_rows(columns)
    if min(down.score, across.score) >= _TWO_PAIRS:
        clearer = _blurred_rows(_Lines(gray[:, across.start : across.stop]))
        second = _blurred_rows(_Lines.across(gray[down.start : down.stop]))
        return max(down, clearer, key=_score), max(across, second, key=_score)
    if max(down.score, across.score) < _ONE_PAIR:
        return None
    if down.score > across.score:
        return down, _Band(0, gray.shape[1])
    return _Band(0, len(gray)), across


def _score(band: _Band) -> float:
    return band.score


def _blurred_rows(lines: _Lines) -> _Band:
    """Return the rows between the clearest two lines at the same distance from both ends.

    The score is 0 where no such lines have rows outside that are smoother than those inside.
    """
    gray, shares, height = lines.gray, lines.shares, len(lines.gray)
    slopes = gray[:, 1:] - gray[:, :-1]
    bends = np.abs(slopes[:, 1:] - slopes[:, :-1])
    before = _sums(bends.sum(axis=1, dtype=np.int32) / bends.shape[1])
    distance = np.arange(3, max(int(_MOST_BLURRED * height), 4))
    # The lower line may be a pixel off.
    near = np.stack([shares[height - distance + off] for off in (-1, 0, 1)])
    outside = (before[distance - 1] + before[-1] - before[height - distance + 1]) / (2 * distance - 2)
    inside = (before[height - distance] - before[distance]) / (height - 2 * distance)
    smooth = (outside < _ROUGH) & (outside < _ROUGH_RATIO * inside)
    score = np.where(smooth, np.minimum(shares[distance], near.max(axis=0)), 0.0)
    best = int(score.argmax())
    start = int(distance[best])
    return _Band(start, height - start + int(near[:, best].argmax()) - 1, float(score[best]))


def _is_even(rows: _Band, columns: _Band, gray: Gray) -> bool:
    """Return whether a plain frame is thick at each side that it has, and of one tone along nearly all of it.

    Frames in frames that are found at once have a tone each.
    """
    down = _beside(gray[:, columns.start : columns.stop], rows)
    across = _beside(gray[rows.start : rows.stop].T, columns)
    if min(len(side) for side in down + across) < _THICK:
        return False
    # A line beside a picture, or beside an outer frame, has some of it.
    frame = [side[1:-1] for side in down + across]
    off = [np.abs(side - np.median(side, axis=1, keepdims=True)) > _OFF_TONES for side in frame]
    return bool(sum(side.sum() for side in off) <= _OFF * sum(side.size for side in off))


def _beside(gray: Gray, rows: _Band) -> list[Gray]:
    """Return what lies above and below some rows, where there is any."""
    return [side for side in (gray[: rows.start], gray[rows.stop :]) if len(side)]


def _has_clear_lines(rows: _Band, columns: _Band, gray: Gray) -> bool:
    """Return whether all lines around a picture are clear."""
    down = _line_shares(gray[:, columns.start : columns.stop], rows)
    across = _line_shares(gray[rows.start : rows.stop].T, columns)
    return min(down + across) >= (_FOUR_LINES if down and across else _TWO_LINES)


def _line_shares(gray: Gray, rows: _Band) -> list[float]:
    """Return the shares of columns at the lines above and below some rows, where these are not the ends."""
    shares = _Lines(gray).shares
    places = [place for place in (rows.start, rows.stop) if 0 < place < len(gray)]
    return [float(shares[place - 1 : place + 2].max()) for place in places]


def _halves(rows: _Lines, columns: _Lines, *, only_clear: bool) -> tuple[tuple[_Band, _Band], ...]:
    """Return rows and columns of both sides of a seam."""
    height, width = rows.gray.shape
    down, across = _seam(rows, _SEAM_ROWS), _seam(columns, _SEAM_COLUMNS)
    is_down = down and (across is None or down.score >= across.score)
    gap, gray = (down, rows.gray) if is_down else (across, columns.gray)
    if gap is None or (only_clear and not _is_clear_seam(gap, gray)):
        return ()
    if only_clear:
        gap = _widened(gap, gray)
    # A row beside the cut may show some of what lies across.
    above, below = gray[: max(gap.start - _GAP, 0)], gray[gap.stop + _GAP :]
    if min(_spread(above), _spread(below)) < _BLAND:
        return ()
    if is_down:
        all_columns = _Band(0, width)
        return (_Band(0, gap.start), all_columns), (_Band(gap.stop, height), all_columns)
    all_rows = _Band(0, height)
    return (all_rows, _Band(0, gap.start)), (all_rows, _Band(gap.stop, width))


def _spread(gray: Gray) -> float:
    """Return the standard deviation of tones; 0 for none."""
    return float(gray.std()) if gray.size else 0.0


def _seam(lines: _Lines, least: float) -> _Band | None:
    """Return the gap at the clearest seam between rows, which may be empty; None where there is no seam.

    Args:
        lines: between rows.
        least: share of columns at a cut without a gap.
    """
    height = len(lines.gray)
    low, high = int(_MARGIN * height), int((1 - _MARGIN) * height)
    place = low + int(lines.shares[low:high].argmax())
    share = float(lines.shares[place])
    # A band of color under lettering ends before the sides of the picture.
    sides = [_Lines(lines.gray[:, side]).shares[place] > 0 for side in (slice(1), slice(-1, None))]
    if share >= _SEAM_GAP and any(sides) and (gap := _gap(lines.gray, place)):
        return _Band(*gap, share)
    is_cut = all(sides) or _steps_both_ways(lines.gray, place)
    return _Band(place, place, share) if share >= least and is_cut else None


def _gap(gray: Gray, place: int) -> tuple[int, int] | None:
    """Return begin and end of the even rows at a cut; None where there are none."""
    first = max(place - _GAP_REACH, 0)
    near, cut = gray[first : place + _GAP_REACH], place - first
    uneven = np.abs(near - np.median(near, axis=1, keepdims=True).astype(np.int16)).mean(axis=1)
    beside = float(np.sort(uneven[[0, 1, -2, -1]])[1])
    even = np.flatnonzero(uneven < min(_EVEN, _EVEN_RATIO * beside))
    if beside < _UNEVEN or not len(even):
        return None
    runs = np.split(even, np.flatnonzero(np.diff(even) > 1) + 1)
    run = min(runs, key=lambda rows: np.abs(rows + 0.5 - cut).min())
    start, stop = int(run[0]), int(run[-1]) + 1
    if min(abs(start - cut), abs(stop - cut)) > _GAP_OFF:
        return None
    return first + start, first + stop


def _is_clear_seam(gap: _Band, gray: Gray) -> bool:
    """Return whether a seam between rows is clear, and what lies above differs from what lies below."""
    if gap.stop + 2 >= len(gray):
        return False
    above = gray[max(gap.start - 8, 0) : max(gap.start - 2, 1)].mean(axis=0)
    below = gray[gap.stop + 2 : gap.stop + 8].mean(axis=0)
    above, below = above - above.mean(), below - below.mean()
    size = np.linalg.norm(above) * np.linalg.norm(below)
    is_cut = gap.stop > gap.start or _steps_both_ways(gray, gap.start)
    return bool(gap.score >= _SURE_SEAM and is_cut and above @ below <= _ALIKE * size)


def _steps_both_ways(gray: Gray, place: int) -> bool:
    """Return whether tones step up as well as down along a cut between rows, as they do not along a sky."""
    step = gray[place + 2] - gray[place - 3]
    both = min((step > _STEP_TONES).mean(), (step < -_STEP_TONES).mean())
    return bool(both >= _BOTH_WAYS * (np.abs(step) > _STEP_TONES).mean())


def _widened(gap: _Band, gray: Gray) -> _Band:
    """Return a gap with all even rows beside it: each half had a frame of its own."""
    least = int(_LEAST_PICTURE * len(gray))
    start = gap.start - _even_rows(gray[least : max(gap.start - _GAP, least)][::-1])
    stop = gap.stop + _even_rows(gray[gap.stop + _GAP : len(gray) - least])
    return _Band(start, stop, gap.score)


def _even_rows(gray: Gray) -> int:
    """Return how many rows from the first on have nearly one tone, and then maybe a second one."""
    count = 0
    for _ in range(2):
        rows = gray[count:]
        if not len(rows):
            break
        off = (np.abs(rows - np.median(rows[0])) > _TOLERANCE).mean(axis=1) > _STAINS
        even = int(off.argmax()) if off.any() else len(rows)
        count += even and even + _GAP
    return count
