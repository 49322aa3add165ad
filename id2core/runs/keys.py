"""Keys of objects as columns: hashed, cut into partitions, and spilled to disk, so that millions fit.

A key is any number of texts, such as URI and generation, or an image_id. Equal keys are brought together:

    with Keys() as keys:
        keys.add(keys.hash(listed_uris, listed_generations), first=0)
        keys.add(keys.hash(held_uris, held_generations), first=len(listed_uris))
        for groups in keys.groups():  # one partition of the keys after another
            is_held = groups.last >= len(listed_uris)
            ...

Where all keys fit in memory, `row_keys` gives them as one column that sorts and compares.

Names come from whoever uploads, so the hash has a random key: nobody can make two names collide. By chance
two of 10^9 keys are equal with a probability of 10^-21.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Rows in memory before they are spilled, 24 bytes each.
SPILL_ROWS = 2**18
# A partition has the keys with one value of their first byte.
_SHIFT = np.uint64(56)
_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("row", np.int64)])
# A key as a value of a column, and what the keys of this process are hashed with.
KEY = np.dtype("S16")
_SECRET = secrets.token_bytes(32)
# Digits of an image_id, and the value of each character as one of them; 16 if it is none.
_DIGITS = 64
_NIBBLES = np.full(256, 16, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


@dataclass(frozen=True)
class Groups:
    """Rows of one partition, those with equal keys side by side.

    Attributes:
        rows: int64[n], the numbers of rows, ascending within a group.
        starts: int64[g], where each of g groups begins.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64[g]: how many rows each group has."""
        return np.diff(self.starts, append=len(self.rows))

    @cached_property
    def of_row(self) -> NDArray[np.int64]:
        """int64[n]: the group of each row."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    @property
    def first(self) -> NDArray[np.int64]:
        """int64[g]: the least row of each group."""
        return self.rows[self.starts]

    @property
    def last(self) -> NDArray[np.int64]:
        """int64[g]: the greatest row of each group."""
        ends: NDArray[np.int64] = self.starts + self.sizes - 1
        return self.rows[ends]

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        """[g]: the least of each group's values [n]."""
        return np.minimum.reduceat(values, self.starts) if len(values) else values

    def greatest(self, values: NDArray[Any]) -> NDArray[Any]:
        """[g]: the greatest of each group's values [n]."""
        return np.maximum.reduceat(values, self.starts) if len(values) else values

    def total(self, values: NDArray[np.bool_]) -> NDArray[np.int64]:
        """int64[g]: how many of each group's values [n] are true."""
        return np.bincount(self.of_row, values, len(self.starts)).astype(np.int64)


