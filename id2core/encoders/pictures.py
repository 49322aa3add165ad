"""One object of a corpus, read, hashed and decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

from id2core.encoders import credentials, decoder_pool
from id2core.encoders.budget import MIB, Limits, MemoryGate
from id2core.encoders.credentials import (
    MOST_THUMBNAIL,
    MOST_THUMBNAIL_PIXELS,
    NO_CREDENTIALS,
    Credentials,
)
from id2core.encoders.images import Decoded, Inset
from id2core.encoders.views import HALVES, INSET, PARENT, WHOLE
from id2core.runs import parts
from id2core.store import storage
from id2core.store.rejects import Reject
from id2core.store.storage import Object


@dataclass(frozen=True)
class Picture:
    """A picture of a listed object, read and decoded.

    Attributes:
        information: how much it shows, where that was measured.
        credentials: what its manifest says, without the file of a thumbnail; None where nobody looked.
        insets: name of a view → the picture that is seen inside of it, or that its manifest has. None where
            nobody looked.
    """

    obj: Object
    image_id: str
    decoded: Decoded
    information: float | None = None
    credentials: Credentials | None = None
    insets: Mapping[str, Inset] | None = None

    @property
    def looks(self) -> int:
        """Return how many pictures there are to encode: it, and its insets."""
        return 1 + len(self.insets or ())


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


def read_picture(
    obj: Object, size: int, limits: Limits, trust: str | None = None, *, look: bool = False
) -> Picture | Reject:
    """Read, hash and decode one object to a square of `size` pixels.

    Args:
        obj: a listed object.
        size: side of the square in pixels.
        limits: what the file may cost: for its pixels, again for its manifest, and again for a parent.
        trust: certificates in PEM, to read Content Credentials by; None not to look for any.
        look: whether to look for pictures inside of it, and in its manifest.
    """
    with holding(obj, limits):
        data = storage.read_object(obj, limits.max_bytes)
        if isinstance(data, Reject):
            return data
        picture = decode_picture(obj, data, size, limits, look=look)
        if trust is None or isinstance(picture, Reject):
            return picture
        said = _credentials(data, picture.decoded.format, limits, trust, look)
    insets = _with_parent(picture, said, size, limits)
    return replace(picture, credentials=said and replace(said, parent_thumbnail=None), insets=insets)


def _with_parent(
    picture: Picture, said: Credentials | None, size: int, limits: Limits
) -> Mapping[str, Inset] | None:
    """Return the insets of a picture, with the parent that its manifest shows."""
    if picture.insets is None or said is None or said.parent_thumbnail is None:
        return picture.insets
    # It is decoded as any picture, under tighter limits. A manifest of its own is not read.
    tighter = replace(
        limits,
        max_bytes=min(limits.max_bytes, MOST_THUMBNAIL),
        max_pixels=min(limits.max_pixels, MOST_THUMBNAIL_PIXELS),
    )
    parent = decoder_pool.decode(said.parent_thumbnail, size, tighter)
    if isinstance(parent, Reject):
        return picture.insets
    return {**picture.insets, PARENT: Inset(WHOLE, parent.pixels)}


def _credentials(data: bytes, kind: str, limits: Limits, trust: str, thumbnail: bool) -> Credentials | None:
    """Return what the manifest of a picture says; None without the extra `c2pa`."""
    if not credentials.is_available():
        return None
    if not credentials.may_have(data, kind):
        return NO_CREDENTIALS
    return decoder_pool.credentials(data, kind, limits, trust, thumbnail)


def holding(obj: Object, limits: Limits) -> AbstractContextManager[None]:
    """Wait until there is memory for an object's bytes, and keep it until the block ends."""
    return _FILES.taken(obj.bytes if obj.bytes <= limits.max_bytes else 0)


def decode_picture(
    obj: Object, data: bytes, size: int, limits: Limits, *, look: bool = False
) -> Picture | Reject:
    """Hash and decode the bytes of an object to a square of `size` pixels; `look` for pictures inside."""
    decoded = decoder_pool.decode(data, size, limits, look=look)
    if isinstance(decoded, Reject):
        return decoded
    names = (INSET,) if len(decoded.insets) == 1 else HALVES
    insets = dict(zip(names, decoded.insets, strict=False)) if look else None
    # The listing knows the mean size of Parquet rows alone.
    return Picture(replace(obj, bytes=len(data)), hashlib.sha256(data).hexdigest(), decoded, insets=insets)
