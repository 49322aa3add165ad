"""What happens to a picture on its way: the attacks of the paper's Figure 7, some more, and a VAE round trip.

Each attack takes and gives a `PIL.Image.Image`, leaves its input alone and keeps its mode. The paper's
text names the strongest intensity of two attacks, JPEG "30%" (read as quality 30) and blur σ = 3; its
figure's other intensities are not in the text, so the rest of the table is ours.

`FIGURE_7` and `BEYOND_FIGURE_7` list attacks by kind and intensity; `apply` runs one by its name.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageFilter, ImageOps

from id2core.experiments import attack_layers

MODES = ("RGB", "L")
VAE_SIZE = 256
WATERMARK_OPACITY = 0.45
WATERMARK_TEXT = "SAMPLE COPY"


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress as JPEG and decode again, with 4:2:0 chroma.

    Args:
        image: RGB or gray.
        quality: libjpeg's quality, 1 to 95; 30 is the strongest compression of Figure 7.

    Returns:
        The decoded picture, same size and mode.

    Raises:
        ValueError: the mode is another, or the quality is out of range.
    """
    _check_mode(image)
    if not 1 <= quality <= 95:
        raise ValueError(f"JPEG quality is {quality}; choose 1 to 95")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer) as decoded:
        return decoded.convert(image.mode)


