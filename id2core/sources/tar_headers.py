"""Headers of tar files of anybody's, read forward; what follows them is skipped.

Written for this and not taken from `tarfile`, which reads extension headers of whatever size into memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final, Protocol

from id2core.sources.base import ShardUnreadableError
from id2core.store.rejects import Reason
from id2core.store.unpacking import Gunzip, UnpackError

BLOCK: Final = 512
# Of a header that holds names, such as PAX; records of such a header; headers of one member. Each is far
# above what archivers write, and each costs time.
_EXTENSION_BYTES: Final = 1 << 20
_PAX_RECORDS: Final = 1000
_MAX_EXTENSIONS: Final = 16
_LEADING_DOTS: Final = re.compile(rb"(?:\./+)+")
_SKIP: Final = 1 << 20
# Writers fill the last record, of 10 KiB by default, with zeros.
_AFTER_END: Final = 1 << 20
_REGULAR: Final = (b"\x00", b"0", b"7")
_FOLDER, _SPARSE = b"5", b"S"
_LONG_NAME = b"L"
_PAX: Final = (b"x", b"X")
# Headers that say something of what follows; the last two are read over.
_EXTENSIONS: Final = (*_PAX, _LONG_NAME, b"K", b"g")
# Types without content, and what they are called.
_EMPTY_TYPES: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
}


class Forward(Protocol):
    """What a tar file is read from."""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end."""

    def skip(self, size: int) -> int:
        """Skip bytes; return how many there were."""


class SeekableFile:
    """A file that skips by seeking."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end."""
        data = self._file.read(size)
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Skip bytes; return how many there were."""
        skipped = min(size, self._size - self._at)
        self._at += skipped
        self._file.seek(self._at)
        return skipped


class GzipFile:
    """A gzip file that skips by reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._gunzip = Gunzip(file)

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end.

        Raises:
            ShardUnreadableError: the file is damaged, cut off, or a bomb.
        """
        try:
            return self._gunzip.read(size)
        except EOFError as error:
            raise ShardUnreadableError(Reason.TRUNCATED, str(error)) from None
        except UnpackError as error:
            raise ShardUnreadableError(Reason.OVER_BUDGET, str(error)) from None

    def skip(self, size: int) -> int:
        """Skip bytes; return how many there were."""
        left = size
        while left and (part := self.read(min(left, _SKIP))):
            left -= len(part)
        return size - left


@dataclass(frozen=True)
class Entry:
    """A member of a tar file.

    Attributes:
        name: as it is there, less a `./` in front.
        offset, size: of its content.
        refusal: what it is instead of a regular file; empty for one.
        content: where it was asked for.
    """

    name: bytes
    offset: int
    size: int
    refusal: str = ""
    content: bytes | None = None


@dataclass
class _Names:
    """What extension headers say of the member that follows."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False
    headers: int = 0


