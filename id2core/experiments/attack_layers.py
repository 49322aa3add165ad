"""What the attacks draw over or beside a picture: watermark lettering, and the bars of a social-media app.

Everything is drawn relative to the picture, so a small and a large copy of it look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, ...]

# Of the picture's shorter side, so that a mark covers the same share of a small and of a large picture.
FONT_SHARE = 1 / 10
# Far enough from 0 that the repeated text does not line up with the rows that JPEG and VAEs work in.
WATERMARK_DEGREES = 30

# Small bars are drawn this wide (at most `MOST_TIMES` too large) and scaled down: ImageDraw has no antialias.
DRAWN_SIDE = 1024
MOST_TIMES = 8
# A phone's screen is about 30 units wide where its status bar is 3 high.
UNITS_ACROSS = 30


@dataclass(frozen=True)
class Theme:
    """The colors of an app, RGBA, 0 to 255."""

    paper: Color
    ink: Color
    faint: Color


LIGHT = Theme(paper=(255, 255, 255, 255), ink=(25, 25, 25, 255), faint=(130, 130, 130, 255))
SHADE = Theme(paper=(0, 0, 0, 150), ink=(255, 255, 255, 255), faint=(200, 200, 200, 255))
HEART = (235, 50, 80, 255)
AVATAR = (90, 130, 200, 255)


def text_layer(size: tuple[int, int], text: str, opacity: float) -> Image.Image:
    """Draw a layer of tilted, repeated copies of a text.

    Args:
        size: width and height in pixels.
        text: one line, not blank.
        opacity: of the letters and their rims, 0 to 1.

    Returns:
        RGBA of `size`, transparent between the letters.
    """
    width, height = size
    side = math.ceil(math.hypot(width, height))
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(8, round(min(size) * FONT_SHARE)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    step_x, step_y = round((right - left) * 1.4) + 1, round((bottom - top) * 4) + 1
    alpha = round(255 * opacity)
    for row, y in enumerate(range(0, side, step_y)):
        # Every other row is shifted, or the gaps would form a clean column.
        for x in range(-(row % 2) * step_x // 2, side, step_x):
            white, black = (255, 255, 255, alpha), (0, 0, 0, alpha)
            draw.text((x, y), text, fill=white, font=font, stroke_width=1, stroke_fill=black)
    tilted = layer.rotate(WATERMARK_DEGREES, Image.Resampling.BICUBIC)
    corner = ((side - width) // 2, (side - height) // 2)
    return tilted.crop((*corner, corner[0] + width, corner[1] + height))


def app_bars(width: int, height: int, theme: Theme) -> tuple[Image.Image, Image.Image]:
    """What an app shows above and below a picture: status bar and account, buttons and caption.

    Args:
        width: of both bars, in pixels.
        height: of both bars together, in pixels; each gets at least 1.
        theme: the colors; a paper that is not opaque lets the picture shine through.

    Returns:
        The upper and the lower bar, RGBA.
    """
    rows = sum(units for units, _ in (*UPPER, *LOWER))
    upper = max(1, round(height * sum(units for units, _ in UPPER) / rows))
    return _bar((width, upper), UPPER, theme), _bar((width, max(1, height - upper)), LOWER, theme)


@dataclass(frozen=True)
class _Pen:
    """Draws one row of a bar. Positions are in units: x from the left edge, y from the row's middle."""

    draw: ImageDraw.ImageDraw
    theme: Theme
    unit: float
    middle: float
    units_wide: float

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Return the pixel positions of points."""
        return [(x * self.unit, self.middle + y * self.unit) for x, y in points]

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Draw a filled circle around a point."""
        self.draw.ellipse(self.at((x - radius, y - radius), (x + radius, y + radius)), fill=color)

    def outline(self, *points: tuple[float, float]) -> None:
        """Draw a closed line in the color of ink."""
        thick = max(1, round(self.unit * 0.2))
        self.draw.line(self.at(*points, points[0]), fill=self.theme.ink, width=thick, joint="curve")

    def text(self, x: float, y: float, words: str, size: float, color: Color) -> None:
        """Draw a line of text that begins at x and is centered on y."""
        font = ImageFont.load_default(max(1, size * self.unit))
        self.draw.text(self.at((x, y))[0], words, fill=color, font=font, anchor="lm")