def gaussian_blur(image: Image.Image, sigma: float) -> Image.Image:
    """Blur with a Gaussian.

    Args:
        image: RGB or gray.
        sigma: standard deviation in pixels; 3 is the strongest blur of Figure 7.

    Returns:
        The blurred picture, same size and mode.

    Raises:
        ValueError: the mode is another, or sigma is negative.
    """
    _check_mode(image)
    if sigma < 0:
        raise ValueError(f"blur sigma is {sigma} px; choose 0 or more")
    return image.filter(ImageFilter.GaussianBlur(sigma))


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Scale both sides, bicubic with antialias.

    The result simply has the smaller (or larger) size: it is not scaled back up, because an upload
    arrives as it is and preprocessing stretches every picture to 256×256 anyway.

    Args:
        image: RGB or gray.
        factor: new side over old side. The paper's text gives no factors for Figure 7; the demo uses 1/2.

    Returns:
        The picture with each side `round(side · factor)`, at least 1 pixel; same mode.

    Raises:
        ValueError: the mode is another, or the factor is not above 0.
    """
    _check_mode(image)
    if factor <= 0:
        raise ValueError(f"resize factor is {factor}; choose more than 0")
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def watermark(image: Image.Image, text: str, opacity: float = WATERMARK_OPACITY) -> Image.Image:
    """Write a half-transparent text diagonally over the whole picture, again and again.

    The paper's text does not describe the watermark of Figure 7; tiled stock-photo lettering is ours.

    Args:
        image: RGB or gray.
        text: one short line; white letters with a dark rim show on any background.
        opacity: of the letters, above 0, at most 1.

    Returns:
        The marked picture, same size and mode; the pixels between the letters are untouched.

    Raises:
        ValueError: the mode is another, the text is blank, or the opacity is out of range.
    """
    _check_mode(image)
    if not text.strip():
        raise ValueError("the watermark text is blank; give it a word")
    if not 0 < opacity <= 1:
        raise ValueError(f"watermark opacity is {opacity}; choose above 0, at most 1")
    return _over(image, attack_layers.text_layer(image.size, text, opacity))


def flip(image: Image.Image) -> Image.Image:
    """Mirror left and right.

    Args:
        image: RGB or gray.

    Returns:
        The mirrored picture, same size and mode.

    Raises:
        ValueError: the mode is another.
    """
    _check_mode(image)
    return ImageOps.mirror(image)


def crop(image: Image.Image, share: float, seed: int | None = None) -> Image.Image:
    """Cut out a part of the same proportions; it is not scaled back, as in `resize`.

    Args:
        image: RGB or gray.
        share: of the area that is kept, above 0, at most 1.
        seed: draws the part's place; the same seed and size give the same place. None: the center.

    Returns:
        The part with each side `round(side · √share)`, at least 1 pixel; same mode, same pixels.

    Raises:
        ValueError: the mode is another, or the share is out of range.
    """
    _check_mode(image)
    if not 0 < share <= 1:
        raise ValueError(f"crop keeps a share of {share}; choose above 0, at most 1")
    width, height = (max(1, round(side * math.sqrt(share))) for side in image.size)
    spare_x, spare_y = image.width - width, image.height - height
    left, top = spare_x // 2, spare_y // 2
    if seed is not None:
        draw = random.Random(seed)
        left, top = draw.randint(0, spare_x), draw.randint(0, spare_y)
    return image.crop((left, top, left + width, top + height))


def border(image: Image.Image, share: float, color: str = "white") -> Image.Image:
    """Put a frame of one color around the picture.

    Args:
        image: RGB or gray.
        share: the frame's thickness over the picture's shorter side, above 0, at most 1.
        color: a name or `#rrggbb` that Pillow knows; a gray picture gets its luma.

    Returns:
        The framed picture, larger by twice `round(share · shorter side)`, at least 1 pixel, each way;
        same mode, the pixels inside are untouched.

    Raises:
        ValueError: the mode is another, the share is out of range, or the color is unknown.
    """
    _check_mode(image)
    if not 0 < share <= 1:
        raise ValueError(f"border share is {share}; choose above 0, at most 1")
    thickness = max(1, round(share * min(image.size)))
    return ImageOps.expand(image, thickness, ImageColor.getcolor(color, image.mode))


def overlay(image: Image.Image, share: float, place: Literal["around", "over"] = "around") -> Image.Image:
    """Show the picture as a screenshot of a social-media app does.

    A phone's status bar and an account are above it, buttons and a caption below it. What they show
    is the same for every picture.

    Args:
        image: RGB or gray.
        share: of the result's height that the bars take, above 0, below 1; 0.35 is a square picture on
            a phone.
        place: "around" puts the bars above and below, "over" half-transparent onto the picture.

    Returns:
        Same mode and width. "around": higher by the bars (at least 1 pixel each), the picture's pixels
        untouched. "over": same size, the pixels between the bars untouched.

    Raises:
        ValueError: the mode is another, the share is out of range, or the place is unknown.
    """
    _check_mode(image)
    if not 0 < share < 1:
        raise ValueError(f"overlay share is {share}; choose above 0 and below 1")
    if place == "around":
        return _between_bars(image, round(image.height * share / (1 - share)))
    if place == "over":
        return _under_bars(image, round(image.height * share))
    raise ValueError(f"overlay place is {place!r}; choose 'around' or 'over'")


def vae_round_trip(image: Image.Image, vae: Any) -> Image.Image:
    """Encode and decode through a VAE: the alteration every latent diffusion model makes, and no other.

    This attack is not in Figure 7; it is an image-to-image translation of strength 0.

    Args:
        image: RGB or gray; stretched to 256×256, bilinear with antialias, and scaled to [−1, 1].
        vae: a diffusers `AutoencoderKL` in evaluation mode; device and dtype are taken from its weights.

    Returns:
        The decoded mode of the posterior, RGB, 256×256.

    Raises:
        ValueError: the mode is another.
    """
    _check_mode(image)
    weight = next(vae.parameters())
    square = image.convert("RGB").resize((VAE_SIZE, VAE_SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        latent = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist.mode()
        decoded = vae.decode(latent).sample[0].float().cpu()
    levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def _between_bars(image: Image.Image, height: int) -> Image.Image:
    upper, lower = attack_layers.app_bars(image.width, height, attack_layers.LIGHT)
    shot = Image.new(image.mode, (image.width, upper.height + image.height + lower.height))
    shot.paste(upper.convert(image.mode), (0, 0))
    shot.paste(image, (0, upper.height))
    shot.paste(lower.convert(image.mode), (0, upper.height + image.height))
    return shot


def _under_bars(image: Image.Image, height: int) -> Image.Image:
    upper, lower = attack_layers.app_bars(image.width, height, attack_layers.SHADE)
    layer = Image.new("RGBA", image.size)
    layer.paste(upper, (0, 0))
    layer.paste(lower, (0, image.height - lower.height))
    return _over(image, layer)


def _over(image: Image.Image, layer: Image.Image) -> Image.Image:
    """The picture under an RGBA layer of its size; pixels under full transparency are untouched."""
    return Image.alpha_composite(image.convert("RGBA"), layer).convert(image.mode)


def _check_mode(image: Image.Image) -> None:
    """Palettes, alpha and CMYK would each need an answer of their own; the data path has none of them."""
    if image.mode not in MODES:
        raise ValueError(f"image mode is {image.mode}; convert it to one of {', '.join(MODES)} first")


@dataclass(frozen=True)
class Attack:
    """One attack at one intensity: a row of the robustness benchmark.

    Attributes:
        kind: what is done.
        function: image → attacked image; see the function named in the table for sizes and errors.
        intensity: in the unit of the kind's function; None where there is only one.
        source: "paper" if the paper's text states the intensity, else "ours".
    """

    kind: str
    function: Callable[[Image.Image], Image.Image]
    intensity: float | None = None
    source: Literal["paper", "ours"] = "ours"

    @property
    def name(self) -> str:
        """Such as `jpeg-30` or `flip`: what `apply` takes."""
        return self.kind if self.intensity is None else f"{self.kind}-{self.intensity:g}"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Attack an RGB or gray picture."""
        return self.function(image)


