"""What a source is: the interface behind `registry`, and the items that it yields."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, ClassVar, Final, Self, final

from id2core.errors import EmptyPlaceError, OptionError, StorageError, StoreUnavailableError
from id2core.sources import dates
from id2core.sources.seen import Seen
from id2core.store import members, storage
from id2core.store.base import UNSEEN, Noted, Object, Remark
from id2core.store.datasets import Mode as Mode
from id2core.store.rejects import Reason, Reject

# More members than any honest shard has; the rest of such a shard is one reject row.
MAX_MEMBERS: Final = 1 << 24
# Longer names and URIs have no use but to fill memory.
NAME_BYTES: Final = 4096
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Item:
    """One listed object.

    Attributes:
        obj: it; what the source refuses is an object whose reading gives the reason, see `members.refused`.
        fields: what the platform sent along, by its own names; None for nothing.
    """

    obj: Object
    fields: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Source(ABC):
    """A place that images come from.

    Attributes:
        place: what stands behind the prefix, normalized.
        mode: whether rows follow the listing, or stay when it forgets.
        allowed: places that a list may name beside its own, normalized.
        within: for a place of one night, where nothing may have come yet, what must be there nonetheless;
            empty for a place that must exist.
        nights: of a dated source those that are read, the earliest first; none until `on` has chosen them.
    """

    PREFIX: ClassVar[str] = ""

    place: str
    mode: Mode = Mode.MIRROR
    allowed: tuple[str, ...] = ()
    within: str = ""
    nights: tuple[date, ...] = ()

    @property
    def uri(self) -> str:
        """The one spelling of the source, as `registry.parse` takes it."""
        return f"{self.PREFIX}{self.place}"

    @property
    def is_dated(self) -> bool:
        """Whether the source is another place every night."""
        return dates.is_dated(self.place)

    @property
    def folder(self) -> str:
        """What relative names of its images are below; of a dated source what is the same every night."""
        return dates.fixed_part(self.place) if self.is_dated else self.place

    @final
    def on(self, night: date, late_days: int) -> Self:
        """Return the source as it is read in a night: a dated one with the late days before it, too.

        Args:
            night: see `dates.today` for the one in a time zone.
            late_days: days before the night whose places are read again.
        """
        return replace(self, nights=tuple(dates.nights(night, late_days))) if self.is_dated else self

    @property
    def parts(self) -> tuple[Source, ...]:
        """Sources of the nights that are read; of a source that is not dated itself.

        Raises:
            OptionError: the source is dated, and `on` has not been called.
        """
        if not self.is_dated:
            return (self,)
        if not self.nights:
            raise OptionError(f"{self.uri} stands for one place a night: say which night")
        within = dates.fixed_part(self.place)
        # Nights of one month may be one place.
        places = dict.fromkeys(dates.filled(self.place, night) for night in self.nights)
        return tuple(replace(self, place=place, within=within, nights=()) for place in places)

    @property
    def places(self) -> tuple[str, ...]:
        """What is listed now of a source that is dated: rows of other nights are not missing from a listing.

        Empty where all that the source has is listed.
        """
        return tuple(part.place for part in self.parts) if self.is_dated else ()

    @final
    def items(self) -> Iterator[Item | Noted]:
        """Yield every object with its fields, one by one, in an order that is always the same.

        Raises:
            OptionError: the source is dated, and no night is said.
            StorageError: a place cannot be listed or read, or holds nothing and must not be empty.
        """
        for part in self.parts:
            yield from part._listed()

    def _listed(self) -> Iterator[Item | Noted]:
        """Yield the items of the place; none where there may be none."""
        try:
            yield from self._items()
        except EmptyPlaceError:
            if not self.within:
                raise
            dates.require(self.within)

    @final
    def list(self) -> Iterator[Object | Noted]:
        """Yield every object without its fields; see `items`."""
        for item in self.items():
            yield item.obj if isinstance(item, Item) else item

    @abstractmethod
    def _items(self) -> Iterator[Item | Noted]:
        """Yield the items of the place."""


class ShardUnreadableError(Exception):
    """A shard cannot be read from some place on, or at all.

    Attributes:
        reject: why, for the row of the shard.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reject = Reject(reason, detail)


