"""The result of a search, as jobs pass it on."""

from __future__ import annotations

from dataclasses import dataclass, field

from id2core.store.datasets import Dataset, FileRecord


@dataclass(frozen=True)
class SearchResult:
    """The matches of a search, and counts.

    Attributes:
        dataset: the matches of all runs.
        files: those that this search added.
        run_id: the last run that searched: this one, or an earlier one where nothing was left to do.
        queries: uploads of the corpus.
        searched: uploads that this search compared.
        matches: rows that this search added.
        pairs: pairs that it scored.
        index_id: names the index over the references.
        corpus: rows of the references.
        resumed: True when nothing was left to do.
    """

    dataset: Dataset = field(compare=False)
    files: tuple[FileRecord, ...] = field(compare=False)
    run_id: str
    queries: int
    searched: int
    matches: int
    pairs: int
    index_id: str
    corpus: int
    resumed: bool
