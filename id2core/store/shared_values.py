"""Values that threads of a process share: each is made once, and the least used are forgotten."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class _Slot(Generic[Value]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    values: list[Value] = field(default_factory=list)
    size: int = 0


class SharedValues(Generic[Value]):
    """A bounded store of values by key.

    What is forgotten is not closed: a thread may still use it, and the last one that does lets it go.
    """

    def __init__(self, most: int, size_of: Callable[[Value], int]) -> None:
        """Keep values of together `most` bytes, and always the last one."""
        self._most, self._size_of = most, size_of
        self._slots: OrderedDict[Hashable, _Slot[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; the first thread that asks makes it, and the others wait.

        Where `make` raises, the next one that asks tries again.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if not slot.values:
                slot.values.append(make())
                slot.size = self._size_of(slot.values[0])
            value = slot.values[0]
        self._forget()
        return value

    def _forget(self) -> None:
        with self._lock:
            total = sum(slot.size for slot in self._slots.values())
            while total > self._most and len(self._slots) > 1:
                _, slot = self._slots.popitem(last=False)
                total -= slot.size
