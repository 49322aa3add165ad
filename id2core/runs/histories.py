"""Classes of a corpus's rows: those with one history have been searched alike, see `ledger`.

Nearly all rows of a segment form one class. Rows of their own class are uploads and pictures that stand, or
once stood, in several segments: a file that was taken away and came back, or the same picture at two places.
A reference picture is searched once, wherever it lies: of its rows the first by segment, then by URI.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.runs.keys import Groups, Keys
from id2core.runs.ledger import History, Home, history
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
# Among the keys, the number of a row is its segment, and its place among the rows of all files. So equal keys
# come in the order of segments. The number of a row of the log is greater: its segment, and the version
# without it.
_SHIFT: Final = 38
_PLACE: Final = (1 << _SHIFT) - 1
_LOGGED: Final = 1 << 62


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


def of_uploads(queries: Dataset, segments: Collection[int]) -> Classes:
    """Return the classes of the uploads of some segments.

    Args:
        queries: an embeddings data set.
        segments: their numbers.
    """
    wanted = set(segments)
    numbers = {run: number for run, number in _numbers(queries).items() if number in wanted}
    files = [
        file
        for file in queries.files
        if not numbers.keys().isdisjoint(datasets.segments_in(queries.uri, file))
    ]
    return _classes(queries, files, OCCURRENCE, numbers)


def of_pictures(references: Dataset) -> Classes:
    """Return the classes of the pictures of a reference corpus.

    Args:
        references: an embeddings data set.
    """
    return _classes(references, references.files, PICTURE, _numbers(references))


def _numbers(dataset: Dataset) -> dict[str, int]:
    return {run: segment.number for run, segment in datasets.segments_of(dataset).items()}


def one_class(dataset: Dataset) -> Classes:
    """Return all rows of a corpus as one class, also rows of the same picture."""
    in_file = {file.name: np.zeros(min(file.rows, 1), np.int64) for file in dataset.files}
    of_segment = dict.fromkeys(datasets.segments_of(dataset), 0)
    return Classes(of_segment, ((),), np.array([dataset.rows]), in_file)


def _classes(
    dataset: Dataset, files: Sequence[FileRecord], key: tuple[str, ...], numbers: Mapping[str, int]
) -> Classes:
    """Return the classes of the rows of some segments.

    Args:
        dataset: the corpus.
        files: those with rows of the segments.
        key: columns that name an upload or a picture.
        numbers: run_id of a segment → its number.
    """
    starts = np.cumsum([0, *(file.rows for file in files)])
    of_number = {number: label for label, number in enumerate(sorted(set(numbers.values())))}
    known: dict[History, int] = {(Home(number),): label for number, label in of_number.items()}
    with Keys() as index:
        tables = datasets.read_each(dataset.uri, files, [*key, "run_id"])
        held = [
            _add_rows(index, table, key, numbers, start)
            for start, table in zip(starts[:-1].tolist(), tables, strict=True)
        ]
        _add_log(index, dataset, files, key)
        own = _Own.join([_Own.of(groups, known) for groups in index.groups()])
    rows, labels = own.settled(lambda places: _uris(dataset, files, starts, places))
    edges = np.searchsorted(rows & _PLACE, starts)
    counts = np.zeros(len(known), np.int64)
    in_file, in_own = {}, {}
    for i, (file, (segments, count)) in enumerate(zip(files, held, strict=True)):
        marked, marks = rows[edges[i] : edges[i + 1]], labels[edges[i] : edges[i + 1]]
        usual = count - np.bincount(np.searchsorted(segments, marked >> _SHIFT), minlength=len(count))
        classes = np.array([of_number[number] for number in segments.tolist()], np.int64)
        searched = marks[marks != UNSEARCHED]
        counts[classes] += usual
        counts += np.bincount(searched, minlength=len(counts))
        in_file[file.name] = np.union1d(classes[usual > 0], searched)
        if len(marked):
            in_own[file.name] = ((marked & _PLACE) - starts[i]).astype(np.int32), marks.astype(np.int32)
    of_segment = {run: of_number[number] for run, number in numbers.items()}
    return Classes(of_segment, tuple(known), counts, in_file, in_own)


def _add_rows(
    index: Keys, table: pa.Table, key: tuple[str, ...], numbers: Mapping[str, int], start: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add the rows of a file that are of some segments; return the segments, and how many rows of each."""
    segments = _segments(table["run_id"], numbers)
    rows = np.flatnonzero(segments)
    chosen = table.take(pa.array(rows)) if len(rows) < table.num_rows else table
    hashes = _hashed(index, chosen, key)
    index.add_rows(hashes, (segments[rows] << _SHIFT) + start + rows)
    return np.unique(segments[rows], return_counts=True)


def _hashed(index: Keys, table: pa.Table, key: tuple[str, ...]) -> NDArray[np.uint64]:
    if key == PICTURE:
        return index.hash_ids(table["image_id"])
    return index.hash(*(table[name].to_pylist() for name in key))


