"""Errors as values: why a listed object has no embedding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every way in which an object can fail to become an embedding."""

    EMPTY = "empty"
    TOO_LARGE_FILE = "too_large_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    NOT_ENCODABLE = "not_encodable"
    VANISHED = "vanished"
    CHANGED = "changed"
    UNREADABLE = "unreadable_object"


# Faults of the store, not of the file: the next run tries these objects again.
TRANSIENT = frozenset({Reason.VANISHED, Reason.CHANGED, Reason.UNREADABLE})
# Judgements of settings that may have changed: a run with other settings judges anew.
BY_SETTINGS = frozenset({Reason.TOO_LARGE_FILE, Reason.TOO_MANY_PIXELS, Reason.NOT_ENCODABLE})


@dataclass(frozen=True)
class Reject:
    """A reason from the closed list and, for a person, the detail behind it."""

    reason: Reason
    detail: str = ""
