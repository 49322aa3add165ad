"""What people do to a picture before they upload it: mirrored, cropped, framed, screenshotted, turned.

Each edit draws its parameters from a range, by the id of the picture: the same picture always gets the same
edit, another picture gets another. `EDITS` is the table. A new edit is a function under `@edit(…)`.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from id2core.experiments import attacks, upload_layers

# A picture, the draws, and another picture, which no reference shows.
Change = Callable[[Image.Image, np.random.Generator, Image.Image], Image.Image]

UNTOUCHED = "untouched"
JPEG_QUALITY = (75, 95)


@dataclass(frozen=True)
class Edit:
    """One edit: a row of the table.

    Attributes:
        name: of rows and files: small letters, digits, `-` and `.`.
        version: raise it when the edit changes: latents of an earlier version are then made again.
        change: does it. It leaves its input alone.
    """

    name: str
    version: int
    change: Change

    def __call__(self, picture: Image.Image, image_id: str, partner: Image.Image) -> Image.Image:
        """Edit an RGB picture.

        Args:
            picture: at its full size.
            image_id: of the picture: draws the parameters, with the name and the version.
            partner: another picture, for edits that show two.
        """
        return self.change(picture, self.generator(image_id), partner)

    def upload(self, picture: Image.Image, image_id: str, partner: Image.Image) -> bytes:
        """Return the file that is uploaded: JPEG of a drawn quality, `JPEG_QUALITY`."""
        low, high = JPEG_QUALITY
        quality = int(self.generator(image_id, "jpeg").integers(low, high + 1))
        buffer = io.BytesIO()
        self(picture, image_id, partner).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    def generator(self, image_id: str, purpose: str = "edit") -> np.random.Generator:
        """Return the draws for a picture, the same on every machine."""
        key = f"{purpose} {self.name} {self.version} {image_id}"
        return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))


EDITS: dict[str, Edit] = {}


def edit(name: str, version: int = 1) -> Callable[[Change], Change]:
    """Add a function to `EDITS`."""

    def add(change: Change) -> Change:
        EDITS[name] = Edit(name, version, change)
        return change

    return add


@edit(UNTOUCHED)
def untouched(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Leave the picture as it is. As every upload, it is compressed again."""
    return picture