def _add_log(index: Keys, dataset: Dataset, files: Sequence[FileRecord], key: tuple[str, ...]) -> None:
    """Add where the uploads or pictures of some files may have stood before: the removal log."""
    numbers = _numbers(dataset)
    log = dataset.commit.removals
    if key == OCCURRENCE:  # a picture may come back with another URI
        log = tuple(r for r in log if not r.bounds or any(f.may_hold(*r.bounds) for f in files))
    columns = [*key, "segment", "removed_in", "reason"]
    for table in datasets.read_each(datasets.removals_of(dataset.uri), log, columns):
        # The pairs of what was taken down are gone, too: they have not been searched.
        table = table.filter(pc.not_equal(table["reason"], str(Removal.TAKEN_DOWN)))
        segments = _segments(table["segment"], numbers)
        rows = np.flatnonzero(segments)
        table = table.take(pa.array(rows))
        versions = table["removed_in"].to_numpy().astype(np.int64)
        hashes = _hashed(index, table, key)
        index.add_rows(hashes, _LOGGED + (segments[rows] << _SHIFT) + versions)


@dataclass(frozen=True)
class _Own:
    """Rows with classes of their own.

    Attributes:
        rows: int64[n], as they are numbered among the keys.
        labels: int64[n], their classes.
        ties: int64[n], 0 or what names the picture of which several rows are of its first segment: the first
            of them by URI has the class, and the others are not searched.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    ties: NDArray[np.int64]

    @staticmethod
    def of(groups: Groups, known: dict[History, int]) -> _Own:
        """Return those of one partition; add their histories to the known ones."""
        stands = groups.rows[groups.starts] < _LOGGED
        several = stands & (groups.sizes > 1)
        flat = groups.rows[several[groups.of_row]].tolist()
        rows, labels, ties = [], [], []
        start = 0
        for size in groups.sizes[several].tolist():
            every = flat[start : start + size]
            start += size
            standing = [row for row in every if row < _LOGGED]
            homes = [Home(row >> _SHIFT) for row in standing]
            homes += [Home((row - _LOGGED) >> _SHIFT, row & _PLACE) for row in every[len(standing) :]]
            label = known.setdefault(history(homes), len(known))
            first = sum(home.number == homes[0].number for home in homes[: len(standing)])
            rows += standing
            labels += [label] * first + [UNSEARCHED] * (len(standing) - first)
            ties += ([standing[0]] * first if first > 1 else [0]) + [0] * (len(standing) - max(first, 1))
        return _Own(*(np.array(column, np.int64) for column in (rows, labels, ties)))

    @staticmethod
    def join(parts: Sequence[_Own]) -> _Own:
        """Return the rows of all partitions in the order of their places."""
        nothing = np.empty(0, np.int64)
        columns = [
            np.concatenate([nothing, *(getattr(part, name) for part in parts)])
            for name in ("rows", "labels", "ties")
        ]
        order = np.argsort(columns[0] & _PLACE)
        return _Own(*(column[order] for column in columns))

    def settled(
        self, uris: Callable[[NDArray[np.int64]], Iterator[str]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and classes once URIs have decided between rows of one segment.

        Args:
            uris: gives those of places, which ascend.
        """
        labels = self.labels.copy()
        tied = np.flatnonzero(self.ties)
        first: dict[int, tuple[str, int]] = {}
        for i, uri in zip(tied.tolist(), uris(self.rows[tied] & _PLACE), strict=True):
            picture = int(self.ties[i])
            first[picture] = min(first.get(picture, (uri, i)), (uri, i))
        losers = np.setdiff1d(tied, [i for _, i in first.values()])
        labels[losers] = UNSEARCHED
        return self.rows, labels


def _uris(
    dataset: Dataset, files: Sequence[FileRecord], starts: NDArray[np.int64], places: NDArray[np.int64]
) -> Iterator[str]:
    """Yield the URIs of rows, which ascend."""
    edges = np.searchsorted(places, starts)
    chosen = np.flatnonzero(np.diff(edges))
    tables = in_order(chosen.tolist(), lambda i: dataset.read_file(files[i], ["uri"]), _FILES_AHEAD)
    for i, table in zip(chosen.tolist(), tables, strict=True):
        rows = places[edges[i] : edges[i + 1]] - starts[i]
        yield from table["uri"].take(pa.array(rows)).to_pylist()


def _segments(run_ids: pa.ChunkedArray, numbers: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the number of each row's segment, int64[n]; 0 for one of another."""
    of_place = np.array([*numbers.values(), 0], np.int64)
    return np.asarray(of_place[_places(run_ids, pa.array(list(numbers), pa.string()))])


def _places(segments: pa.ChunkedArray, names: pa.Array) -> NDArray[np.integer]:
    """Return the place of each row's segment among names, their number for one of another."""
    places = pc.index_in(pc.fill_null(segments, ""), value_set=names)
    return np.asarray(pc.fill_null(places, len(names)).to_numpy())
