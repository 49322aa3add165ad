"""Kinds of sources by the prefix that spells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Final

from id2core.errors import OptionError
from id2core.sources import dates
from id2core.sources.base import Mode, Source
from id2core.sources.folders import FolderSource
from id2core.sources.lists import ListSource
from id2core.sources.parquets import ParquetSource
from id2core.sources.tars import TarSource
from id2core.store import storage

# A new kind is a module with its `Source` and a row here; a new container also a reader in `store.members`.
KINDS: Final[tuple[type[Source], ...]] = (TarSource, ParquetSource, ListSource)


def parse(text: str, mode: Mode | None = None, allowed_places: Sequence[str] = ()) -> Source:
    """Return the source that a text spells: `tar:PLACE`, `parquet:PLACE`, `list:FILE`, or a plain place.

    Args:
        text: as a user writes it. A folder whose name begins like a prefix is written `./tar:x`.
        mode: what happens to rows that the source no longer lists; by default, those of a dated source stay,
            and those of another follow the listing.
        allowed_places: folders and prefixes that a list may name beside its own.

    Raises:
        StorageError: the place has no possible name.
        OptionError: rows of a dated list cannot follow it: they may be of any place.

    Example:
        >>> parse("tar:gs://inbox/{date}").uri
        'tar:gs://inbox/{date}'
    """
    kind = next((kind for kind in KINDS if text.startswith(kind.PREFIX)), FolderSource)
    place = storage.normalize(text.removeprefix(kind.PREFIX))
    is_dated = dates.is_dated(place)
    mode = Mode(mode or (Mode.APPEND if is_dated else Mode.MIRROR))
    if kind is ListSource and is_dated and mode is Mode.MIRROR:
        raise OptionError(f"{text}: rows of a dated list stay, as its nights are not told apart: append it")
    allowed = tuple(storage.normalize(allowed) for allowed in allowed_places)
    # A place whose rows stay may be empty by now.
    within = place if mode is Mode.APPEND and kind is not ListSource and not is_dated else ""
    return kind(place, mode, allowed, within)


def expand(source: Source, night: date, late_days: int) -> Iterator[Source]:
    """Yield the sources of a night: of a dated one those of the late days before it, too, the earliest first.

    Args:
        source: any; one that is not dated is yielded as it is.
        night: see `dates.today` for the one in a time zone.
        late_days: days before the night whose places are read again.
    """
    yield from source.on(night, late_days).parts
