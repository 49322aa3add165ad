"""One object of a corpus, read, hashed and decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from id2core.encoders import images
from id2core.encoders.images import Decoded, Limits
from id2core.store import storage
from id2core.store.rejects import Reject
from id2core.store.storage import Object


@dataclass(frozen=True)
class Picture:
    """A picture of a listed object, read and decoded."""

    obj: Object
    image_id: str
    decoded: Decoded


def read_picture(obj: Object, size: int, limits: Limits) -> Picture | Reject:
    """Read, hash and decode one object to a square of `size` pixels."""
    data = storage.read_object(obj, limits.max_bytes)
    return data if isinstance(data, Reject) else decode_picture(obj, data, size, limits)


def decode_picture(obj: Object, data: bytes, size: int, limits: Limits) -> Picture | Reject:
    """Hash and decode the bytes of an object to a square of `size` pixels."""
    decoded = images.decode(data, size, limits)
    if isinstance(decoded, Reject):
        return decoded
    return Picture(obj, hashlib.sha256(data).hexdigest(), decoded)