def _series(
    kind: str,
    function: Callable[..., Image.Image],
    parameter: str,
    intensities: tuple[float, ...],
    stated: float | None = None,
) -> tuple[Attack, ...]:
    """One attack per intensity; `stated` is the one that the paper's text gives."""
    return tuple(
        Attack(kind, partial(function, **{parameter: n}), n, "paper" if n == stated else "ours")
        for n in intensities
    )


# Kind → its attacks, from the mildest to the strongest.
FIGURE_7: Mapping[str, tuple[Attack, ...]] = {
    "jpeg": _series("jpeg", jpeg, "quality", (90, 70, 50, 30), stated=30),
    "blur": _series("blur", gaussian_blur, "sigma", (0.5, 1, 2, 3), stated=3),
    "resize": _series("resize", resize, "factor", (0.75, 0.5, 0.25)),
    "watermark": _series(
        "watermark", partial(watermark, text=WATERMARK_TEXT), "opacity", (0.15, 0.3, 0.45, 0.6)
    ),
}
BEYOND_FIGURE_7: Mapping[str, tuple[Attack, ...]] = {
    "flip": (Attack("flip", flip),),
    "crop": _series("crop", crop, "share", (0.9, 0.75, 0.5, 0.25)),
    "border": _series("border", border, "share", (0.02, 0.05, 0.1, 0.2)),
    "overlay": _series("overlay", overlay, "share", (0.1, 0.2, 0.35, 0.5)),
    "overlay-over": _series("overlay-over", partial(overlay, place="over"), "share", (0.1, 0.2, 0.35, 0.5)),
}
BY_NAME: Mapping[str, Attack] = {
    attack.name: attack for table in (FIGURE_7, BEYOND_FIGURE_7) for row in table.values() for attack in row
}


def apply(name: str, image: Image.Image) -> Image.Image:
    """Run an attack of the tables.

    Args:
        name: such as `jpeg-30`, `blur-3`, `crop-0.5` or `flip`: a key of `BY_NAME`.
        image: RGB or gray.

    Returns:
        The attacked picture, same mode; its size is up to the attack.

    Raises:
        ValueError: no attack has this name (the message lists those that exist), or the mode is another.
    """
    if name not in BY_NAME:
        raise ValueError(f"there is no attack {name!r}; choose one of {', '.join(BY_NAME)}")
    return BY_NAME[name](image)