def entries(file: Forward, wants: Callable[[bytes, int], bool]) -> Iterator[Entry]:
    """Yield the members of a tar file, folders left out, each once all its bytes are seen to be there.

    Args:
        file: at its start.
        wants: of a name and a size, whether the content is wanted, too.

    Raises:
        ShardUnreadableError: the file is cut off or damaged from here on.
    """
    at = 0
    names = _Names()
    while True:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ShardUnreadableError(Reason.TRUNCATED, f"no end of the archive: it is cut off at byte {at}")
        if not block.strip(b"\0"):
            return _check_end(file)
        _check_sum(block, at)
        kind, size = block[156:157], _number(block[124:136], at)
        at += BLOCK
        if kind in _EXTENSIONS:
            at += _extend(names, kind, _extension(file, size, at), at)
            continue
        size = _checked(size if names.size is None else names.size, at)
        if kind == _SPARSE:
            at += _sparse_map(file, block)
        size = 0 if kind in _EMPTY_TYPES or kind == _FOLDER else size
        name = _plain(names.name if names.name is not None else _name(block))
        content = file.read(size) if kind in _REGULAR and wants(name, size) else None
        padded = -(-size // BLOCK) * BLOCK
        read = len(content or b"")
        there = read + file.skip(padded - read)
        if there < size:
            raise ShardUnreadableError(
                Reason.TRUNCATED, f"a member claims {size} bytes at byte {at}, where {there} are left"
            )
        if not _is_folder(kind, name):
            yield Entry(name, at, size, _refusal(kind, names), content)
        at, names = at + padded, _Names()


def _check_end(file: Forward) -> None:
    after = file.skip(_AFTER_END + 1)
    if after > _AFTER_END:
        raise ShardUnreadableError(Reason.CORRUPT, f"over {_AFTER_END} bytes after the end of the archive")


def _is_folder(kind: bytes, name: bytes) -> bool:
    return kind == _FOLDER or (kind in _REGULAR and name.endswith(b"/"))


def _refusal(kind: bytes, names: _Names) -> str:
    if kind == _SPARSE or names.is_sparse:
        return "a sparse file"
    if kind in _EMPTY_TYPES:
        return _EMPTY_TYPES[kind]
    return "" if kind in _REGULAR else f"a member of type {kind!r}"


def _check_sum(block: bytes, at: int) -> None:
    total = sum(block) - sum(block[148:156]) + 8 * 32
    written = block[148:156].strip(b" \0").lstrip(b"0")
    if written == b"%o" % total:
        return
    # Some old writers add the bytes up as signed ones.
    signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if written != b"%o" % signed:
        kind = "no tar file: its first header is none" if at == 0 else f"the header at byte {at} is damaged"
        raise ShardUnreadableError(Reason.CORRUPT, kind)


def _number(field: bytes, at: int) -> int:
    """Return a number in octal digits or, after a byte of 0x80, in binary."""
    try:
        number = int.from_bytes(field[1:]) if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        number = -1
    return _checked(number, at)


def _checked(size: int, at: int) -> int:
    if 0 <= size < 1 << 63:
        return size
    raise ShardUnreadableError(Reason.CORRUPT, f"the header at byte {at} has no number, or a negative one")


def _name(block: bytes) -> bytes:
    name, prefix = (field.split(b"\0", 1)[0] for field in (block[:100], block[345:500]))
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _plain(name: bytes) -> bytes:
    dots = _LEADING_DOTS.match(name)
    return name[dots.end() :] if dots else name


def _extension(file: Forward, size: int, at: int) -> bytes:
    if size > _EXTENSION_BYTES:
        raise ShardUnreadableError(Reason.OVER_BUDGET, f"the header at byte {at} has {size} bytes")
    data = file.read(size)
    if len(data) < size or file.skip(-size % BLOCK) < -size % BLOCK:
        raise ShardUnreadableError(Reason.TRUNCATED, f"it is cut off in the header at byte {at}")
    return data


def _extend(names: _Names, kind: bytes, data: bytes, at: int) -> int:
    """Note what an extension header says; return its length with padding."""
    names.headers += 1
    if names.headers > _MAX_EXTENSIONS:
        detail = f"the member at byte {at} has more than {_MAX_EXTENSIONS} headers"
        raise ShardUnreadableError(Reason.OVER_BUDGET, detail)
    if kind == _LONG_NAME:
        names.name = data.rstrip(b"\0")
    elif kind in _PAX:
        for key, value in _pax(data, at):
            if key == b"path":
                names.name = value
            elif key == b"size":
                names.size = int(value) if value.isdigit() and len(value) < 20 else -1
            elif key.startswith(b"GNU.sparse."):
                names.is_sparse = True
    return -(-len(data) // BLOCK) * BLOCK


def _pax(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records `LENGTH KEY=VALUE\\n` of a PAX header."""
    start = records = 0
    while start < len(data) and data[start] != 0:
        records += 1
        if records > _PAX_RECORDS:
            detail = f"the PAX header at byte {at} has more than {_PAX_RECORDS} records"
            raise ShardUnreadableError(Reason.OVER_BUDGET, detail)
        digits, space, _ = data[start : start + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 1 or start + length > len(data) or not (equals and value.endswith(b"\n")):
            raise ShardUnreadableError(Reason.CORRUPT, f"the PAX header at byte {at} is damaged")
        yield key, value[:-1]
        start += length


def _sparse_map(file: Forward, block: bytes) -> int:
    """Skip the blocks that go on with the map of a sparse file; return their length."""
    length, more = 0, block[482:483] != b"\0"
    while more:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ShardUnreadableError(Reason.TRUNCATED, "it is cut off in the map of a sparse file")
        length, more = length + BLOCK, block[504:505] != b"\0"
    return length
