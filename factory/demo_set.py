"""Cut the bundled demo set from freely licensed wallpapers: how `id2core/data/demo` was made.

Run as `python -m factory.demo_set --pictures DIR --vae DIR --out DIR`. `demo_sources.csv` beside
this file lists the pictures; for each Debian package named there, `apt-get download PACKAGE` and
`dpkg -x PACKAGE_*.deb DIR/PACKAGE` put them in place (Debian 12). Every choice is drawn from a hash of
names, so the same pictures and the same VAE give the same set.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageStat

from id2core.experiments import attacks

SOURCES = Path(__file__).with_name("demo_sources.csv")
REFERENCE, NO_ORIGIN = "reference", "no-origin"
NO_EDIT = "none"
EDITED = 60
WATERMARK = "SAMPLE COPY"

# Width and height of tiles, in pixels: squares and rectangles, the longer side at most 384.
SHAPES = (
    *((256, 256), (320, 320), (384, 384)),
    *((320, 256), (384, 256), (384, 288)),
    *((256, 320), (256, 384), (288, 384)),
)
QUALITIES = (85, 80, 75)
SHRINKS = (1.0, 0.8, 0.7)
MOST_BYTES = 25_000
# Flatter tiles say nothing about the method: standard deviation of the gray levels, 0 to 255.
LEAST_CONTRAST = 14.0
# Cosine of two tiles' centered thumbnails from which they count as the same picture.
SAME_PICTURE = 0.92

LICENSE_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "GPL-2.0-or-later": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
    "LGPL-3.0-only": "https://www.gnu.org/licenses/lgpl-3.0.html",
}

ATTRIBUTION = """\
# Where the demo pictures come from

Every file in `references/` is a crop of one of the pictures below, scaled down and compressed; its name is
the picture's slug and a number. Every file in `uploads/` is either such a crop, an edit of one (JPEG
compression, blur, downscaling, a watermark, or a round trip through a VAE), or a translation of one by the
diffusion model `mini-a` or `mini-b`, or one of these mirrored, cropped, framed, turned, or drawn into a
screenshot; `uploads.csv` names the slug and the edit of each. What was made from a
picture is under the license of that picture, not under the license of the program around it. The texts of
the GPL and the LGPL are in `LICENSES/`.

The whole pictures are in the Debian packages named here, in Debian 12, at
`https://packages.debian.org/bookworm/PACKAGE`; those are also their source in the sense of the GPL. Authors
and licenses are from each package's copyright file and, for plasma-workspace-wallpapers, from the metadata
file beside each picture. The authors do not endorse this use.

| slug | title and file | author | license | Debian package |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Source:
    """One wallpaper: a row of `demo_sources.csv`.

    `grid` is columns × rows of cells, one tile at most from each, so tiles never overlap; `tiles` is how
    many of the cells to use. Tiles of a `no-origin` source become uploads without a reference.
    """

    slug: str
    package: str
    file: str
    title: str
    author: str
    license: str
    role: str
    grid: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class Tile:
    """A crop of a source as the bytes of its JPEG file."""

    name: str
    source: str
    jpeg: bytes


@dataclass(frozen=True)
class Upload:
    """The bytes of an upload, the tile it was made from and what was done to that."""

    tile: Tile
    edit: str
    jpeg: bytes

    @property
    def reference(self) -> str:
        """The origin's path relative to the set, or "" if the set does not hold it."""
        return "" if self.edit == NO_EDIT else f"references/{self.tile.name}.jpg"


def read_sources(path: Path = SOURCES) -> list[Source]:
    """The rows of a sources file.

    Raises:
        ValueError: a role or license is not one this module knows.
    """
    sources = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["role"] not in (REFERENCE, NO_ORIGIN) or row["license"] not in LICENSE_URLS:
                raise ValueError(f"{path}: {row['slug']} has an unknown role or license; mend the row")
            columns, rows = (int(n) for n in row.pop("grid").split("x"))
            tiles = int(row.pop("tiles"))
            sources.append(Source(**row, grid=(columns, rows), tiles=tiles))
    return sources


def draw(*words: object) -> int:
    """A large number that depends on the words alone: the source of every choice here."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big")


def crops(picture: Image.Image, source: Source) -> Iterator[Image.Image]:
    """One crop from each cell of the source's grid, scaled down to a drawn shape, RGB.

    Raises:
        ValueError: the cells are smaller than the smallest shape.
    """
    columns, rows = source.grid
    width, height = picture.width // columns, picture.height // rows
    shapes = [(w, h) for w, h in SHAPES if w <= width and h <= height]
    if not shapes:
        raise ValueError(f"cells of {source.slug} are {width}×{height} pixels; give it a coarser grid")
    for column, row in product(range(columns), range(rows)):
        seed = draw(source.slug, column, row)
        shape = shapes[seed % len(shapes)]
        scale = min(width / shape[0], height / shape[1])
        w, h = math.floor(shape[0] * scale), math.floor(shape[1] * scale)
        left = column * width + seed // 7 % (width - w + 1)
        top = row * height + seed // 11 % (height - h + 1)
        # Cropped first: `resize` with a box would read a few pixels beyond it, from the neighbors.
        tile = picture.crop((left, top, left + w, top + h))
        yield tile.resize(shape, Image.Resampling.LANCZOS)


def encode(image: Image.Image, quality: int) -> bytes:
    """Return the bytes of a JPEG file, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return buffer.getvalue()


def encode_small(image: Image.Image) -> bytes:
    """JPEG bytes within `MOST_BYTES` where a lower quality or a smaller size reaches that."""
    for shrink, quality in product(SHRINKS, QUALITIES):
        if shrink == 1 or min(image.size) * shrink >= min(SHAPES[0]):
            data = encode(attacks.resize(image, shrink), quality)
            if len(data) <= MOST_BYTES:
                break
    return data


def thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """float32[16,16,3], centered and of norm 1: what two tiles are compared by."""
    small = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32)
    centered = small - small.mean()
    return np.asarray(centered / max(float(np.linalg.norm(centered)), 1e-6), np.float32)


class Chooser:
    """Keeps the most detailed crops of each source that are unlike every crop kept before."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.float32]] = []

    def choose(self, picture: Image.Image, source: Source) -> list[Tile]:
        """`source.tiles` tiles, the most detailed first.

        Raises:
            ValueError: the source has fewer crops with contrast that are unlike the others.
        """
        candidates = [
            c for c in crops(picture, source) if ImageStat.Stat(c.convert("L")).stddev[0] >= LEAST_CONTRAST
        ]
        # The bytes that a picture takes at one size measure its detail.
        detail = [len(encode(c.resize(SHAPES[0]), QUALITIES[0])) for c in candidates]
        tiles: list[Tile] = []
        for index in sorted(range(len(candidates)), key=lambda i: -detail[i]):
            if len(tiles) < source.tiles and self._is_new(candidates[index]):
                name = f"{source.slug}-{len(tiles) + 1}"
                tiles.append(Tile(name, source.slug, encode_small(candidates[index])))
        if len(tiles) < source.tiles:
            raise ValueError(f"{source.slug} gives {len(tiles)} tiles, not {source.tiles}; mend its row")
        return tiles

    def _is_new(self, crop: Image.Image) -> bool:
        """Whether no kept crop, nor its mirror image, looks like this one; keeps it if so."""
        mine = thumbnail(crop)
        views = (mine, mine[:, ::-1])
        if any((view * other).sum() >= SAME_PICTURE for other in self._kept for view in views):
            return False
        self._kept.append(mine)
        return True


TRUTH_COLUMNS = ("query_uri", "reference_uri", "group")
EDITS = "edits"  # the group of uploads that no model translated


def edit_functions(vae: object) -> dict[str, tuple[Callable[[Image.Image], Image.Image], int]]:
    """Each edit's name → the attack, and the JPEG quality in which the upload is stored."""
    return {
        "jpeg30": (lambda image: attacks.jpeg(image, 30), 30),
        "blur3": (lambda image: attacks.gaussian_blur(image, 3), 85),
        "resize_half": (lambda image: attacks.resize(image, 0.5), 85),
        "watermark": (lambda image: attacks.watermark(image, WATERMARK), 85),
        "vae_round_trip": (lambda image: attacks.vae_round_trip(image, vae), 85),
    }


def edited(references: list[Tile], vae: object) -> list[Upload]:
    """Edits of `EDITED` different references, the same number by each attack."""
    edits = cycle(edit_functions(vae).items())
    drawn = sorted(references, key=lambda tile: draw("edited", tile.name))[:EDITED]
    uploads = []
    for tile, (name, (attack, quality)) in zip(drawn, edits, strict=False):
        with Image.open(io.BytesIO(tile.jpeg)) as image:
            data = encode(attack(image.convert("RGB")), quality)
        uploads.append(Upload(tile, name, data))
    return uploads


def write(out: Path, references: list[Tile], uploads: list[Upload], sources: list[Source]) -> None:
    """Replace the demo set in `out`; what else is there, `LICENSES/` above all, is left as it is."""
    for folder in ("references", "uploads"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir(parents=True)
    for tile in references:
        (out / "references" / f"{tile.name}.jpg").write_bytes(tile.jpeg)
    truth, kinds = [TRUTH_COLUMNS], [("query_uri", "edit", "source")]
    # In the order of a hash, so that an upload's number reveals nothing.
    shuffled = sorted(uploads, key=lambda upload: draw("upload", upload.tile.name))
    for number, upload in enumerate(shuffled):
        uri = f"uploads/u{number:03d}.jpg"
        (out / uri).write_bytes(upload.jpeg)
        truth.append((uri, upload.reference, EDITS if upload.reference else ""))
        kinds.append((uri, upload.edit, upload.tile.source))
    _write_csv(out / "truth.csv", truth)
    _write_csv(out / "uploads.csv", kinds)
    (out / "ATTRIBUTION.md").write_text(ATTRIBUTION + "".join(map(_attribution_row, sources)), "utf-8")


def _attribution_row(source: Source) -> str:
    picture = f"{source.title}, `{source.file}`"
    link = f"[{source.license}]({LICENSE_URLS[source.license]})"
    return f"| {source.slug} | {picture} | {source.author} | {link} | {source.package} |\n"


def _write_csv(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    """Read the pictures, cut them, and write the set."""
    parser = argparse.ArgumentParser(description="Cut the bundled demo set from wallpapers.")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of unpacked Debian packages")
    parser.add_argument("--vae", type=Path, required=True, help="folder of a diffusers AutoencoderKL")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. id2core/data/demo")
    args = parser.parse_args()
    sources, chooser = read_sources(), Chooser()
    tiles: dict[str, list[Tile]] = {REFERENCE: [], NO_ORIGIN: []}
    for source in sources:
        with Image.open(args.pictures / source.package / source.file) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        tiles[source.role] += chooser.choose(upright, source)
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    uploads = edited(tiles[REFERENCE], vae)
    uploads += [Upload(tile, NO_EDIT, tile.jpeg) for tile in tiles[NO_ORIGIN]]
    write(args.out, tiles[REFERENCE], uploads, sources)
    print(f"{len(tiles[REFERENCE])} references and {len(uploads)} uploads in {args.out}")


if __name__ == "__main__":
    main()
