"""Classes of a corpus's rows: those with one history have been searched alike, see `ledger`.

Nearly all rows of a segment form one class. Rows of their own class are uploads and pictures that stand, or
once stood, in several segments: a file that was taken away and came back, or the same picture at two places.
A reference picture is searched once, wherever it lies: of its rows the first by segment, then by URI.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.runs.ledger import History, Home, Span, history
from id2core.store import datasets
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord
from id2core.store.schemas import Removal

# The class of a row that is not searched: its picture is, from another row.
UNSEARCHED = -1
# What names an upload, and a reference picture.
OCCURRENCE = ("uri", "generation")
PICTURE = ("image_id",)
_FILES_AHEAD = 8
_KEY = np.dtype("S16")


@dataclass(frozen=True)
class Classes:
    """The classes of a corpus's rows.

    Attributes:
        of_segment: run_id of a segment → the class of its rows that have none of their own.
        histories: of the C classes.
        counts: int64[C], how many uploads or pictures each has.
        in_file: name of a file → the classes of its rows that are searched.
        own: name of a file → (rows, their classes) where these have classes of their own; int32 both.
    """

    of_segment: Mapping[str, int]
    histories: tuple[History, ...]
    counts: NDArray[np.int64]
    in_file: Mapping[str, NDArray[np.int64]]
    own: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int32]]] = field(default_factory=dict)

    def labels(self, file: str, segments: pa.ChunkedArray, first: int = 0) -> NDArray[np.int64]:
        """Return the classes of rows of a file, int64[n]; `UNSEARCHED` for those that are not searched.

        Args:
            file: its name.
            segments: the column `run_id` of the rows.
            first: number of the first of them in the file.
        """
        names = pa.array(list(self.of_segment), pa.string())
        classes = np.append(np.fromiter(self.of_segment.values(), np.int64), UNSEARCHED)
        places = _places(segments, names)
        labels = classes[places]
        rows, own = self.own.get(file, (np.empty(0, np.int32),) * 2)
        inside = (rows >= first) & (rows < first + len(labels))
        labels[rows[inside] - first] = own[inside]
        return np.asarray(labels, np.int64)


def of_uploads(queries: Dataset, span: Span) -> Classes:
    """Return the classes of the uploads of some segments.

    Args:
        queries: an embeddings data set.
        span: first and last number of the segments.
    """
    first, last = span
    segments = datasets.segments_of(queries)
    numbers = {run: s.number for run, s in segments.items() if first <= s.number <= last}
    files = [
        file
        for file in queries.files
        if not numbers.keys().isdisjoint(datasets.segments_in(queries.uri, file))
    ]
    rows = _Rows.read(queries, files, OCCURRENCE, numbers)
    return rows.classes(numbers, _earlier(queries, OCCURRENCE, rows), {})


def of_pictures(references: Dataset) -> Classes:
    """Return the classes of the pictures of a reference corpus.

    Args:
        references: an embeddings data set.
    """
    numbers = _numbers(references)
    rows = _Rows.read(references, references.files, PICTURE, numbers)
    return rows.classes(numbers, _earlier(references, PICTURE, rows), _repeated(references, rows))


def _numbers(dataset: Dataset) -> dict[str, int]:
    return {run: segment.number for run, segment in datasets.segments_of(dataset).items()}


def only(classes: Classes, wanted: NDArray[np.bool_]) -> Classes:
    """Return classes, of which only some are searched: bool[C]."""
    in_file = {name: labels[wanted[labels]] for name, labels in classes.in_file.items()}
    return replace(classes, counts=np.where(wanted, classes.counts, 0), in_file=in_file)


def one_class(dataset: Dataset) -> Classes:
    """Return all rows of a corpus as one class, also rows of the same picture."""
    in_file = {file.name: np.zeros(min(file.rows, 1), np.int64) for file in dataset.files}
    of_segment = dict.fromkeys(datasets.segments_of(dataset), 0)
    return Classes(of_segment, ((),), np.array([dataset.rows]), in_file)


@dataclass(frozen=True)
class _Rows:
    """Rows of a corpus as columns: 28 bytes each.

    Attributes:
        files: in which they are.
        keys: what names an upload or picture, see `row_keys`.
        numbers: int32[n], of their segments; 0 for rows of other segments.
        file, row: int32[n], where they are.
    """

    files: tuple[FileRecord, ...]
    keys: NDArray[np.bytes_]
    numbers: NDArray[np.int32]
    file: NDArray[np.int32]
    row: NDArray[np.int32]

    @staticmethod
    def read(
        dataset: Dataset, files: Iterable[FileRecord], key: tuple[str, ...], numbers: Mapping[str, int]
    ) -> _Rows:
        """Read the rows of some segments."""
        chosen = tuple(files)
        tables = datasets.read_each(dataset.uri, chosen, [*key, "run_id"])
        parts = [_columns(table, key, numbers, i) for i, table in enumerate(tables)]
        empty = (np.empty(0, _KEY), *(np.empty(0, np.int32),) * 3)
        columns = [np.concatenate(column) for column in zip(empty, *parts, strict=True)]
        return _Rows(chosen, *columns)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The order of the keys."""
        return np.argsort(self.keys, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.bytes_]:
        return self.keys[self.order]

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return a row with each key; -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self.keys) - 1)
        return np.where(self._sorted[places] == keys, self.order[places], -1)

    def classes(
        self,
        numbers: Mapping[str, int],
        earlier: Mapping[bytes, list[Home]],
        repeated: Mapping[bytes, list[int]],
    ) -> Classes:
        """Return the classes of the rows.

        Args:
            numbers: run_id of a segment → its number.
            earlier: key → where it stood before it was removed.
            repeated: key that several rows have → these rows, the one that is searched first.
        """
        every = sorted(set(numbers.values()))
        of_number = {number: i for i, number in enumerate(every)}
        histories: dict[History, int] = {(Home(number),): i for number, i in of_number.items()}
        default = np.full(max(every, default=0) + 1, UNSEARCHED, np.int64)
        default[every] = np.arange(len(every))
        labels = default[self.numbers]
        own = np.zeros(len(labels), bool)
        for key in earlier.keys() | repeated.keys():
            rows = repeated.get(key) or [int(self.find(np.array([key], _KEY))[0])]
            homes = [Home(int(self.numbers[row])) for row in rows] + earlier.get(key, [])
            label = histories.setdefault(history(homes), len(histories))
            own[rows] = labels[rows] != UNSEARCHED
            labels[rows[0]] = label
            labels[rows[1:]] = UNSEARCHED
        searched = labels[labels != UNSEARCHED]
        counts = np.bincount(searched, minlength=len(histories)).astype(np.int64)
        in_file, in_own = self._by_file(labels, own)
        of_segment = {run: of_number[number] for run, number in numbers.items()}
        return Classes(of_segment, tuple(histories), counts, in_file, in_own)

    def _by_file(
        self, labels: NDArray[np.int64], own: NDArray[np.bool_]
    ) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[NDArray[np.int32], NDArray[np.int32]]]]:
        """Return the classes in each file, and the rows with classes of their own."""
        edges = np.searchsorted(self.file, np.arange(len(self.files) + 1))
        in_file, in_own = {}, {}
        for file, start, end in zip(self.files, edges[:-1], edges[1:], strict=True):
            within = labels[start:end]
            in_file[file.name] = np.unique(within[within != UNSEARCHED])
            if (marked := np.flatnonzero(own[start:end])).size:
                in_own[file.name] = self.row[start:end][marked], within[marked].astype(np.int32)
        return in_file, in_own


