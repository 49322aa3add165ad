"""The compressed index of the references, for every function that searches by one."""

from __future__ import annotations

from dataclasses import dataclass

from id2core.errors import SearchError
from id2core.runs import codes, leases
from id2core.runs.execution import Execution
from id2core.search import index_building
from id2core.search.coded import CodedReferences
from id2core.settings import Settings
from id2core.store import storage
from id2core.store.datasets import Dataset


@dataclass(frozen=True)
class Indexer:
    """Brings indexes of corpora up to date.

    Attributes:
        settings: index, recall, and memory of a worker.
        execution: who does it.
        beam: Beam's arguments.
    """

    settings: Settings
    execution: Execution
    beam: list[str]

    def make(self, corpus: Dataset, *, anew: bool = False) -> CodedReferences:
        """Give each file of a corpus codes that has none; return both. Safe to repeat.

        Args:
            corpus: embeddings.
            anew: whether a new model is trained, and everything is encoded by it.

        Raises:
            SearchError: the index cannot be built, or finds too few.
            RunInProgressError: another run does this.
            DatasetError: a file is gone or damaged.
        """
        coding = codes.plan(corpus, self.settings.index, self.execution, anew=anew)
        index_building.check(coding, self.settings.shard_bytes)
        with leases.held(coding.place, coding.uri, self.execution):
            coding = codes.plan(corpus, self.settings.index, self.execution, anew=anew)
            if not (coding.is_current and self._finds_enough(coding.beside)):
                from beam_jobs import index

                wanted = index.Wanted(coding, self.settings.index_recall, self.settings.shard_bytes)
                index.run(wanted, self.beam)
        return self.find(corpus)

    def _finds_enough(self, index: Dataset | None) -> bool:
        return index is not None and (codes.facts_of(index).recall_10 or 0) >= self.settings.index_recall

    def find(self, corpus: Dataset) -> CodedReferences:
        """Return a corpus with its index.

        Raises:
            SearchError: it has none, or one that lacks codes.
        """
        index = codes.find(corpus)
        if index is None:
            raise SearchError(
                f"{corpus.uri} has no index: run id2 index --index {self.settings.index} with the --out that "
                "it is in"
            )
        coded = CodedReferences(corpus, index)
        coded.check()
        return coded

    def for_search(self, references: Dataset, out: str) -> CodedReferences:
        """Return references with their codes for a search by a compressed index.

        Args:
            references: embeddings.
            out: of the run. An index of references in it is brought up to date.

        Raises:
            SearchError: see `make` and `find`.
        """
        return self.make(references) if storage.contains(out, references.uri) else self.find(references)
