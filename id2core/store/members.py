r"""Members of containers: pictures in a tar or a Parquet file, as objects with URIs of their own.

    URI          SHARD#NAME                             gs://b/shard-0007.tar#img/123.jpg
    generation   GENERATION-OF-SHARD#KIND:PLACE         1700000000#tar:1536+48211

The generation says that an object is a member, never the URI: a file may be called `a#b.jpg`. It also says
where the member's bytes are, so that reading one needs no look at the others, and names exactly one version.
The last `#` of the URI ends the shard's: `spell` writes a `#` of a member's name as `\x23`.

What a listing refuses is an object, too, of the kind `refused`: reading it gives the reason. So every listed
name gets a row in `rejects/` by the same path as a broken picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from id2core.store import unpacking
from id2core.store.base import Object, Store
from id2core.store.rejects import Reason, Reject

SEPARATOR: Final = "#"
TAR, TGZ, PARQUET, REFUSED = "tar", "tgz", "parquet", "refused"
_DETAIL_CHARACTERS: Final = 200
_ESCAPED = re.compile(rb"[\x00-\x1f#\x7f]|\\(?=x)")


@dataclass(frozen=True)
class Member:
    """A member as its generation describes it.

    Attributes:
        shard: the container; its size is not known here.
        kind: how it is read, see `READERS`.
        place: where it is in the shard, as the kind writes it.
    """

    shard: Object
    kind: str
    place: str

    @property
    def refusal(self) -> Reject | None:
        """Why the listing refused it; None for what can be read."""
        if self.kind != REFUSED:
            return None
        reason, _, detail = self.place.partition(":")
        return Reject(Reason(reason), detail)


def spell(name: bytes) -> str:
    """Return a member's name for a URI: control characters, `#` and what is not UTF-8 as `\\xNN`."""
    escaped = _ESCAPED.sub(lambda match: rb"\x%02x" % match[0][0], name)
    return escaped.decode(errors="backslashreplace")


def member(shard: Object, name: str, kind: str, place: str, size: int) -> Object:
    """Return the object that a member is.

    Args:
        shard: its container.
        name: as `spell` returns it.
        kind: how it is read.
        place: where it is.
        size: in bytes.
    """
    return Object(f"{shard.uri}{SEPARATOR}{name}", f"{shard.generation}{SEPARATOR}{kind}:{place}", size)


def refused(uri: str, generation: str, reason: Reason, detail: str) -> Object:
    """Return an object that has no bytes, but a reason why not.

    Args:
        uri: what the listing named.
        generation: of the container, or "" where none is pinned.
        reason: from the closed list.
        detail: for a person; the same at every listing, as it is part of the generation.
    """
    text = detail.encode(errors="backslashreplace").decode()[:_DETAIL_CHARACTERS]
    return Object(uri, f"{generation}{SEPARATOR}{REFUSED}:{reason}:{text}", 0)


def parse(obj: Object) -> Member | None:
    """Return the member that an object is; None for an object of a store."""
    generation, mark, rest = obj.generation.partition(SEPARATOR)
    if not mark:
        return None
    kind, _, place = rest.partition(":")
    return Member(Object(obj.uri.rpartition(SEPARATOR)[0], generation, 0), kind, place)


def read(store: Store, item: Member, max_bytes: int) -> bytes | Reject:
    """Return the bytes of a member, or why they cannot be had.

    Raises:
        FileNotFoundError, ChangedObjectError: the shard is gone, or was replaced.
    """
    data = READERS[item.kind](store, item)
    if isinstance(data, bytes) and len(data) > max_bytes:
        return Reject(Reason.TOO_LARGE_FILE, f"{len(data)} bytes; the limit is {max_bytes}")
    return data


def _range(item: Member) -> tuple[int, int]:
    start, _, size = item.place.partition("+")
    return int(start), int(size)


def _read_tar(store: Store, item: Member) -> bytes | Reject:
    start, size = _range(item)
    return _whole(store.read_range(item.shard, start, size), size)


def _read_tgz(store: Store, item: Member) -> bytes | Reject:
    start, size = _range(item)
    return _whole(unpacking.read_range(store, item.shard, start, size), size)


def _whole(data: bytes, size: int) -> bytes | Reject:
    if len(data) == size:
        return data
    return Reject(Reason.TRUNCATED, f"{len(data)} of {size} bytes are in the shard")


def _read_parquet(store: Store, item: Member) -> bytes | Reject:
    from id2core.store import parquet_images  # imports pyarrow, which listing a folder does without

    group, _, row = item.place.partition("+")
    return parquet_images.read_row(store, item.shard, int(group), int(row))


# Kind → how it is read. A new kind of container is a function here, beside its source in `sources/`.
READERS: Final[dict[str, Callable[[Store, Member], bytes | Reject]]] = {
    TAR: _read_tar,
    TGZ: _read_tgz,
    PARQUET: _read_parquet,
}