def _earlier(dataset: Dataset, key: tuple[str, ...], rows: _Rows) -> dict[bytes, list[Home]]:
    """Return where uploads or pictures that stand in a corpus stood before, by key: the removal log."""
    homes: dict[bytes, list[Home]] = {}
    numbers = _numbers(dataset)
    place = datasets.removals_of(dataset.uri)
    columns = [*key, "segment", "removed_in", "reason"]
    for table in datasets.read_each(place, dataset.commit.removals, columns):
        # The pairs of what was taken down are gone, too: they have not been searched.
        table = table.filter(pc.not_equal(table["reason"], str(Removal.TAKEN_DOWN)))
        keys = row_keys(table.select(list(key)))
        for i in np.flatnonzero(rows.find(keys) >= 0).tolist():
            if number := numbers.get(table["segment"][i].as_py()):
                home = Home(number, table["removed_in"][i].as_py())
                homes.setdefault(bytes(keys[i]), []).append(home)
    return homes


def _repeated(dataset: Dataset, rows: _Rows) -> dict[bytes, list[int]]:
    """Return the keys that several rows have → these rows, by segment, then by URI."""
    ordered = rows.keys[rows.order]
    equal = ordered[1:] == ordered[:-1]
    several = rows.order[np.union1d(np.flatnonzero(equal), np.flatnonzero(equal) + 1)]
    uris = dict(_uris(dataset, rows, np.sort(several)))
    groups: dict[bytes, list[int]] = {}
    for row in several.tolist():
        groups.setdefault(bytes(rows.keys[row]), []).append(row)
    return {key: sorted(own, key=lambda r: (rows.numbers[r], uris[r])) for key, own in groups.items()}


def _uris(dataset: Dataset, rows: _Rows, wanted: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Yield the rows that are wanted, each with its URI."""
    files = np.unique(rows.file[wanted])
    tables = in_order(files.tolist(), lambda i: dataset.read_file(rows.files[i], ["uri"]), _FILES_AHEAD)
    for file, table in zip(files, tables, strict=True):
        own = wanted[rows.file[wanted] == file]
        yield from zip(own.tolist(), table["uri"].take(pa.array(rows.row[own])).to_pylist(), strict=True)


def _columns(
    table: pa.Table, key: tuple[str, ...], numbers: Mapping[str, int], file: int
) -> tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return keys, segments, file and place of the rows of a file that are of some segments."""
    names = pa.array(list(numbers), pa.string())
    of_name = np.append(np.fromiter(numbers.values(), np.int32, len(numbers)), 0).astype(np.int32)
    segments = of_name[_places(table["run_id"], names)]
    row = np.flatnonzero(segments).astype(np.int32)
    return (
        row_keys(table.take(pa.array(row)).select(list(key))),
        segments[row],
        np.full(len(row), file, np.int32),
        row,
    )


def _places(segments: pa.ChunkedArray, names: pa.Array) -> NDArray[np.integer]:
    """Return the place of each row's segment among names, their number for one of another."""
    places = pc.index_in(pc.fill_null(segments, ""), value_set=names)
    return np.asarray(pc.fill_null(places, len(names)).to_numpy())


def row_keys(table: pa.Table) -> NDArray[np.bytes_]:
    """Return a digest of each row of a table of text: 16 bytes each, which sort and compare."""
    texts = zip(*(column.to_pylist() for column in table.columns), strict=True)
    digests = b"".join(hashlib.blake2b("\0".join(text).encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, _KEY)