def _status(pen: _Pen) -> None:
    ink, right = pen.theme.ink, pen.units_wide
    pen.text(1.5, 0, "12:30", 1.3, ink)
    for bar in range(4):
        left = right - 6.4 + bar * 0.55
        pen.draw.rectangle(pen.at((left, 0.1 - bar * 0.25), (left + 0.35, 0.5)), fill=ink)
    pen.outline((right - 3.5, -0.55), (right - 1.5, -0.55), (right - 1.5, 0.5), (right - 3.5, 0.5))
    pen.draw.rectangle(pen.at((right - 3.2, -0.3), (right - 2.1, 0.25)), fill=ink)


def _account(pen: _Pen) -> None:
    pen.disc(2.8, 0, 1.3, AVATAR)
    pen.disc(2.8, -0.3, 0.5, pen.theme.ink)
    pen.text(4.8, -0.6, "every.day.views", 1.25, pen.theme.ink)
    pen.text(4.8, 0.8, "Somewhere nice", 1, pen.theme.faint)
    for dot in range(3):
        pen.disc(pen.units_wide - 3.1 + dot * 0.8, 0, 0.22, pen.theme.ink)


def _buttons(pen: _Pen) -> None:
    right = pen.units_wide
    for x in (2.1, 3.1):
        pen.disc(x, -0.35, 0.58, HEART)
    pen.draw.polygon(pen.at((1.58, -0.1), (3.62, -0.1), (2.6, 1.05)), fill=HEART)
    bubble = pen.at((5.2, -0.9), (7.2, 0.8))
    pen.draw.ellipse(bubble, outline=pen.theme.ink, width=max(1, round(pen.unit * 0.2)))
    pen.draw.polygon(pen.at((6.5, 0.6), (7.1, 0.3), (7.25, 1.05)), fill=pen.theme.ink)
    pen.outline((8.8, -0.8), (11, -0.8), (9.8, 0.95), (9.5, -0.1))
    pen.outline(
        (right - 3, -0.9), (right - 1.6, -0.9), (right - 1.6, 0.95), (right - 2.3, 0.3), (right - 3, 0.95)
    )


def _caption(pen: _Pen) -> None:
    pen.text(1.6, -1.3, "1,204 likes", 1.2, pen.theme.ink)
    pen.text(1.6, 0.3, "Could look at this all day #nofilter", 1.2, pen.theme.ink)
    pen.text(1.6, 1.8, "View all 56 comments", 1, pen.theme.faint)


Rows = tuple[tuple[int, Callable[[_Pen], None]], ...]
# Each row's height in units, from top to bottom.
UPPER: Rows = ((3, _status), (4, _account))
LOWER: Rows = ((4, _buttons), (6, _caption))


def _bar(size: tuple[int, int], rows: Rows, theme: Theme) -> Image.Image:
    """Rows stretched over the height; what they hold keeps its proportions."""
    times = max(1, min(MOST_TIMES, math.ceil(DRAWN_SIDE / max(size))))
    bar = Image.new("RGBA", (size[0] * times, size[1] * times), theme.paper)
    step = bar.height / sum(units for units, _ in rows)
    unit = min(step, bar.width / UNITS_ACROSS)
    top = 0.0
    for units, row in rows:
        pen = _Pen(ImageDraw.Draw(bar), theme, unit, top + units * step / 2, bar.width / unit)
        row(pen)
        top += units * step
    return bar.resize(size, Image.Resampling.BOX)
