"""The result of a search, as jobs pass it on."""

from __future__ import annotations

from dataclasses import dataclass, field

from id2core.store.datasets import Dataset


@dataclass(frozen=True)
class SearchResult:
    """The matches of a search, and counts.

    Attributes:
        dataset: the matches of this work alone.
        run_id: the run that wrote them: this one, or an earlier one with the same work.
        plan_id: names the work by its content.
        queries: how many were searched.
        matches: how many rows they have.
        index_id: names the index over the references.
        corpus: how many references there are.
        resumed: True when an earlier run had done the work.
    """

    dataset: Dataset = field(compare=False)
    run_id: str
    plan_id: str
    queries: int
    matches: int
    index_id: str
    corpus: int
    resumed: bool
