"""What decoding one picture may cost, and the refusals that need no decoding.

Counts are compared before a pixel is decoded. Memory and processor time are not predicted but enforced: each
decode runs in a process of its own under the limits of `allowance` (`decoder_process`, `decoder_pool`).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np

from id2core import defaults
from id2core.store.rejects import Reason, Reject

if TYPE_CHECKING:
    from id2core.settings import Settings  # imports pydantic, which a decoder process does without

MIB: Final = 2**20
# A photo of 100 megapixels is a large file: the budget grows with the bytes above the first MiB.
MEMORY_PER_BYTE: Final = 256
SECONDS_PER_MIB: Final = 1.0
# No file is worth more, however large.
MOST_MEMORY: Final = 2048 * MIB
MOST_SECONDS: Final = 60.0
# Memory of a decode beside the pixels, and per pixel of what a decoder unpacks: planes, their copy in RGBA,
# and the copies of a conversion. Honest pictures stay far below.
BASE_MEMORY: Final = 128 * MIB
MEMORY_PER_PIXEL: Final = 32
# Memory that a decode has without asking: a picture of a megapixel and its file, as a large JPEG is once its
# scale is reduced. Asking costs as much as decoding a thumbnail.
STANDING_MEMORY: Final = BASE_MEMORY + 48 * MIB
# A decoder holds the whole file, and at times a second one that it opens in its place.
COPIES_OF_FILE: Final = 2
# Memory beside the file until its header is read. With it, files of up to 32 MiB fit into `BASE_MEMORY`.
OPENING_MEMORY: Final = 64 * MIB
# Coefficients that a progressive JPEG keeps for the whole picture, also where it is decoded at a lower scale.
MEMORY_PER_COEFFICIENT: Final = 8

# Encoders write about ten scans, optimizers some dozens.
MAX_SCANS: Final = 100
# Chunks of a PNG, and blocks of a GIF, before the first picture. A comment of 1 MB has 4,000 blocks.
MAX_METADATA: Final = 10_000
# Values of a TIFF or EXIF directory lie in the file once, so that together they are no larger than it.
MAX_SHARED: Final = 2


@dataclass(frozen=True)
class Limits:
    """What a file may cost before it is turned away.

    Attributes:
        max_bytes: largest file, in bytes.
        max_pixels: largest declared width × height. Pillow has a ceiling of its own, twice
            `PIL.Image.MAX_IMAGE_PIXELS`, which is the default here; a higher value does not lift it.
        max_memory: MiB that decoding a file of up to 1 MiB may take. Each further MiB of the file adds
            256 MiB, up to 2 GiB.
        max_seconds: processor time that decoding such a file may take. Each further MiB adds 1 s, up to 60 s.

    Memory and time hold where a decode runs in a process of its own (`decoder_pool`).
    """

    max_bytes: int = defaults.MAX_BYTES
    max_pixels: int = defaults.MAX_PIXELS
    max_memory: int = defaults.MAX_MEMORY
    max_seconds: float = defaults.MAX_SECONDS

    @staticmethod
    def from_settings(settings: Settings) -> Limits:
        """Return the limits that an operator chose."""
        return Limits(**settings.model_dump(include={field.name for field in fields(Limits)}))


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Allowance:
    """Memory in bytes and processor time in seconds of one decode, above the rest of its process."""

    memory: int
    seconds: float


def allowance(size: int, limits: Limits) -> Allowance:
    """Return what decoding a file of `size` bytes may cost."""
    more = max(0, size - MIB)
    memory = limits.max_memory * MIB + more * MEMORY_PER_BYTE
    seconds = limits.max_seconds + more / MIB * SECONDS_PER_MIB
    return Allowance(
        min(memory, max(MOST_MEMORY, limits.max_memory * MIB)),
        min(seconds, max(MOST_SECONDS, limits.max_seconds)),
    )


class MemoryGate:
    """Bytes of memory that threads share: who wants some waits until they are free."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """Hold so many bytes, or all that there are where that is less, until the block ends."""
        wanted = min(wanted, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


def admit(pixels: int, coefficients: int = 0) -> None:
    """Announce that pixels are about to be unpacked; blocks until there is memory for them.

    Outside of `admitting` this does nothing. Every path that takes memory by what a header declares announces
    it, or it has to do with `BASE_MEMORY`.

    Args:
        pixels: how many are unpacked.
        coefficients: pixels of a picture that is kept in another form as well, as a progressive JPEG is.
    """
    _admission.get()(BASE_MEMORY + pixels * MEMORY_PER_PIXEL + coefficients * MEMORY_PER_COEFFICIENT)


@contextmanager
def admitting(by: Callable[[int], None]) -> Iterator[None]:
    """Call `by` at each `admit` of this thread, with the bytes beyond which no honest picture goes."""
    token = _admission.set(by)
    try:
        yield
    finally:
        _admission.reset(token)


_admission: ContextVar[Callable[[int], None]] = ContextVar("_admission", default=lambda memory: None)


def webp_pixels(data: bytes) -> int:
    """Return the width × height that a WebP declares; opening it unpacks them."""
    width, height = _webp_size(data)
    return width * height


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that the first chunk of a WebP declares."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def check_structure(data: bytes, kind: str) -> Reject | None:
    """Refuse a file whose scans, blocks, chunks, or directory no honest file has.

    Counts what lies before the first picture, which is the only one that is decoded. A file that is damaged
    passes: what is wrong with it is told by decoding it.
    """
    if kind == "jpeg" and (scans := _scans(data)) > MAX_SCANS:
        return Reject(Reason.OVER_BUDGET, f"jpeg: {scans} scans, limit {MAX_SCANS}")
    if kind == "gif" and _gif_blocks(data) > MAX_METADATA:
        return Reject(Reason.OVER_BUDGET, f"gif: more than {MAX_METADATA} blocks before the first frame")
    if kind == "png" and _png_chunks(data) > MAX_METADATA:
        return Reject(Reason.OVER_BUDGET, f"png: more than {MAX_METADATA} chunks before the pixels")
    if kind == "tiff" and (size := directory_bytes(data)) > MAX_SHARED * len(data):
        return Reject(Reason.OVER_BUDGET, f"tiff: a directory of {size} bytes in a file of {len(data)}")
    return None


def shares_blocks(exif: bytes) -> bool:
    """Return whether the values of an EXIF directory are larger than the directory's file: they overlap."""
    return directory_bytes(exif.removeprefix(b"Exif\0\0")) > MAX_SHARED * len(exif)


