"""What a search has to do: which uploads and reference pictures no search has brought together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from id2core.runs import histories, ledger
from id2core.runs.histories import Classes
from id2core.runs.ledger import Event, Span
from id2core.store import datasets
from id2core.store.datasets import Dataset, FileRecord


@dataclass(frozen=True)
class Scope:
    """The pairs of a search, by classes of both sides.

    Attributes:
        span: first and last number of the query segments.
        queries, references: classes of the rows.
        open: bool[Q,R], which classes of uploads are to meet which classes of pictures.
    """

    span: Span
    queries: Classes
    references: Classes
    open: NDArray[np.bool_]

    @property
    def pairs(self) -> int:
        """How many pairs are to be scored."""
        return int(self.queries.counts @ self.open @ self.references.counts)

    @property
    def uploads(self) -> int:
        """How many uploads have a pair to score."""
        return int(self.queries.counts @ self.open.any(axis=1))

    def depth(self, top_k: int) -> NDArray[np.int64]:
        """Return how many matches an upload of each class has at most, int64[Q]."""
        return np.minimum(self.open @ self.references.counts, top_k)

    def meet(self, queries: FileRecord, classes: Sequence[int]) -> bool:
        """Return whether a file has an upload that is to meet pictures of some classes."""
        return bool(self.open[np.ix_(self.queries.in_file[queries.name], np.asarray(classes))].any())

    def query_files(self, queries: Dataset) -> list[FileRecord]:
        """Return the files with uploads of the scope."""
        return [file for file in queries.files if len(self.queries.in_file.get(file.name, ()))]

    def reference_files(self, references: Dataset) -> list[FileRecord]:
        """Return the files with pictures that are to be searched."""
        wanted = np.flatnonzero(self.open.any(axis=0))
        in_file = self.references.in_file
        return [file for file in references.files if np.isin(in_file[file.name], wanted).any()]


def find(references: Dataset, queries: Dataset, events: list[Event], span: Span) -> Scope | None:
    """Return what is left to do for the uploads of some segments; None where nothing is.

    Args:
        references, queries: embeddings data sets.
        events: of the ledger, with the ids of these data sets.
        span: first and last number of the query segments.
    """
    if not (segments := open_segments(references, queries, events, span)):
        return None
    asked, held = histories.of_uploads(queries, segments), _pictures(references)
    open_pairs = ~ledger.covered(events, asked.histories, held.histories)
    return Scope(span, asked, held, open_pairs) if open_pairs.any() else None


# The classes of the last corpus: searches of one run have the same references.
_LAST: dict[tuple[str, ...], Classes] = {}


def _pictures(references: Dataset) -> Classes:
    commit = references.commit  # the files count, too: a copy may have been put back in its place
    names = (file.name for file in (*commit.files, *commit.removals))
    key = references.uri, str(commit.version), datasets.digest_of(*names)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = histories.of_pictures(references)
    return _LAST[key]


def every_row(references: Dataset, queries: Dataset, segments: Iterable[str]) -> Scope | None:
    """Return all pairs of the uploads of some segments with the rows of a corpus; None where there are none.

    Rows count one by one here, also of a picture that has several.

    Args:
        references, queries: embeddings data sets.
        segments: run_ids of the query segments.
    """
    known = datasets.segments_of(queries)
    chosen = {name: known[name].number for name in segments}
    if not chosen:
        return None
    span = min(chosen.values()), max(chosen.values())
    asked = histories.of_uploads(queries, chosen.values())
    every = np.ones((len(asked.histories), 1), bool)
    return Scope(span, asked, histories.one_class(references), every)


def whole(dataset: Dataset) -> Span:
    """Return the span of all segments of a corpus; (1, 0) for an empty one."""
    numbers = [segment.number for segment in datasets.segments_of(dataset).values()]
    return (min(numbers), max(numbers)) if numbers else (1, 0)


def by_references(
    labels: NDArray[np.int64], columns: NDArray[np.int64], is_open: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Group uploads by the reference rows that they are to meet.

    Args:
        labels: int64[n], classes of uploads.
        columns: int64[N], classes of reference rows.
        is_open: bool[Q,R], see `Scope`.

    Yields:
        Rows of uploads and the rows of references that all of them meet, both int64 and not empty.
    """
    searched = np.flatnonzero(columns != histories.UNSEARCHED)
    groups: dict[bytes, list[int]] = {}
    for label in np.unique(labels[labels != histories.UNSEARCHED]).tolist():
        groups.setdefault(is_open[label].tobytes(), []).append(label)
    for classes in groups.values():
        rows = searched[is_open[classes[0]][columns[searched]]]
        if len(rows):
            yield np.flatnonzero(np.isin(labels, classes)), rows


def open_segments(references: Dataset, queries: Dataset, events: Iterable[Event], span: Span) -> list[int]:
    """Return the query segments that some reference segment has not met, without a look at any row.

    A row has met whatever its segment has met: one that stood elsewhere before may only have met more.

    Args:
        references, queries: embeddings data sets.
        events: of the ledger, with the ids of these data sets.
        span: first and last number of the query segments.
    """
    asked = sorted(number for number in datasets.segment_names(queries) if span[0] <= number <= span[1])
    met = ledger.met(events, asked, datasets.segment_names(references))
    return [number for number, row in zip(asked, met, strict=True) if not row.all()]
