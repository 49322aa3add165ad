"""The ledger: which uploads have been scored against which references, over any number of runs.

A corpus grows by segments, which are numbered in the order in which they were committed. An event of the
ledger says that a search has scored every upload of some query segments with every picture of some reference
segments, of those that stood in the corpus at a certain version of its commit. Rows disappear from segments,
and what they held may come back in a later one. So whether a pair has been scored follows from the events and
from the histories of both sides:

    Event(queries=(1, 3), references=(1, 5), query_version=4, reference_version=7, …)
    [Home(2)]                    an upload that was added with segment 2 and still stands there
    [Home(1, removed_in=6)]      a reference that the commit of version 6 no longer had
    [Home(1, 6), Home(9)]        the same picture after segment 9 has brought it back

The events stand in the commit of `matches/`, beside the files that they account for: a search is recorded if
and only if its matches are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from id2core.store import schemas
from id2core.store.datasets import Commit

# First and last number of segments that follow each other.
Span = tuple[int, int]
EVENTS = "searched"
# The id of the views of a search of whole uploads alone.
WHOLE_ONLY = "none"


class Event(BaseModel):
    """One search that was committed.

    Attributes:
        queries, references: which segments, by number.
        query_segment, reference_segment: run_ids of the last of them, which tell the corpora from others
            with the same numbers; empty where there is none, or an earlier version wrote the event.
        query_version, reference_version: versions of the commits of `embeddings/` that were searched.
        pairs: how many pairs it scored.
        ids: `schemas.ROW_IDS` of the descriptors.
        index_id: by which index.
        top_k: matches kept per upload.
        floor: least score of a stored pair; None where all were stored.
        calibration_id: of the verdicts; None for none.
        views: id of the views under which uploads were looked at; `none` for whole uploads alone.
        searched_at: when it was committed; None before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: Span
    references: Span
    query_segment: str = ""
    reference_segment: str = ""
    query_version: int = Field(ge=0)
    reference_version: int = Field(ge=0)
    pairs: int = Field(ge=0)
    ids: dict[str, str]
    index_id: str
    top_k: int = Field(ge=1)
    floor: float | None = Field(None, allow_inf_nan=False)
    calibration_id: str | None = None
    views: str = WHOLE_ONLY
    searched_at: datetime | None = None

    @property
    def index_kind(self) -> str:
        """The index by its name or string, without what it was over."""
        return self.index_id.rpartition("-")[0].partition("@")[0]

    def same_as(self, other: Event) -> bool:
        """Return whether two events are of the same search, whenever it was committed."""
        return self.model_copy(update={"searched_at": other.searched_at}) == other


class _Searched(BaseModel):
    """The part of a run's counts that the ledger reads."""

    searched: tuple[Event, ...] = ()


@dataclass(frozen=True, order=True)
class Home:
    """A segment in which a row stands or stood.

    Attributes:
        number: of the segment.
        removed_in: version of the first commit without the row; None while it stands.
    """

    number: int
    removed_in: int | None = None


# Where the rows of a class stand and stood.
History = tuple[Home, ...]


def history(homes: Iterable[Home]) -> History:
    """Return homes as a history: one for each segment, the longest."""
    longest: dict[int, Home] = {}
    for home in homes:
        known = longest.get(home.number)
        if known is None or (known.removed_in is not None and _outlasts(home, known.removed_in)):
            longest[home.number] = home
    return tuple(longest[number] for number in sorted(longest))


def _outlasts(home: Home, version: int) -> bool:
    return home.removed_in is None or home.removed_in > version


def events(commit: Commit, ids: Mapping[str, str] | None = None) -> list[Event]:
    """Return what was searched, in the order of the runs.

    Args:
        commit: of `matches/`.
        ids: only with descriptors of these `schemas.ROW_IDS`; by default of any.

    Raises:
        DatasetError: an event in it is damaged.
    """
    wanted = ids and {name: ids[name] for name in schemas.ROW_IDS}
    every = (event for run_id in commit.runs for event in events_of(commit, run_id))
    return [event for event in every if wanted is None or event.ids == wanted]


def events_of(commit: Commit, run_id: str) -> tuple[Event, ...]:
    """Return the events of one run."""
    return commit.counts_of(run_id, _Searched).searched


def covered(
    searched: Iterable[Event], queries: Sequence[History], references: Sequence[History]
) -> NDArray[np.bool_]:
    """Return which classes of uploads have been scored against which classes of references.

    Args:
        searched: events of one set of ids.
        queries: histories of Q classes of uploads.
        references: histories of R classes of reference pictures.

    Returns:
        bool[Q,R].
    """
    scored = np.zeros((len(queries), len(references)), bool)
    asked, held = _Presence(queries), _Presence(references)
    for event in searched:
        rows = asked.at(event.queries, event.query_version)
        # Nearly all classes follow each other: a span of cells is set much faster than single ones.
        for columns in _runs(held.at(event.references, event.reference_version)):
            scored[rows, columns] = True
    return scored


def met(searched: Iterable[Event], queries: Iterable[int], references: Iterable[int]) -> NDArray[np.bool_]:
    """Return which query segments, by number, have met which reference segments: bool[Q,R]."""
    asked, held = ([(Home(number),) for number in side] for side in (queries, references))
    return covered(searched, asked, held)


def _runs(numbers: NDArray[np.int64]) -> Iterator[slice]:
    """Yield the runs of numbers that follow each other, of some that ascend."""
    edges = np.flatnonzero(np.diff(numbers) > 1) + 1
    for run in np.split(numbers, edges) if len(numbers) else ():
        yield slice(int(run[0]), int(run[-1]) + 1)


class _Presence:
    """Classes by the homes that they have, as columns."""

    def __init__(self, histories: Sequence[History]) -> None:
        homes = [(row, home) for row, homes in enumerate(histories) for home in homes]
        forever = np.iinfo(np.int64).max
        self._rows = np.array([row for row, _ in homes], np.int64)
        self._numbers = np.array([home.number for _, home in homes], np.int64)
        ends = [forever if home.removed_in is None else home.removed_in for _, home in homes]
        self._ends = np.array(ends, np.int64)

    def at(self, span: Span, version: int) -> NDArray[np.int64]:
        """Return the classes that had a row in some segments at a version of the commit."""
        first, last = span
        inside = (self._numbers >= first) & (self._numbers <= last) & (self._ends > version)
        return np.unique(self._rows[inside])
