"""Dated places: `{date}` in a URI stands for a night."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from id2core.errors import EmptyPlaceError, OptionError
from id2core.store import storage

# Digits of a year, a month, a day, and a day of the year.
_DIGITS: Final = {"Y": 4, "m": 2, "d": 2, "j": 3}
_DATE = re.compile(r"\{date(?::((?:%[Ymdj]|[^%{}])+))?\}")


def is_dated(uri: str) -> bool:
    """Return whether a URI has a date to fill in."""
    return bool(_DATE.search(uri))


def filled(uri: str, night: date) -> str:
    """Return the URI of a night: `{date}` is its ISO date, `{date:%Y/%m/%d}` another spelling.

    Example:
        >>> filled("gs://inbox/{date:%Y/%m}/{date}", date(2026, 11, 25))
        'gs://inbox/2026/11/2026-11-25'
    """
    return _DATE.sub(lambda match: night.strftime(match[1]) if match[1] else night.isoformat(), uri)


def holds(uri: str, place: str) -> bool:
    """Return whether a place is that of some night of a dated URI, or below one."""
    texts, at = [], 0
    for match in _DATE.finditer(uri):
        texts += [re.escape(uri[at : match.start()]), _digits(match[1] or "%Y-%m-%d")]
        at = match.end()
    return bool(re.match(f"{''.join(texts)}{re.escape(uri[at:])}(/|$)", place, re.DOTALL))


def _digits(form: str) -> str:
    """Return a pattern of the dates that a form gives."""
    return re.sub("%([Ymdj])", lambda match: rf"\d{{{_DIGITS[match[1]]}}}", re.escape(form))


def nights(night: date, late_days: int) -> Iterator[date]:
    """Yield the nights whose places are read for a night, the earliest first: objects come late."""
    first = min(late_days, night.toordinal() - 1)  # the calendar begins with the year 1
    for days in range(first, -1, -1):
        yield night - timedelta(days=days)


def today(time_zone: str, now: datetime | None = None) -> date:
    """Return the date of a moment in a time zone; by default that of now.

    Raises:
        OptionError: there is no such time zone.
    """
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise OptionError(f"time_zone is {time_zone!r}: give a name such as UTC or Europe/Berlin") from error
    return (now or datetime.now(UTC)).astimezone(zone).date()


def fixed_part(uri: str) -> str:
    """Return the folder or bucket of a dated URI that is the same every night."""
    dated = _DATE.search(uri)
    return uri[: dated.start() if dated else len(uri)].rpartition("/")[0] or "/"


def require(place: str) -> None:
    """Raise StorageError unless a folder exists, or the bucket of a prefix: a disk may not be mounted."""
    if storage.is_remote(place):
        bucket = "/".join(place.split("/", 3)[:3])
        with suppress(EmptyPlaceError):
            next(storage.walk(bucket), None)
    else:
        storage.require(place)
