"""Our encoder against the plain diffusers call on the same weights and the same uint8 pictures.

Run `python -m benchmarks.encoder [--photos DIR] [--count 128] [--rounds 7]`; prints one line of JSON.

* `ours`: `Encoder.encode` as the embed job calls it: device and dtype chosen by default.
* `ours_float32`: the same, held to float32 (channels-last).
* `plain`: `AutoencoderKL.from_pretrained(DIR)`, float32, pictures as contiguous NCHW (what
  torchvision's `ToTensor` gives), gradients off, `.encode(x).latent_dist.mode()`.
* `plain_processor`: the same model fed by diffusers' own `VaeImageProcessor`, whose tensors happen to be
  channels-last in memory, so that the convolutions run channels-last too. No bar, but shown.

All sides start at uint8[B,256,256,3] in memory and end at latents on the CPU; ratios are plain time over
ours, median over the rounds.
"""

from __future__ import annotations

from importlib import resources
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI
from id2core.encoders.preprocess import Preprocess
from id2core.encoders.registry import load_encoder

BAR = Bar(1.4)
Pixels = NDArray[np.uint8]


def plain_model(spec: str) -> Any:
    from diffusers import AutoencoderKL

    if spec != MINI:
        return AutoencoderKL.from_pretrained(spec).eval()
    with resources.as_file(resources.files("id2core") / "data" / MINI) as folder:
        return AutoencoderKL.from_pretrained(folder).eval()


def plain(model: Any, pixels: Pixels) -> torch.Tensor:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    with torch.no_grad():
        return torch.as_tensor(model.encode(x).latent_dist.mode())


def plain_processor(model: Any, pixels: Pixels) -> torch.Tensor:
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(do_resize=False)
    x = processor.normalize(processor.numpy_to_pt(pixels.astype(np.float32) / 255))
    with torch.no_grad():
        return torch.as_tensor(model.encode(x).latent_dist.mode())


def least_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The smallest cosine of a row of `a` with the same row of `b`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    dots = np.einsum("ij,ij->i", a, b)
    return float((dots / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def each_batch(pixels: Pixels, size: int, encode: Any) -> list[Any]:
    return [encode(pixels[i : i + size]) for i in range(0, len(pixels), size)]


def in_batches(pixels: Pixels, ours: Encoder, exact: Encoder, model: Any) -> dict[str, Any]:
    """Every side as a function of nothing that encodes all pictures, in batches of the same size."""
    calls = {
        "ours": ours.encode,
        "plain": lambda x: plain(model, x),
        "ours_float32": exact.encode,
        "plain_processor": lambda x: plain_processor(model, x),
    }
    size = ours.batch_size
    return {name: lambda call=call: each_batch(pixels, size, call) for name, call in calls.items()}


def measure(pixels: Pixels, spec: str, rounds: int) -> None:
    ours, exact = load_encoder(spec), load_encoder(spec, dtype="float32")
    sides = in_batches(pixels, ours, exact, plain_model(spec))
    # Also the warm-up: every side has run once over everything before the clock starts.
    latents = {name: np.concatenate([np.asarray(x) for x in side()]) for name, side in sides.items()}
    latents = {name: x.reshape(len(pixels), -1) for name, x in latents.items()}
    times = common.interleaved(sides, rounds)
    rates = {name: len(pixels) / median(seconds) for name, seconds in times.items()}

    def row(what: str, side: str, other: str, bar: Bar | None) -> Row:
        ratio = common.median_ratio(times[other], times[side])
        return Row(what, f"{rates[side]:.0f} images/s", f"{rates[other]:.0f} images/s", ratio, bar)

    kind = str(ours.dtype).removeprefix("torch.")
    common.report(
        "encoder",
        [
            row(f"encoder, ours ({kind}) ÷ plain diffusers (float32)", "ours", "plain", BAR),
            row("encoder, ours in float32 ÷ plain diffusers", "ours_float32", "plain", BAR),
            row(f"encoder, ours ({kind}) ÷ diffusers' image processor", "ours", "plain_processor", None),
        ],
        encoder_id=ours.encoder_id,
        batch_size=ours.batch_size,
        images_per_second={name: round(rate, 1) for name, rate in rates.items()},
        least_cosine_with_plain={
            name: round(least_cosine(latents[name], latents["plain"]), 6) for name in ("ours", "ours_float32")
        },
    )


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--count", type=int, default=128, help="pictures in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--encoder", default=MINI, help="`mini`, or the directory of an AutoencoderKL")
    options = parser.parse_args()
    with common.photo_folder(options.photos, options.count) as folder:
        pixels = common.decoded(folder, options.count, Preprocess().size)
    measure(pixels, options.encoder, options.rounds)


if __name__ == "__main__":
    main()
