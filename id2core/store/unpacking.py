"""Gzip under a budget: read forward once, or unpacked to a temporary file whose ranges threads read."""

from __future__ import annotations

import os
import tempfile
import zlib
from typing import IO, Final

from id2core.store.base import Object, Store
from id2core.store.shared_values import SharedValues

# What one file may become. Shards of pictures are far below: they do not shrink.
UNPACKED_BYTES: Final = 4 << 30
# Headers of a tar file shrink by less; what shrinks by more, and is not small, is a bomb.
RATIO, RATIO_FROM = 200, 64 << 20
_STEP: Final = 1 << 16
_GZIP = 31  # zlib's number for the format


class UnpackError(Exception):
    """A gzip file is damaged, or unpacks to more than it may."""


class Gunzip:
    """A gzip file, also of several members, read forward.

    It is unpacked in steps of one size, so that what comes before an error is the same at every reading.
    """

    def __init__(self, file: IO[bytes], most: int = UNPACKED_BYTES) -> None:
        self._file, self._most = file, most
        self._inflate = zlib.decompressobj(_GZIP)
        self._packed = self._ready = b""
        self._read = self._made = 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end.

        Raises:
            EOFError: the file is cut off.
            UnpackError: it is damaged, or too much.
        """
        parts: list[bytes] = []
        while size > 0 and (part := self.read_some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def read_some(self, size: int) -> bytes:
        """Return what is ready, up to `size` bytes; none only at the end. Raises what `read` does."""
        if not self._ready:
            self._ready = self._unpack()
        part, self._ready = self._ready[:size], self._ready[size:]
        return part

    def _unpack(self) -> bytes:
        while True:
            if self._inflate.eof and not self._begin_member():
                return b""
            if not self._packed:
                self._packed = self._file.read(_STEP)
                self._read += len(self._packed)
                if not self._packed:
                    raise EOFError("the gzip file is cut off")
            try:
                part = self._inflate.decompress(self._packed, _STEP)
            except zlib.error as error:
                raise UnpackError(f"the gzip file is damaged: {error}") from None
            self._packed = self._inflate.unconsumed_tail
            if part:
                self._made += len(part)
                self._check_budget()
                return part

    def _begin_member(self) -> bool:
        """Go on behind a member; padding of zeros is none."""
        packed = self._inflate.unused_data.lstrip(b"\0")
        while not packed:
            more = self._file.read(_STEP)
            if not more:
                return False
            self._read += len(more)
            packed = more.lstrip(b"\0")
        self._inflate, self._packed = zlib.decompressobj(_GZIP), packed
        return True

    def _check_budget(self) -> None:
        if self._made > self._most:
            raise UnpackError(f"the gzip file unpacks to more than {self._most} bytes")
        if self._made > RATIO_FROM and self._made > RATIO * self._read:
            raise UnpackError(f"the gzip file unpacks to more than {RATIO} times its size")


class _Unpacked:
    """A temporary file without a name: it is gone when the last thread lets it go, or the process ends."""

    def __init__(self, store: Store, shard: Object) -> None:
        self._file = tempfile.TemporaryFile(prefix="id2-unpacked-")  # noqa: SIM115 (it outlives this call)
        with store.open_version(shard) as packed:
            unpacking = Gunzip(packed)
            try:
                while part := unpacking.read_some(_STEP):
                    self._file.write(part)
            except (EOFError, UnpackError):
                pass  # the listing has said so, and names only what comes before
        self._file.flush()
        self.size = self._file.tell()

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, start)


_FILES: Final = SharedValues[_Unpacked](UNPACKED_BYTES, lambda file: file.size)


def read_range(store: Store, shard: Object, start: int, size: int) -> bytes:
    """Return a range of what a gzip file unpacks to; it is unpacked once in a process."""
    key = shard.uri, shard.generation
    return _FILES.get(key, lambda: _Unpacked(store, shard)).read(start, size)
