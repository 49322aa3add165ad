"""Errors as values: why nothing was made of a listed object."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every way in which an object can fail to become an embedding or a translation."""

    EMPTY = "empty"
    TOO_LARGE_FILE = "too_large_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    OVER_BUDGET = "over_budget"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    NOT_ENCODABLE = "not_encodable"
    NO_PROMPT = "no_prompt"
    PROMPT_FAILED = "prompt_failed"
    NOT_TRANSLATABLE = "not_translatable"
    VANISHED = "vanished"
    CHANGED = "changed"
    UNREADABLE = "unreadable_object"
    UNSAFE_MEMBER = "unsafe_member"
    DUPLICATE = "duplicate"
    NOT_ALLOWED = "not_allowed"
    TAKEN_DOWN = "taken_down"


# Faults of the store or of a service, not of the file: the next run tries these objects again.
TRANSIENT = frozenset({Reason.VANISHED, Reason.CHANGED, Reason.UNREADABLE, Reason.PROMPT_FAILED})
# Judgements of settings that may have changed: a run with other settings judges anew.
BY_SETTINGS = frozenset(
    {
        Reason.TOO_LARGE_FILE,
        Reason.TOO_MANY_PIXELS,
        Reason.OVER_BUDGET,
        Reason.NOT_ENCODABLE,
        Reason.NO_PROMPT,
        Reason.NOT_TRANSLATABLE,
        Reason.TAKEN_DOWN,
    }
)


@dataclass(frozen=True)
class Reject:
    """A reason from the closed list and, for a person, the detail behind it."""

    reason: Reason
    detail: str = ""
