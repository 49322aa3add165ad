"""What happens to a picture on its way: the attacks of the paper's Figure 7, and a VAE round trip.

Each attack takes and gives a `PIL.Image.Image`, leaves its input alone and keeps its mode. The paper's
text names the strongest intensity of two attacks, JPEG quality 30 and blur σ = 3; the docstrings say
what is ours.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MODES = ("RGB", "L")
VAE_SIZE = 256
# Of the picture's shorter side, so that a mark covers the same share of a small and of a large picture.
FONT_SHARE = 1 / 10
# Far enough from 0 that the repeated text does not line up with the rows that JPEG and VAEs work in.
WATERMARK_DEGREES = 30
WATERMARK_OPACITY = 0.45


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress as JPEG and decode again, with 4:2:0 chroma.

    Args:
        image: RGB or grey.
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
        image: RGB or grey.
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
        image: RGB or grey.
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


def watermark(image: Image.Image, text: str) -> Image.Image:
    """Write a half-transparent text diagonally over the whole picture, again and again.

    The paper's text does not describe the watermark of Figure 7; tiled stock-photo lettering is ours.

    Args:
        image: RGB or grey.
        text: one short line; white letters with a dark rim show on any background.

    Returns:
        The marked picture, same size and mode; the pixels between the letters are untouched.

    Raises:
        ValueError: the mode is another, or the text is blank.
    """
    _check_mode(image)
    if not text.strip():
        raise ValueError("the watermark text is blank; give it a word")
    marked = Image.alpha_composite(image.convert("RGBA"), _text_layer(image.size, text))
    return marked.convert(image.mode)


def vae_round_trip(image: Image.Image, vae: Any) -> Image.Image:
    """Encode and decode through a VAE: the alteration every latent diffusion model makes, and no other.

    This attack is not in Figure 7; it is an image-to-image translation of strength 0.

    Args:
        image: RGB or grey; stretched to 256×256, bilinear with antialias, and scaled to [−1, 1].
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


def _text_layer(size: tuple[int, int], text: str) -> Image.Image:
    """A transparent RGBA layer of `size`, covered with tilted copies of the text."""
    width, height = size
    side = math.ceil(math.hypot(width, height))
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(8, round(min(size) * FONT_SHARE)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    step_x, step_y = round((right - left) * 1.4) + 1, round((bottom - top) * 4) + 1
    alpha = round(255 * WATERMARK_OPACITY)
    for row, y in enumerate(range(0, side, step_y)):
        # Every other row is shifted, or the gaps would form a clean column.
        for x in range(-(row % 2) * step_x // 2, side, step_x):
            white, black = (255, 255, 255, alpha), (0, 0, 0, alpha)
            draw.text((x, y), text, fill=white, font=font, stroke_width=1, stroke_fill=black)
    tilted = layer.rotate(WATERMARK_DEGREES, Image.Resampling.BICUBIC)
    corner = ((side - width) // 2, (side - height) // 2)
    return tilted.crop((*corner, corner[0] + width, corner[1] + height))


def _check_mode(image: Image.Image) -> None:
    """Palettes, alpha and CMYK would each need an answer of their own; the data path has none of them."""
    if image.mode not in MODES:
        raise ValueError(f"image mode is {image.mode}; convert it to one of {', '.join(MODES)} first")
