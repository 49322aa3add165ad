"""Kinds of sources by the prefix that spells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Final

from id2core.sources import dates
from id2core.sources.base import Mode, Source
from id2core.sources.folders import FolderSource
from id2core.sources.lists import ListSource
from id2core.sources.parquets import ParquetSource
from id2core.sources.tars import TarSource
from id2core.store import storage

# A new kind is a module with its `Source` and a row here; a new container also a reader in `store.members`.
KINDS: Final[tuple[type[Source], ...]] = (TarSource, ParquetSource, ListSource)


def parse(text: str, mode: Mode = Mode.MIRROR, allowed_places: Sequence[str] = ()) -> Source:
    """Return the source that a text spells: `tar:PLACE`, `parquet:PLACE`, `list:FILE`, or a plain place.

    Args:
        text: as a user writes it. A folder whose name begins like a prefix is written `./tar:x`.
        mode: what happens to rows that the source no longer lists.
        allowed_places: folders and prefixes that a list may name beside its own.

    Raises:
        StorageError: the place has no possible name.

    Example:
        >>> parse("tar:gs://inbox/{date}").uri
        'tar:gs://inbox/{date}'
    """
    kind = next((kind for kind in KINDS if text.startswith(kind.PREFIX)), FolderSource)
    place = storage.normalize(text.removeprefix(kind.PREFIX))
    return kind(place, Mode(mode), tuple(storage.normalize(allowed) for allowed in allowed_places))


def expand(source: Source, night: date, late_days: int) -> Iterator[Source]:
    """Yield the sources of a night: of a dated one those of the late days before it, too, the earliest first.

    Args:
        source: any; one that is not dated is yielded as it is.
        night: see `dates.today` for the one in a time zone.
        late_days: days before the night whose places are read again.
    """
    if not source.is_dated:
        yield source
        return
    within = dates.fixed_part(source.place)
    for day in dates.nights(night, late_days):
        yield replace(source, place=dates.filled(source.place, day), within=within)