@edit("mirrored")
def mirrored(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Mirror left and right."""
    return attacks.flip(picture)


@edit("aspect")
def aspect(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Stretch or squeeze one side by up to a half, to other proportions."""
    factor = math.exp(rng.choice([-1, 1]) * rng.uniform(math.log(1.15), math.log(1.5)))
    width, height = picture.size
    size = (round(width * factor), height) if rng.random() < 0.5 else (width, round(height * factor))
    return picture.resize((max(1, size[0]), max(1, size[1])), Image.Resampling.BICUBIC)


def _register_crops(share: float) -> None:
    spread = 0.03

    @edit(f"crop-{share:g}-centered")
    def centered(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
        return _cropped(picture, share + rng.uniform(-spread, spread), 0.5, 0.5)

    @edit(f"crop-{share:g}-off-center")
    def off_center(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
        across, down = rng.random(2)
        # One of the sides is cut almost only at one end, as when a credit or a person is cut off.
        if rng.random() < 0.5:
            across = rng.choice([0.1, 0.9]) + rng.uniform(-0.1, 0.1)
        else:
            down = rng.choice([0.1, 0.9]) + rng.uniform(-0.1, 0.1)
        return _cropped(picture, share + rng.uniform(-spread, spread), across, down)


def _cropped(picture: Image.Image, share: float, across: float, down: float) -> Image.Image:
    """Keep a share of the area, of the same proportions, at a place from 0 to 1 each way."""
    width, height = (max(1, round(side * math.sqrt(share))) for side in picture.size)
    left, top = round((picture.width - width) * across), round((picture.height - height) * down)
    return picture.crop((left, top, left + width, top + height))


for _share in (0.9, 0.75, 0.5):
    _register_crops(_share)

THIN, THICK = (0.02, 0.05), (0.05, 0.2)
BAR, CAPTION = (0.04, 1.0), (0.08, 0.4)


def _register_borders(name: str, shares: tuple[float, float]) -> None:
    @edit(f"border-plain-{name}")
    def plain(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
        share = _logarithmic(rng, *shares)
        return attacks.border(picture, share, "#{:02x}{:02x}{:02x}".format(*_frame_color(rng)))

    @edit(f"border-blurred-{name}")
    def blurred(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
        pixels = max(1, round(_logarithmic(rng, *shares) * min(picture.size)))
        return _on_blurred(picture, (picture.width + 2 * pixels, picture.height + 2 * pixels), rng)


def _logarithmic(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _frame_color(rng: np.random.Generator) -> upload_layers.Color:
    """Draw white, black, or any color, each as often."""
    kind = rng.integers(3)
    return ((255, 255, 255), (0, 0, 0))[kind] if kind < 2 else upload_layers.random_color(rng)


def _on_blurred(picture: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Put a picture into the middle of its own blurred and enlarged copy."""
    sigma = max(size) * rng.uniform(0.02, 0.06)
    canvas = ImageOps.fit(picture, size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(sigma))
    if rng.random() < 0.3:
        canvas = canvas.point([round(level * 0.7) for level in range(256)] * 3)
    canvas.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return canvas


for _name, _shares in (("thin", THIN), ("thick", THICK)):
    _register_borders(_name, _shares)


@edit("letterbox")
def letterbox(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Put bars above and below, each 2 to 20% of the picture's height."""
    return _barred(picture, rng, across=False)


@edit("pillarbox")
def pillarbox(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Put bars left and right, each 2 to 20% of the picture's width."""
    return _barred(picture, rng, across=True)


def _barred(picture: Image.Image, rng: np.random.Generator, across: bool) -> Image.Image:
    side = picture.width if across else picture.height
    pixels = max(1, round(_logarithmic(rng, THIN[0], THICK[1]) * side))
    width, height = picture.width + 2 * pixels * across, picture.height + 2 * pixels * (not across)
    if rng.random() < 0.3:
        return _on_blurred(picture, (width, height), rng)
    canvas = Image.new("RGB", (width, height), (0, 0, 0) if rng.random() < 0.6 else _frame_color(rng))
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return canvas


@edit("bar")
def bar(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Put an empty bar at one side, 4 to 100% of the picture's height or width."""
    width, height = picture.size
    across = rng.random() < 0.5
    pixels = max(1, round(_logarithmic(rng, *BAR) * (width if across else height)))
    blank = Image.new("RGB", (pixels, height) if across else (width, pixels), _frame_color(rng))
    pair = (blank, picture) if rng.random() < 0.5 else (picture, blank)
    return upload_layers.joined(*pair, beside=across)


@edit("caption")
def caption(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Put a strip with a line or two above the picture, or below it, 8 to 40% of its height."""
    return upload_layers.captioned(picture, _logarithmic(rng, *CAPTION), rng)


@edit("screenshot")
def screenshot(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Show the picture as a post in an app: header, avatar, buttons, caption."""
    return upload_layers.post(picture, rng)


@edit("text")
def text(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Write a line or two over the picture."""
    return upload_layers.lettering(picture, rng)


@edit("emoji")
def emoji(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Put one to four emoji onto the picture."""
    return upload_layers.stickers(picture, rng)


@edit("rotated")
def rotated(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Turn by 1 to 5 degrees. Corners are filled with black or white, or cut off with what is beside them."""
    angle = float(rng.choice([-1, 1]) * rng.uniform(1, 5))
    if rng.random() < 0.5:
        fill = (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255)
        return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
    return _without_corners(picture.rotate(angle, Image.Resampling.BICUBIC), angle)


def _without_corners(turned: Image.Image, angle: float) -> Image.Image:
    """Keep the largest middle part of the same proportions that a turn by a few degrees has filled."""
    sine, cosine = abs(math.sin(math.radians(angle))), math.cos(math.radians(angle))
    long, short = max(turned.size), min(turned.size)
    scale = 1 / (cosine + sine * long / short)
    width, height = (max(1, math.floor(side * scale) - 1) for side in turned.size)
    left, top = (turned.width - width) // 2, (turned.height - height) // 2
    return turned.crop((left, top, left + width, top + height))


@edit("quarter-turn")
def quarter_turn(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Turn by 90 degrees, to the left or to the right."""
    turn = Image.Transpose.ROTATE_90 if rng.random() < 0.5 else Image.Transpose.ROTATE_270
    return picture.transpose(turn)


@edit("collage")
def collage(picture: Image.Image, rng: np.random.Generator, partner: Image.Image) -> Image.Image:
    """Show two pictures side by side or one above the other, with a gap of up to 3%."""
    beside = rng.random() < 0.5
    first = rng.random() < 0.5
    gap = round(rng.uniform(0, 0.03) * min(picture.size)) if rng.random() < 0.6 else 0
    other = _fitted(partner, picture, beside)
    pair = (picture, other) if first else (other, picture)
    return upload_layers.joined(*pair, beside=beside, gap=gap, color=_frame_color(rng))


def _fitted(partner: Image.Image, picture: Image.Image, beside: bool) -> Image.Image:
    """Scale a picture to the height of another, or to its width."""
    factor = picture.height / partner.height if beside else picture.width / partner.width
    size = (max(1, round(partner.width * factor)), max(1, round(partner.height * factor)))
    return partner.resize(size, Image.Resampling.BICUBIC)
