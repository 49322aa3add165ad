"""Lists of URIs as a source: what somebody else has chosen from places that are allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from id2core.errors import EmptyPlaceError, StorageError
from id2core.sources import list_files
from id2core.sources.base import NAME_BYTES, Item, Source
from id2core.sources.list_files import Record
from id2core.sources.seen import Seen
from id2core.store import members, storage
from id2core.store.ahead import in_order
from id2core.store.base import UNSEEN, Object
from id2core.store.rejects import Reason, Reject

# Objects that are looked up at a time.
_AHEAD: Final = 64
_THREADS: Final = 16
# What a store calls versions; above all no `#`, which would make the object a member of something.
_GENERATION: Final = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)


class _RefusedError(Exception):
    """A line names what cannot be read."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reject = Reject(reason, detail)


@dataclass(frozen=True)
class ListSource(Source):
    """A file that lists URIs: a line each, CSV, or Parquet.

    A list may name what is in its own bucket or, of a local one, below its own folder, and below `allowed`.
    """

    PREFIX: ClassVar[str] = "list:"

    @property
    def folder(self) -> str:
        """What relative URIs are below."""
        return super().folder if self.is_dated else self._folder

    def _items(self) -> Iterator[Item]:
        try:
            obj = storage.find(self.place)
        except FileNotFoundError:
            raise EmptyPlaceError(f"{self.place}: no such list") from None
        suffix = next((s for s in list_files.READERS if self.place.lower().endswith(s)), "")
        try:
            with storage.open_version(obj) as file:
                records = list_files.READERS.get(suffix, list_files.read_text)(file)
                yield from in_order(self._checked(records), _looked_up, _AHEAD, _THREADS)
        except StorageError as error:
            raise type(error)(f"{self.place}: {error}") from error

    def _checked(self, records: Iterator[Record]) -> Iterator[Item | tuple[str, Record]]:
        """Yield the URIs to look up, and refusals as they are."""
        seen = Seen()
        for record in records:
            try:
                uri = self._resolved(record)
                if not seen.add(uri):
                    raise _RefusedError(Reason.DUPLICATE, "an earlier line names it")
                yield uri, record
            except _RefusedError as error:
                named = record.uri if _is_printable(record.uri) else f"{self.place}#line-{record.number}"
                detail = f"{error.reject.detail} (line {record.number})"
                yield Item(members.refused(named, "", error.reject.reason, detail))

    def _resolved(self, record: Record) -> str:
        """Return the URI that a line names. Raises _RefusedError where it may not be read."""
        text = record.uri
        if record.fault or not text:
            raise _RefusedError(Reason.CORRUPT, record.fault or "it names no URI")
        if not _is_printable(text):
            raise _RefusedError(Reason.UNSAFE_MEMBER, f"not printable, or above {NAME_BYTES} bytes")
        if record.generation and not _GENERATION.fullmatch(record.generation):
            raise _RefusedError(Reason.UNSAFE_MEMBER, "its generation is none")
        uri = self._absolute(text)
        if not any(_lies_in(uri, place) for place in (self._own_place, *self.allowed)):
            raise _RefusedError(Reason.NOT_ALLOWED, "outside the list's own place and allowed_places")
        return uri

    def _absolute(self, text: str) -> str:
        scheme, separator, rest = text.partition("://")
        if not separator:
            if storage.is_remote(self.place) and ".." in text.split("/"):
                raise _RefusedError(Reason.NOT_ALLOWED, "it leads out of the list's folder")
            return storage.normalize(text if text.startswith("/") else storage.join(self._folder, text))
        if scheme.lower() == "file":
            return storage.normalize(f"/{rest.lstrip('/')}")
        try:
            return storage.normalize(text)
        except StorageError:
            raise _RefusedError(Reason.NOT_ALLOWED, f"{scheme}:// is not read") from None

    @property
    def _folder(self) -> str:
        return self.place.rpartition("/")[0]

    @property
    def _own_place(self) -> str:
        if not storage.is_remote(self.place):
            return self._folder
        return "/".join(self.place.split("/", 3)[:3])


def _is_printable(text: str) -> bool:
    return 0 < len(text.encode(errors="replace")) <= NAME_BYTES and text.isprintable()


def _lies_in(uri: str, place: str) -> bool:
    """Whether an object is below a place, also when links are resolved."""
    if not uri.startswith(f"{place.rstrip('/')}/"):
        return False
    try:
        return storage.contains(place, uri)
    except OSError:  # a name that no file can have, or links in a circle
        return False


def _looked_up(line: Item | tuple[str, Record]) -> Item:
    """Return the object of a line; one that is not there yet is unseen: the next run looks again."""
    if isinstance(line, Item):
        return line
    uri, record = line
    try:
        present = storage.find(uri)
    except FileNotFoundError:
        return Item(Object(uri, record.generation or UNSEEN, 0), record.fields)
    except StorageError as error:
        if error.transient:
            raise
        return Item(Object(uri, record.generation or UNSEEN, 0), record.fields)
    return Item(Object(uri, record.generation or present.generation, present.bytes), record.fields)
