"""What people and apps put over or beside a picture: a post's chrome, lettering, and emoji.

Everything that can vary is drawn at random: colors, fonts, sizes, words, and which rows a post has. Fonts are
those that matplotlib and Pillow ship. Emoji are drawn as shapes, so no font of pictures is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from id2core.errors import PlotError

Color = tuple[int, int, int]
Point = tuple[float, float]

_VOCABULARY = """
    today morning walk light found this place again after years best view ever no filter just look at it
    who remembers summer with friends weekend mood so quiet here can you guess where thank you all love
    these colors new old house street coffee sea hills worth the trip photo of the day still thinking
    about that one please share more soon part two link in bio
"""
WORDS = _VOCABULARY.split()
_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "cmss10.ttf",
)
# Shapes are drawn this many times too large and scaled down: ImageDraw has no antialias.
_TIMES = 4


@dataclass(frozen=True)
class Theme:
    """The colors and the font of an app.

    Attributes:
        paper, ink, faint, accent: of the page, of text, of lesser text, and of what is pressed.
        font: file name of one of matplotlib's fonts; None for Pillow's own.
    """

    paper: Color
    ink: Color
    faint: Color
    accent: Color
    font: str | None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Theme:
        """Draw a light, a dark or a tinted theme."""
        kind = rng.integers(3)
        if kind == 0:
            level = int(rng.integers(238, 256))
            paper, ink = (level, level, level), _gray(rng, 0, 50)
        elif kind == 1:
            level = int(rng.integers(0, 40))
            paper, ink = (
                (level, level, min(255, level + int(rng.integers(0, 12)))),
                _gray(rng, 215, 256),
            )
        else:
            paper, ink = random_color(rng, 205, 256), _gray(rng, 0, 60)
        faint = mixed(paper, ink, 0.5)
        return cls(paper, ink, faint, random_color(rng, 30, 240), draw_font(rng))


def _gray(rng: np.random.Generator, low: int, high: int) -> Color:
    level = int(rng.integers(low, high))
    return level, level, level


def random_color(rng: np.random.Generator, low: int = 0, high: int = 256) -> Color:
    """Draw a color whose three levels lie in [low, high)."""
    red, green, blue = (int(level) for level in rng.integers(low, high, 3))
    return red, green, blue


def mixed(one: Color, other: Color, share: float) -> Color:
    """Return the color between two, `share` of it the other."""
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def draw_font(rng: np.random.Generator) -> str | None:
    """Draw a font's file name; None is Pillow's own."""
    number = int(rng.integers(len(_FONTS) + 1))
    return _FONTS[number] if number < len(_FONTS) else None


def load_font(name: str | None, size: float) -> FreeTypeFont:
    """Load a font at a size in pixels, at least 4.

    Raises:
        PlotError: matplotlib, which ships the fonts, is not installed.
    """
    size = max(4.0, size)
    if name is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, FreeTypeFont)
        return font
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError("lettering needs the extra `experiments`: pip install 'id2[experiments]'") from error
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def words(rng: np.random.Generator, least: int, most: int) -> str:
    """Draw a line of `least` to `most` words."""
    count = int(rng.integers(least, most + 1))
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


def post(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a screenshot of a post: header with avatar, picture, buttons, caption, and more rows at random.

    Args:
        picture: RGB; its pixels are untouched.
        rng: of everything else.

    Returns:
        RGB, larger than the picture.
    """
    theme = Theme.draw(rng)
    margin = round(picture.width * float(rng.choice([0, 0, rng.uniform(0.02, 0.06)])))
    width = picture.width + 2 * margin
    unit = width * rng.uniform(0.030, 0.045)
    above: list[Callable[[float], Image.Image]] = []
    below: list[Callable[[float], Image.Image]] = []
    if rng.random() < 0.5:
        above.append(lambda w: _status_bar(w, unit, theme, rng))
    above.append(lambda w: _header(w, unit, theme, rng))
    caption = below if rng.random() < 0.7 else above
    caption.append(lambda w: _lines(w, unit, theme, rng, int(rng.integers(1, 4))))
    below.insert(0, lambda w: _buttons(w, unit, theme, rng))
    if rng.random() < 0.4:
        below.append(lambda w: _buttons(w, unit, theme, rng))
    upper = [row(width) for row in above]
    lower = [row(width) for row in below]
    height = picture.height + sum(row.height for row in (*upper, *lower))
    shot = Image.new("RGB", (width, height), theme.paper)
    top = 0
    for row in (*upper, None, *lower):
        shot.paste(picture if row is None else row, (margin if row is None else 0, top))
        top += (picture if row is None else row).height
    return shot


def _row(width: float, height: float, theme: Theme) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (round(width), max(1, round(height))), theme.paper)
    return image, ImageDraw.Draw(image)


