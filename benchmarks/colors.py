"""How many origins are found when uploads are stored in other color spaces than sRGB.

Run `python -m benchmarks.colors [--photos DIR] [--distractors 300] [--uploads 140]`; prints one line of JSON.
Uploads are those of the bundled demo that have an origin: translations by two models, and edits. Each is
stored in every color space, as a file that looks the same, and goes through `decode`, `mini` and its W. The
references are the demo's, and the distractors some of the folder's pictures. "dropped" has the pixels of
swapped channels and no profile: what a decoder sees that ignores profiles.

The bar: at most 2 points of Acc below sRGB in each space.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import common
from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI
from id2core.encoders.images import Decoded, decode
from id2core.encoders.registry import load_encoder
from id2core.search import exact
from id2core.transforms.files import BUNDLED_FOLDER, WEIGHTS, load_transform
from id2core.transforms.linear import Transform
from tests import colored
from tests.broken import encode
from tests.colored import ADOBE_RGB, BT2020, DISPLAY_P3, HLG, PQ, PROPHOTO, SRGB

DEMO = BUNDLED_FOLDER.parent / "demo"
MOST_LOST = 2.0
SWAPPED = (1, 2, 0)


def png_of_codes(image: Image.Image, transfer: int) -> bytes:
    codes = (b"cICP", bytes((BT2020.code, transfer, 0, 1)))
    return colored.png(colored.coded_pixels(image, BT2020, transfer), codes)


SPACES: dict[str, Callable[[Image.Image], bytes]] = {
    "sRGB": lambda image: encode(image, "PNG"),
    "Display P3": lambda image: colored.profiled(image, "JPEG", DISPLAY_P3, quality=95, subsampling=0),
    "Adobe RGB": lambda image: colored.profiled(image, "PNG", ADOBE_RGB),
    "ProPhoto": lambda image: colored.profiled(image, "TIFF", PROPHOTO),
    "swapped": lambda image: colored.profiled(image, "PNG", SRGB, SWAPPED),
    "PQ, HEIC": lambda image: colored.heic(image, BT2020, PQ),
    "PQ, PNG": lambda image: png_of_codes(image, PQ),
    "HLG, PNG": lambda image: png_of_codes(image, HLG),
    "dropped": lambda image: encode(colored.stored(image, SRGB, SWAPPED), "PNG"),
}


def pixels(data: bytes) -> NDArray[np.uint8]:
    result = decode(data)
    if not isinstance(result, Decoded):
        raise SystemExit(f"a benchmark picture was rejected: {result}")
    return result.pixels


def described(encoder: Encoder, w: Transform, files: list[bytes]) -> NDArray[np.float32]:
    size = encoder.batch_size
    batches = (np.stack([pixels(data) for data in files[i : i + size]]) for i in range(0, len(files), size))
    latents = [np.asarray(encoder.encode(batch)).reshape(len(batch), -1) for batch in batches]
    return w.apply(np.concatenate(latents).astype(np.float16)).astype(np.float32)


def pairs(count: int) -> tuple[list[Path], list[Path], list[int]]:
    """Uploads with an origin, references, and each upload's row among them."""
    references = sorted((DEMO / "references").iterdir())
    row = {f"references/{path.name}": i for i, path in enumerate(references)}
    with (DEMO / "truth.csv").open() as file:
        found = [line for line in csv.DictReader(file) if line["reference_uri"]]
    step = max(1, len(found) // count)
    chosen = found[::step][:count]
    uploads = [DEMO / line["query_uri"] for line in chosen]
    return uploads, references, [row[line["reference_uri"]] for line in chosen]


def measure(photos: Path | None, distractors: int, count: int) -> None:
    encoder, w = load_encoder(MINI), load_transform(str(BUNDLED_FOLDER / WEIGHTS))
    uploads, references, origins = pairs(count)
    with common.photo_folder(photos, distractors) as folder:
        files = [path.read_bytes() for path in (*references, *sorted(folder.iterdir()))]
    searched = described(encoder, w, files)
    images = [Image.open(path).convert("RGB") for path in uploads]
    accuracy = {}
    for name, store in SPACES.items():
        rows, _ = exact.nearest(described(encoder, w, [store(image) for image in images]), searched, 1)
        accuracy[name] = round(100 * float(np.mean(rows[:, 0] == origins)), 1)
    lost = {name: round(accuracy["sRGB"] - value, 1) for name, value in accuracy.items() if name != "dropped"}
    common.report(
        "colors",
        [],
        uploads=len(uploads),
        references=len(files),
        accuracy=accuracy,
        met=max(lost.values()) <= MOST_LOST,
    )


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--distractors", type=int, default=300, help="references beside the demo's")
    parser.add_argument("--uploads", type=int, default=140, help="uploads with an origin, at most 140")
    options = parser.parse_args()
    measure(options.photos, options.distractors, options.uploads)


if __name__ == "__main__":
    main()
