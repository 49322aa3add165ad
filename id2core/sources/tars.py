"""Tar files, packed or not, as a source: each member is an image, with the fields of the JSON beside it.

Members of one name up to its first dot belong together, as WebDataset has it: `a/7.jpg` and `a/7.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, ClassVar, Final

from id2core.sources.base import Item, MemberNames, ShardedSource, ShardUnreadableError
from id2core.sources.tar_headers import Entry, Forward, GzipFile, SeekableFile, entries
from id2core.store import members, storage, strict_json
from id2core.store.base import Object
from id2core.store.rejects import Reason

_GZIP_MAGIC: Final = b"\x1f\x8b"
_FIELDS = b".json"
# Of all fields of one name: a post with its fields has some kB.
_FIELDS_BYTES: Final = 1 << 20
# Members that are held until the next name begins.
_MAX_SAMPLE: Final = 64
_OTHER_PACKING: Final = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


class TarSource(ShardedSource):
    """A tar file, a `.tar.gz` or `.tgz`, or a folder or prefix of them."""

    PREFIX: ClassVar[str] = "tar:"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", *_OTHER_PACKING)

    def _shard(self, shard: Object) -> Iterator[Item]:
        if shard.uri.lower().endswith(_OTHER_PACKING):
            raise ShardUnreadableError(Reason.UNSUPPORTED, "packed by another program than gzip")
        with storage.open_version(shard) as file:
            is_gzip = file.read(2) == _GZIP_MAGIC
            yield from _Shard(shard, members.TGZ if is_gzip else members.TAR).items(_forward(file, is_gzip))


def _forward(file: IO[bytes], is_gzip: bool) -> Forward:
    file.seek(0)
    return GzipFile(file) if is_gzip else SeekableFile(file)


def _is_fields(name: bytes, size: int) -> bool:
    return name.lower().endswith(_FIELDS) and size <= _FIELDS_BYTES


def _sample_of(name: bytes) -> bytes:
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.split(b".", 1)[0]


class _Shard:
    """One listing of a tar file."""

    def __init__(self, shard: Object, kind: str) -> None:
        self._shard, self._kind, self._names = shard, kind, MemberNames(shard)

    def items(self, file: Forward) -> Iterator[Item]:
        """Yield the members; what was whole before an error is yielded before it."""
        sample: list[Entry] = []
        key = None
        try:
            for entry in entries(file, _is_fields):
                if _sample_of(entry.name) != key or len(sample) == _MAX_SAMPLE:
                    yield from self._sample(sample)
                    sample, key = [], _sample_of(entry.name)
                sample.append(entry)
        except ShardUnreadableError:
            yield from self._sample(sample)
            raise
        yield from self._sample(sample)

    def _sample(self, sample: list[Entry]) -> Iterator[Item]:
        """Yield the pictures of one name with its fields.

        JSON that is no object, or has no picture beside it, is listed like any other member: what is called
        `.json` is not hidden by its name.
        """
        fields: dict[str, Any] | None = None
        pictures: list[Entry] = []
        room = _FIELDS_BYTES
        for entry in sample:
            parsed = None
            if entry.content is not None and len(entry.content) <= room:
                room -= len(entry.content)
                parsed = _parse(entry.content)
            if parsed is None:
                pictures.append(entry)
            elif fields is None:
                fields = parsed
        for entry in pictures or sample:
            yield self._item(entry, fields if pictures else None)

    def _item(self, entry: Entry, fields: dict[str, Any] | None) -> Item:
        place = f"{entry.offset}+{entry.size}"
        if entry.refusal:
            return Item(self._names.refuse(entry.name, place, Reason.UNSAFE_MEMBER, entry.refusal))

        def make(name: str) -> Object:
            return members.member(self._shard, name, self._kind, place, entry.size)

        obj, good = self._names.item(entry.name, place, make, is_path=True)
        return Item(obj, fields if good else None)


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        return strict_json.parse_object(content, _FIELDS_BYTES)
    except strict_json.JsonError:
        return None