def _scans(data: bytes) -> int:
    """Number of scans of a JPEG's first picture."""
    # Cheap, and an upper bound: within a scan the marker cannot occur, but a thumbnail has some, too.
    most = sum(_pairs(data, start) for start in (0, 1))
    if most <= MAX_SCANS:
        return most
    scans, place = 0, 2
    while 0 <= place < len(data) - 3:
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xD9:
            break
        if marker == 0xFF:  # padding
            place += 1
            continue
        place += 2 if marker in _BARE_MARKERS else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:
            scans += 1
            place = _end_of_scan(data, place)
    return scans


def _pairs(data: bytes, start: int) -> int:
    """Number of scan markers at every other place; in a large file five times as fast as `bytes.count`."""
    pairs = np.frombuffer(data, "<u2", (len(data) - start) // 2, start)
    return int(np.count_nonzero(pairs == _SCAN_PAIR))


_SCAN_PAIR: Final = int.from_bytes(b"\xff\xda", "little")
_BARE_MARKERS: Final = frozenset([0x01, *range(0xD0, 0xD9)])


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker begins that ends the pixels of a scan; −1 without one."""
    while (place := data.find(b"\xff", place)) >= 0:
        after = data[place + 1 : place + 2]
        if after not in (b"\0", b"\xff") and not b"\xd0" <= after <= b"\xd7":
            return place
        place += 1 if after == b"\xff" else 2
    return -1


def _gif_blocks(data: bytes) -> int:
    """Blocks of all extensions before a GIF's first frame; counting ends above the limit."""
    flags = data[10] if len(data) > 10 else 0
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while data[place : place + 1] == b"!" and blocks <= MAX_METADATA:
        place += 2
        blocks += 1
        while place < len(data) and (length := data[place]) and blocks <= MAX_METADATA:
            place += 1 + length
            blocks += 1
        place += 1
    return blocks


def _png_chunks(data: bytes) -> int:
    """Chunks before the pixels of a PNG; counting ends above the limit."""
    place, chunks = 8, 0
    while place + 8 <= len(data) and data[place + 4 : place + 8] != b"IDAT" and chunks <= MAX_METADATA:
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        chunks += 1
    return chunks


# TIFF 6.0 and BigTIFF: bytes of a value of each type.
_TYPE_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4} | {
    16: 8,
    17: 8,
    18: 8,
}


def directory_bytes(tiff: bytes) -> int:
    """Sum of the bytes of the values of the first directory of a TIFF or EXIF block.

    Values that lie outside of the block are damage, and not counted.
    """
    order = ">" if tiff[:2] == b"MM" else "<"
    big = tiff[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), tiff, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), tiff, place)
    except struct.error:
        return 0
    start = place + (8 if big else 2)
    table = tiff[start : start + min(count, 2**16) * entry.size]
    whole = table[: len(table) // entry.size * entry.size]
    sizes = ((_TYPE_SIZES.get(type_, 1) * n, place) for _, type_, n, place in entry.iter_unpack(whole))
    return sum(size for size, place in sizes if place + size <= len(tiff))
