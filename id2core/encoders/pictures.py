"""One object of a corpus, read, hashed and decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

from id2core.encoders import decoder_pool
from id2core.encoders.budget import MIB, Limits, MemoryGate
from id2core.encoders.images import Decoded
from id2core.runs import parts
from id2core.store import storage
from id2core.store.rejects import Reject
from id2core.store.storage import Object


@dataclass(frozen=True)
class Picture:
    """A picture of a listed object, read and decoded.

    Attributes:
        information: how much it shows, where that was measured.
    """

    obj: Object
    image_id: str
    decoded: Decoded
    information: float | None = None


# Whole files that this process holds at once, in bytes; photos are far below, whatever the number of threads.
_FILES: Final = MemoryGate(512 * MIB)


def reading_threads(objects: Sequence[Object]) -> int:
    """Return how many threads should read and decode the objects of a part.

    A local file is there at once, and a thread without a decoder would only take turns with the others: each
    decoder gets one. A bucket lets every read wait, so that files must be under way while others are decoded.
    """
    decoders = decoder_pool.default_processes()
    if any(storage.is_remote(obj.uri) for obj in objects):
        return max(parts.READ_THREADS, 2 * decoders)
    return decoders


def read_picture(obj: Object, size: int, limits: Limits) -> Picture | Reject:
    """Read, hash and decode one object to a square of `size` pixels."""
    with holding(obj, limits):
        data = storage.read_object(obj, limits.max_bytes)
        return data if isinstance(data, Reject) else decode_picture(obj, data, size, limits)


def holding(obj: Object, limits: Limits) -> AbstractContextManager[None]:
    """Wait until there is memory for an object's bytes, and keep it until the block ends."""
    return _FILES.taken(obj.bytes if obj.bytes <= limits.max_bytes else 0)


def decode_picture(obj: Object, data: bytes, size: int, limits: Limits) -> Picture | Reject:
    """Hash and decode the bytes of an object to a square of `size` pixels."""
    decoded = decoder_pool.decode(data, size, limits)
    if isinstance(decoded, Reject):
        return decoded
    # The listing knows the mean size of Parquet rows alone.
    return Picture(replace(obj, bytes=len(data)), hashlib.sha256(data).hexdigest(), decoded)