def _status_bar(width: float, unit: float, theme: Theme, rng: np.random.Generator) -> Image.Image:
    image, draw = _row(width, unit * rng.uniform(1.4, 2.2), theme)
    middle = image.height / 2
    font = load_font(theme.font, unit * 0.9)
    clock = f"{rng.integers(0, 24)}:{rng.integers(0, 60):02d}"
    draw.text((unit, middle), clock, fill=theme.ink, font=font, anchor="lm")
    draw.text((width - unit, middle), f"{rng.integers(5, 100)}%", fill=theme.ink, font=font, anchor="rm")
    return image


def _header(width: float, unit: float, theme: Theme, rng: np.random.Generator) -> Image.Image:
    image, draw = _row(width, unit * rng.uniform(3.2, 4.6), theme)
    middle, radius = image.height / 2, unit * rng.uniform(1.0, 1.5)
    box = (unit, middle - radius, unit + 2 * radius, middle + radius)
    if rng.random() < 0.8:
        draw.ellipse(box, fill=theme.accent)
    else:
        draw.rounded_rectangle(box, radius / 3, fill=theme.accent)
    draw.ellipse(
        (unit + radius * 0.6, middle - radius * 0.6, unit + radius * 1.4, middle + radius * 0.2),
        fill=random_color(rng),
    )
    left = 2 * unit + 2 * radius
    name = words(rng, 1, 2).replace(" ", str(rng.choice([".", "_", " "])))
    draw.text(
        (left, middle - unit * 0.6), name, fill=theme.ink, font=load_font(theme.font, unit * 1.2), anchor="lm"
    )
    font = load_font(theme.font, unit * 0.9)
    draw.text((left, middle + unit * 0.7), words(rng, 1, 3), fill=theme.faint, font=font, anchor="lm")
    for dot in range(3):
        x = width - unit * (2.2 - 0.6 * dot)
        draw.ellipse(
            (x - unit * 0.15, middle - unit * 0.15, x + unit * 0.15, middle + unit * 0.15), theme.ink
        )
    return image


def _buttons(width: float, unit: float, theme: Theme, rng: np.random.Generator) -> Image.Image:
    image, _ = _row(width, unit * rng.uniform(2.4, 3.6), theme)
    size = max(2, round(unit * rng.uniform(1.3, 1.9)))
    top = (image.height - size) // 2
    count = int(rng.integers(3, 6))
    spread = rng.random() < 0.5
    for i, name in enumerate(rng.permutation(list(EMOJI))[:count]):
        step = (width - 2 * unit - size) / (count - 1) if spread else size * 1.6
        sign = draw_emoji(str(name), size, theme.accent if i == 0 else theme.ink)
        image.paste(sign, (round(unit + i * step), top), sign)
    return image


def _lines(width: float, unit: float, theme: Theme, rng: np.random.Generator, count: int) -> Image.Image:
    size = unit * rng.uniform(1.0, 1.3)
    image, draw = _row(width, unit * 0.8 + count * size * 1.4, theme)
    font = load_font(theme.font, size)
    for line in range(count):
        color = theme.faint if line == count - 1 and rng.random() < 0.5 else theme.ink
        place = (unit, unit * 0.4 + (line + 0.5) * size * 1.4)
        draw.text(place, words(rng, 3, 8), fill=color, font=font, anchor="lm")
    return image


def captioned(picture: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Write a line or two onto a strip of one color above a picture, or below it.

    Args:
        picture: RGB; its pixels are untouched.
        share: height of the strip, of the picture's.
        rng: of everything else.

    Returns:
        RGB, higher than the picture.
    """
    theme = Theme.draw(rng)
    strip, draw = _row(picture.width, share * picture.height, theme)
    count = int(rng.integers(1, 3))
    for line in range(count):
        text = words(rng, 2, 6)
        size = strip.height * rng.uniform(0.4, 0.6) / count
        font = _fitting(theme.font, text, size, strip.width * 0.94)
        place = (0.03 * strip.width, (line + 0.5) * strip.height / count)
        draw.text(place, text, fill=theme.ink, font=font, anchor="lm")
    return joined(*((strip, picture) if rng.random() < 0.7 else (picture, strip)))


def joined(
    first: Image.Image, second: Image.Image, *, beside: bool = False, gap: int = 0, color: Color = (0, 0, 0)
) -> Image.Image:
    """Put two pictures one above the other, or side by side.

    Args:
        first, second: RGB, of one width, or of one height where they are put side by side.
        beside: whether they are.
        gap: pixels between them.
        color: of the gap.
    """
    place = (first.width + gap, 0) if beside else (0, first.height + gap)
    whole = Image.new("RGB", (place[0] + second.width, place[1] + second.height), color)
    whole.paste(first, (0, 0))
    whole.paste(second, place)
    return whole


def lettering(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Write one or two short lines over a picture, as memes and stories have them.

    Letters are 7 to 14% of the picture's shorter side high, with a rim or on a band of color, at the top, in
    the middle or at the bottom.

    Returns:
        RGB, same size.
    """
    image = picture.copy()
    draw = ImageDraw.Draw(image, "RGBA")
    font_name = draw_font(rng)
    places = rng.permutation([0.12, 0.5, 0.88])[: int(rng.integers(1, 3))]
    for place in places:
        text = words(rng, 2, 5)
        text = text.upper() if rng.random() < 0.5 else text
        font = _fitting(font_name, text, min(picture.size) * rng.uniform(0.07, 0.14), picture.width * 0.94)
        middle = (picture.width / 2, picture.height * float(place))
        ink = random_color(rng, 225, 256) if rng.random() < 0.7 else random_color(rng)
        contrast: Color = (0, 0, 0) if sum(ink) > 380 else (255, 255, 255)
        banded = rng.random() < 0.4
        if banded:
            left, top, right, bottom = draw.textbbox(middle, text, font=font, anchor="mm")
            pad = 0.3 * (bottom - top)
            draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), fill=(*contrast, 200))
        rim = 0 if banded else max(1, round(font.size / 12))
        draw.text(middle, text, fill=ink, font=font, anchor="mm", stroke_width=rim, stroke_fill=contrast)
    return image


