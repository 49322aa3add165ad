"""Which names were there before: 64 bits each, so that ten million take 270 MB."""

from __future__ import annotations

import hashlib
from array import array

_FIRST_SIZE = 1 << 10
# Above this share of used slots, look-ups become long.
_FILL = 0.66


class Seen:
    """A set of texts by their hashes, in an open table.

    Two of ten million texts share a hash with a probability of 3 in a million; the second would be taken for
    a duplicate. The hash is always the same one, so a listing is, too.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SIZE))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Add a text; return whether it is new."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") or 1  # 0 is an empty slot
        if not self._put(number):
            return False
        self._count += 1
        if self._count > _FILL * len(self._slots):
            self._grow()
        return True

    def _put(self, number: int) -> bool:
        slots = self._slots
        mask = len(slots) - 1
        at = number & mask
        while held := slots[at]:
            if held == number:
                return False
            at = (at + 1) & mask
        slots[at] = number
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for number in old:
            if number:
                self._put(number)