class Keys:
    """Numbered rows with keys. A context manager: at its end what was spilled is removed.

    Args:
        spill_rows: how many rows are in memory before they go to files of the temporary folder.
    """

    def __init__(self, spill_rows: int = SPILL_ROWS) -> None:
        self._secret = secrets.token_bytes(32)
        self._spill_rows = spill_rows
        self._waiting: list[NDArray[Any]] = []
        self._count = 0
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = []
        if self._folder:
            self._folder.cleanup()

    def hash(self, *columns: Sequence[str]) -> NDArray[np.uint64]:
        """Return uint64[n,2]: the keys of n rows, each made of one text of every column."""
        return self.hash_bytes(encode(*columns))

    def hash_bytes(self, texts: Sequence[bytes]) -> NDArray[np.uint64]:
        """Return uint64[n,2]: the keys of n rows that `encode` returned."""
        return np.frombuffer(_digests(texts, self._secret), np.uint64).reshape(-1, 2)

    def hash_ids(self, ids: pa.ChunkedArray) -> NDArray[np.uint64]:
        """Return uint64[n,2]: the keys of image_ids, as fast as memory; of other texts as `hash` does.

        An image_id is a hash already. Sums of its four words, each times a secret odd number, are keys that
        nobody can make collide or choose the partition of.
        """
        texts = pc.cast(ids, pa.large_string()).combine_chunks()
        words, are_ids = _words_of(texts)
        hashes = np.empty((len(texts), 2), np.uint64)
        hashes[are_ids] = words @ self._factors
        if not are_ids.all():
            hashes[~are_ids] = self.hash(texts.filter(pa.array(~are_ids)).to_pylist())
        return hashes

    @cached_property
    def _factors(self) -> NDArray[np.uint64]:
        """uint64[4,2]: what the words of an image_id are multiplied by."""
        return np.frombuffer(secrets.token_bytes(64), np.uint64).reshape(4, 2) | np.uint64(1)

    def add(self, hashes: NDArray[np.uint64], first: int) -> None:
        """Add rows with the numbers `first`, `first` + 1, … and the keys `hashes`."""
        self.add_rows(hashes, np.arange(first, first + len(hashes)))

    def add_rows(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        """Add rows with numbers of their own, int64[n], and the keys `hashes`."""
        rows = np.empty(len(hashes), _ROW)
        rows["high"], rows["low"], rows["row"] = hashes[:, 0], hashes[:, 1], numbers
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= self._spill_rows:
            self._spill()

    def groups(self) -> Iterator[Groups]:
        """Yield all rows, grouped by key, one partition at a time."""
        if self._folder is None:
            if self._count:
                yield _grouped(np.concatenate(self._waiting))
            return
        self._spill()
        for path in sorted(Path(self._folder.name).iterdir()):
            yield _grouped(np.fromfile(path, _ROW))

    def _spill(self) -> None:
        """Append what is in memory to the files of its partitions."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="id2-keys-")
        if not self._count:
            return
        rows = np.concatenate(self._waiting)
        self._waiting, self._count = [], 0
        partitions = (rows["high"] >> _SHIFT).astype(np.uint8)
        rows = rows[np.argsort(partitions, kind="stable")]
        ends = np.cumsum(np.bincount(partitions, minlength=256))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                with Path(self._folder.name, f"{number:02x}").open("ab") as file:
                    file.write(rows[start:end].tobytes())


def encode(*columns: Sequence[str]) -> list[bytes]:
    """Return one text for each row of columns; rows that differ in a column differ."""
    if len(columns) == 1:
        return [text.encode() for text in columns[0]]
    return [
        f"{','.join([str(len(text)) for text in row])}:{''.join(row)}".encode()
        for row in zip(*columns, strict=True)
    ]


def _words_of(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Read texts as numbers of 256 bits.

    Returns:
        uint64[i,4] of the i texts of 64 hexadecimal digits, and bool[n], which of the n texts these are.
    """
    are_ids = pc.equal(pc.binary_length(texts), _DIGITS).to_numpy(zero_copy_only=False)
    chosen = texts if are_ids.all() else texts.filter(pa.array(are_ids))
    if not len(chosen):
        return np.empty((0, 4), np.uint64), are_ids
    start = chosen.offset * _DIGITS if are_ids.all() else 0
    _, _, data = chosen.buffers()
    characters = np.frombuffer(data, np.uint8, len(chosen) * _DIGITS, start).reshape(-1, _DIGITS)
    nibbles = _NIBBLES[characters]
    is_number = nibbles.max(axis=1) < 16
    if not is_number.all():
        are_ids[np.flatnonzero(are_ids)[~is_number]] = False
        nibbles = nibbles[is_number]
    octets = (nibbles[:, ::2] << np.uint8(4)) | nibbles[:, 1::2]
    return octets.view(np.uint64), are_ids


def row_keys(table: pa.Table) -> NDArray[np.bytes_]:
    """Return the keys of a table's rows, each made of all its columns of text: `KEY`[n].

    They compare with other keys of this process only.
    """
    texts = encode(*(column.to_pylist() for column in table.columns))
    return np.frombuffer(_digests(texts, _SECRET), KEY)


def _digests(texts: Iterable[bytes], secret: bytes) -> bytes:
    blake2b = hashlib.blake2b
    return b"".join([blake2b(text, digest_size=16, key=secret).digest() for text in texts])


def _grouped(rows: NDArray[Any]) -> Groups:
    rows = rows[np.lexsort((rows["row"], rows["low"], rows["high"]))]
    high, low = rows["high"], rows["low"]
    begins = np.ones(len(rows), bool)
    begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return Groups(np.ascontiguousarray(rows["row"]), np.flatnonzero(begins))
