"""Learn the latent views of the bundled encoder: `python -m factory.latent_views PHOTOS`.

PHOTOS is a folder of training photos. It writes `id2core/data/mini/views.safetensors` and prints how like the
latents of moved pictures are to the views, on photos that the filter did not see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from id2core.encoders import images, latent_views
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI
from id2core.encoders.images import Decoded
from id2core.encoders.latent_views import MOVES, LatentView
from id2core.encoders.registry import load_encoder
from id2core.transforms.files import bundled_folder

PHOTOS, HELD_OUT = 192, 48
CHANNELS = 4
_AT_ONCE = 16


def main(folder: Path) -> None:
    """Learn, measure and write the views."""
    network = load_encoder(MINI)
    files = sorted(folder.iterdir())
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, PHOTOS + HELD_OUT).astype(int)]
    decoded = [images.decode(file.read_bytes(), network.preprocess.size) for file in chosen]
    pixels = np.stack([one.pixels for one in decoded if isinstance(one, Decoded)])
    latents = _encoded(network, pixels)
    held = np.random.default_rng(0).permutation(len(pixels)) < HELD_OUT
    views = {}
    for name, move in MOVES.items():
        moved = _encoded(network, np.stack([move(picture) for picture in pixels]))
        views[name] = LatentView.fit(name, latents[~held], moved[~held], CHANNELS)
        plain = LatentView.plain(name, CHANNELS)
        before, after = (_cosine(view(latents[held]), moved[held]) for view in (plain, views[name]))
        print(f"{name}: cosine {before:.3f} of moved cells, {after:.3f} after the filter")
    latent_views.save(views, bundled_folder() / latent_views.FILE, network.encoder_id)


def _encoded(network: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
    batches = range(0, len(pixels), _AT_ONCE)
    return np.concatenate([network.encode(pixels[i : i + _AT_ONCE]) for i in batches])


def _cosine(some: NDArray[np.float16], others: NDArray[np.float16]) -> float:
    a, b = some.astype(np.float64), others.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
