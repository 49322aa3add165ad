"""Start a VAE from what PCA of image patches knows, instead of from noise.

With its residual branches at zero an `AutoencoderKL` is a chain of convolutions, and such a chain can
compute the principal components of 8×8 patches. Gradient descent finds that solution very slowly;
here each convolution of the chain is fitted by ridge regression, first to last, to the components of
the patches that one of its pixels covers. Training then starts where PCA ends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

RIDGE = 1e-4
# A pair of channels at ±ANCHOR dominates the statistics of the last normalization, so that it scales
# every picture alike: a picture's brightness and contrast pass through it.
ANCHOR = 8.0
LOGVAR_START = -5.0


def patch_components(x: Tensor, size: int, count: int) -> Tensor:
    """The first `count` principal components of size×size patches, each of unit variance.

    Args:
        x: float32[B,3,H,W], H and W multiples of `size`.
        size: patch side in pixels.
        count: how many components, at most 3·size².

    Returns:
        float32[B,count,H/size,W/size].
    """
    patches = functional.pixel_unshuffle(x, size)
    rows = patches.permute(0, 2, 3, 1).flatten(0, 2).double()
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    top = vectors[:, -count:].flip(1) / values[-count:].flip(0).clamp_min(1e-9).sqrt()
    b, _, h, w = patches.shape
    scores: Tensor = rows @ top
    return scores.float().view(b, h, w, count).permute(0, 3, 1, 2)


def _features(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The rows that `conv` multiplies, with a one for its bias: float64[B·H·W, C·k·k + 1]."""
    assert not isinstance(conv.padding, str)
    patches = functional.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    rows = patches.transpose(1, 2).flatten(0, 1).double()
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)


def fit(conv: nn.Conv2d, run: Callable[[], object], target: Tensor) -> None:
    """Set the first rows of `conv` to the ridge regression of `target` on the conv's present input.

    Args:
        conv: the convolution; its output channels beyond the target's keep their weights.
        run: runs the network so that `conv` sees its input.
        target: float32[B,C,H,W] on the grid of the conv's output, C at most its output channels.
    """
    seen: list[Tensor] = []
    handle = conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    a = _features(conv, seen[0])
    y = target.permute(0, 2, 3, 1).flatten(0, 2).double()
    gram = a.T @ a / len(a)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram, a.T @ y / len(a)).T.float()
    count = len(solution)
    conv.weight.data[:count] = solution[:, :-1].reshape(count, *conv.weight.shape[1:])
    assert conv.bias is not None
    conv.bias.data[:count] = solution[:, -1]


def _anchored(x: Tensor) -> Tensor:
    """x, its negative (SiLU(x) − SiLU(−x) = x, so nothing is lost in the pair), and two constants."""
    anchor = torch.full_like(x[:, :1], ANCHOR)
    return torch.cat([x, -x, anchor, -anchor], 1)


@torch.no_grad()
def fit_linear_path(vae: AutoencoderKL, x: Tensor) -> None:
    """Fit the linear path of an 8× VAE to the principal components of its patches.

    Args:
        vae: a VAE of four levels whose residual branches are zero.
        x: float32[B,3,H,W] sample of photos in [−1,1].
    """
    widths = vae.config["block_out_channels"]
    latents = vae.config["latent_channels"]
    levels = [x] + [
        patch_components(x, 2**k, min(3 * 4**k, widths[k - 1] - widths[k - 1] // 4)) for k in (1, 2, 3)
    ]
    z = levels[3][:, :latents]
    moments = torch.cat([z, torch.full_like(z, LOGVAR_START)], 1)

    encoder, decoder = vae.encoder, vae.decoder
    encode = lambda: vae.encode(x)  # noqa: E731
    for k in (1, 2, 3):
        fit(encoder.down_blocks[k - 1].downsamplers[0].conv, encode, levels[k])
    fit(encoder.down_blocks[3].resnets[0].conv_shortcut, encode, _anchored(z))
    fit(encoder.conv_out, encode, moments)
    fit(vae.quant_conv, encode, moments)

    latent = vae.encode(x).latent_dist.mode()
    decode = lambda: vae.decode(latent)  # noqa: E731
    fit(vae.post_quant_conv, decode, z)
    neighbors = functional.unfold(z, 3, padding=1).view(len(z), -1, *z.shape[2:])
    fit(decoder.conv_in, decode, neighbors)
    for k, block in zip((2, 1, 0), decoder.up_blocks, strict=False):
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            fit(shortcut, decode, levels[k + 1])
        fit(block.upsamplers[0].conv, decode, levels[k])
    fit(decoder.up_blocks[3].resnets[0].conv_shortcut, decode, _anchored(x))
    fit(decoder.conv_out, decode, x)