@dataclass(frozen=True)
class ShardedSource(Source):
    """A source whose place is a shard, or a folder of shards that hold the images."""

    SUFFIXES: ClassVar[tuple[str, ...]] = ()

    @property
    def folder(self) -> str:
        """What the names of its shards are below."""
        is_shard = self.place.lower().endswith(self.SUFFIXES) and not self.is_dated
        return _parent(self.place) if is_shard else super().folder

    @final
    def _items(self) -> Iterator[Item | Noted]:
        for item in storage.walk(self.place):
            if isinstance(item, Noted):
                yield item
            elif item.generation == UNSEEN:  # a shard, or a folder of some
                yield Item(item)
            elif item.uri == self.place or item.uri.lower().endswith(self.SUFFIXES):
                yield from self._members_of(item)
            else:
                yield Noted(item.uri, Remark.NO_SHARD)

    def _members_of(self, shard: Object) -> Iterator[Item | Noted]:
        """Yield what is whole in a shard; the rest is one refusal of the shard, also where that is all."""
        try:
            yield from self._shard(shard)
        except ShardUnreadableError as error:
            yield refuse_shard(shard, error.reject)
        except (FileNotFoundError, StorageError) as error:
            if isinstance(error, StoreUnavailableError):
                raise
            # What it holds is not known to be gone. Reading the shard says what is wrong with it.
            yield Item(Object(shard.uri, UNSEEN, 0))

    @abstractmethod
    def _shard(self, shard: Object) -> Iterator[Item | Noted]:
        """Yield the members of one shard.

        Raises:
            ShardUnreadableError: there are no more, because it is damaged, or takes too much.
        """


def _parent(uri: str) -> str:
    return uri.rpartition("/")[0] or "/"


def refuse_shard(shard: Object, reject: Reject) -> Item:
    """Return the row of a shard that is not, or not wholly, read."""
    return Item(members.refused(shard.uri, shard.generation, reject.reason, reject.detail))


class MemberNames:
    """Turns names of members of one shard into objects, and refuses what no member may be called."""

    def __init__(self, shard: Object) -> None:
        self._shard, self._seen = shard, Seen()

    def item(
        self, name: bytes, place: str, make: Callable[[str], Object], *, is_path: bool
    ) -> tuple[Object, bool]:
        """Return the object of a member, and whether it is one and not a refusal.

        Args:
            name: as the shard has it.
            place: tells members of one name apart, for a refusal.
            make: returns the object of a spelled name.
            is_path: names are paths, that must not lead out of the shard.

        Raises:
            ShardUnreadableError: the shard has more members than `MAX_MEMBERS`.
        """
        if fault := name_fault(name, is_path=is_path):
            return self.refuse(name, place, Reason.UNSAFE_MEMBER, fault), False
        spelled = members.spell(name)
        if not self._seen.add(spelled):
            return self.refuse(name, place, Reason.DUPLICATE, "an earlier member has this name"), False
        if len(self._seen) > MAX_MEMBERS:
            raise ShardUnreadableError(Reason.OVER_BUDGET, f"more than {MAX_MEMBERS} members")
        return make(spelled), True

    def refuse(self, name: bytes, place: str, reason: Reason, detail: str) -> Object:
        """Return the refusal of a member."""
        uri = f"{self._shard.uri}{members.SEPARATOR}{members.spell(name[:NAME_BYTES])}"
        return members.refused(uri, self._shard.generation, reason, f"{detail} (at {place})")


def name_fault(name: bytes, *, is_path: bool) -> str | None:
    """Return what is wrong with a name of a member; None for a good one."""
    if not name:
        return "it has no name"
    if len(name) > NAME_BYTES:
        return f"a name of {len(name)} bytes"
    if _CONTROL.search(name):
        return "its name has control characters"
    if is_path and name.startswith(b"/"):
        return "its name is an absolute path"
    if b".." in name.split(b"/"):
        return "its name leads out of the shard"
    return None
