"""Our decode against Pillow's plain path on 12-megapixel JPEGs: speed and difference.

Run `python -m benchmarks.decode [--photos DIR] [--count 3] [--rounds 5]`; prints one line of JSON.
The ratio is plain time over ours (above 1: ours is faster), the median over rounds and photos.

`floor` is the same JPEG library at its lowest scale, an eighth, which keeps one coefficient of a block: it
reads the entropy-coded ones and does little else. No decoder on this library is faster, so plain time over
the floor is the most that the ratio can be.
"""

from __future__ import annotations

import io
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.images import Decoded, decode

SIZE = 256
PHOTO = (4000, 3000)
BAR = Bar(4)


def drawn_photo(seed: int) -> bytes:
    """A JPEG with the spectrum of a photo: noise at all scales, weaker the finer, and sensor grain."""
    rng = np.random.default_rng(seed)
    photo = np.full((PHOTO[1], PHOTO[0], 3), 128, np.float32)
    for cells in (4, 16, 64, 256, 1024):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize(PHOTO, Image.Resampling.BICUBIC)
        photo += (np.asarray(layer, dtype=np.float32) - 128) * (2 / cells**0.5)
    photo += rng.normal(0, 3, photo.shape[:2])[..., None]
    return as_jpeg(Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)))


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def photos(folder: Path | None, count: int) -> list[bytes]:
    if folder is None:
        return [drawn_photo(seed) for seed in range(count)]
    paths = common.pictures(folder)[:count]
    return [as_jpeg(Image.open(path).convert("RGB").resize(PHOTO)) for path in paths]


def ours(data: bytes) -> NDArray[np.uint8]:
    result = decode(data, SIZE)
    if not isinstance(result, Decoded):
        raise SystemExit(f"a benchmark photo was rejected: {result}")
    return result.pixels


def plain(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def floor(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (PHOTO[0] // 8, PHOTO[1] // 8))
        image.load()
        return image


def difference(data: bytes) -> float:
    return float(np.abs(ours(data).astype(int) - plain(data).astype(int)).mean())


def measure(files: list[bytes], rounds: int, kind: str) -> None:
    # First, as it also warms both paths up.
    mean_difference = float(np.mean([difference(data) for data in files]))
    times: dict[str, list[float]] = {"ours": [], "plain": [], "floor": []}
    for data in files:
        calls = {"ours": ours, "plain": plain, "floor": floor}
        sides = {name: lambda call=call, data=data: call(data) for name, call in calls.items()}
        for side, rounds_of_side in common.interleaved(sides, rounds).items():
            times[side] += rounds_of_side
    ours_ms, plain_ms, floor_ms = (1000 * median(side) for side in times.values())
    ratio = common.median_ratio(times["plain"], times["ours"])
    most = common.median_ratio(times["plain"], times["floor"])
    what = f"decode, 12-megapixel JPEG ({kind})"
    rows = [
        Row(what, f"{ours_ms:.0f} ms", f"{plain_ms:.0f} ms", ratio, BAR),
        Row(f"{what}, entropy decoding alone", f"{floor_ms:.0f} ms", f"{plain_ms:.0f} ms", most),
    ]
    common.report(
        "decode",
        rows,
        ratio=ratio,
        ours_ms=round(ours_ms, 1),
        plain_ms=round(plain_ms, 1),
        floor_ms=round(floor_ms, 1),
        mean_pixel_difference=round(mean_difference, 3),
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--photos", type=Path, help="take JPEGs and PNGs from here, enlarged to 12 megapixels"
    )
    parser.add_argument("--count", type=int, default=3, help="photos")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each photo and path")
    options = parser.parse_args()
    kind = "enlarged photos" if options.photos else "drawn"
    measure(photos(options.photos, options.count), options.rounds, kind)


if __name__ == "__main__":
    main()