def _fitting(name: str | None, text: str, size: float, width: float) -> FreeTypeFont:
    """Return a font of this size, or of the largest below it in which the text is at most so wide."""
    font = load_font(name, size)
    return font if font.getlength(text) <= width else load_font(name, size * width / font.getlength(text))


def stickers(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put one to four emoji onto a picture, each 12 to 28% of its shorter side.

    Returns:
        RGB, same size.
    """
    image = picture.copy()
    for _ in range(int(rng.integers(1, 5))):
        size = max(4, round(min(picture.size) * rng.uniform(0.12, 0.28)))
        color = random_color(rng, 160, 256)
        sign = draw_emoji(str(rng.choice(list(EMOJI))), size, color)
        sign = sign.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
        left, top = (int(rng.integers(0, max(1, side - size))) for side in picture.size)
        image.paste(sign, (left, top), sign)
    return image


def draw_emoji(name: str, size: int, color: Color) -> Image.Image:
    """Draw one of `EMOJI` in a color: RGBA, size × size."""
    large = Image.new("RGBA", (size * _TIMES, size * _TIMES))
    EMOJI[name](ImageDraw.Draw(large), size * _TIMES, color)
    return large.resize((size, size), Image.Resampling.BOX)


def _heart(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    t = np.linspace(0, 2 * math.pi, 60)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    draw.polygon([(s / 2 + s * a / 36, s * 0.47 - s * b / 36) for a, b in zip(x, y, strict=True)], fill=color)


def _star(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    points = []
    for i in range(10):
        radius, angle = s * (0.48 if i % 2 == 0 else 0.2), math.pi * i / 5
        points.append((s / 2 + radius * math.sin(angle), s / 2 - radius * math.cos(angle)))
    draw.polygon(points, fill=color)


def _face(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    dark = mixed(color, (40, 20, 0), 0.85)
    draw.ellipse((s * 0.03, s * 0.03, s * 0.97, s * 0.97), fill=color)
    for x in (0.33, 0.67):
        draw.ellipse((s * (x - 0.07), s * 0.27, s * (x + 0.07), s * 0.47), fill=dark)
    draw.chord((s * 0.22, s * 0.35, s * 0.78, s * 0.85), 10, 170, fill=dark)


def _bubble(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    draw.rounded_rectangle((s * 0.05, s * 0.1, s * 0.95, s * 0.75), s * 0.2, fill=color)
    draw.polygon([(s * 0.25, s * 0.7), (s * 0.5, s * 0.7), (s * 0.25, s * 0.97)], fill=color)


def _arrow(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    tip, wings = (s * 0.95, s * 0.45), (s * 0.55, s * 0.1)
    draw.polygon(
        [
            tip,
            wings,
            (s * 0.55, s * 0.3),
            (s * 0.1, s * 0.85),
            (s * 0.55, s * 0.62),
            (s * 0.55, s * 0.8),
        ],
        fill=color,
    )


def _drop(draw: ImageDraw.ImageDraw, s: float, color: Color) -> None:
    draw.ellipse((s * 0.2, s * 0.35, s * 0.8, s * 0.97), fill=color)
    draw.polygon([(s * 0.5, s * 0.02), (s * 0.23, s * 0.55), (s * 0.77, s * 0.55)], fill=color)


EMOJI: dict[str, Callable[[ImageDraw.ImageDraw, float, Color], None]] = {
    "heart": _heart,
    "star": _star,
    "face": _face,
    "bubble": _bubble,
    "arrow": _arrow,
    "drop": _drop,
}
