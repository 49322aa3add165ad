"""Hold signals back where an exception would break what is being called.

Python runs a handler between any two instructions of the main thread. If it raises within gRPC, a channel may
never close, and the process never ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_HELD: Final = (signal.SIGINT, signal.SIGTERM)
_current: Held | None = None


class Held:
    """A signal that has come while signals are held back."""

    def __init__(self) -> None:
        # Signals without a handler of Python end the process, or are ignored.
        self._handlers = {number: h for number in _HELD if callable(h := signal.getsignal(number))}
        self._came: tuple[int, FrameType | None] | None = None

    @property
    def has_come(self) -> bool:
        """Whether a signal is kept."""
        return self._came is not None

    def deliver(self) -> None:
        """Call the handler of the signal that has come, if one has; it may raise."""
        if self._came:
            (number, frame), self._came = self._came, None
            self._handle(number, frame)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Keep a signal. A second one is handled at once: someone does not want to wait."""
        if self._came:
            self._handle(number, frame)
        self._came = number, frame

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handlers[signal.Signals(number)](number, frame)

    def install(self) -> None:
        """Take each signal that has a handler of Python."""
        for number in self._handlers:
            signal.signal(number, self.take)

    def restore(self) -> None:
        """Give the signals back to their handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[Held]:
    """In the block, keep Ctrl-C and SIGTERM until `deliver` is called, or the block ends.

    A block within a block yields what the outer one does. In another thread than the main one, there is
    nothing to hold: handlers do not run there.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield Held()
        return
    if _current:
        yield _current
        return
    _current = signals = Held()
    signals.install()
    try:
        yield signals
    finally:
        _current = None
        signals.restore()
        signals.deliver()
