"""The compressed index of the references, for every function that searches by one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from id2core.encoders.embed_job import EmbedJob
from id2core.errors import RecallError, SearchError
from id2core.runs import codes, leases
from id2core.runs.codes import Coding
from id2core.runs.execution import Execution
from id2core.search import index_building, index_strings, indexes
from id2core.search.coded import CodedReferences
from id2core.settings import Settings
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset

_log = logging.getLogger("id2")


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
                self._run(coding)
        return self.find(corpus)

    def _run(self, coding: Coding) -> None:
        """Make an index; train a new model where that of earlier references finds too little by now."""
        from beam_jobs import index

        wanted = index.Wanted(coding, self.settings.index_recall, self.settings.shard_bytes)
        try:
            index.run(wanted, self.beam)
        except RecallError as error:
            if coding.model is None:
                raise
            _log.warning("%s. A new model is trained", error)
            anew = codes.plan(coding.corpus, coding.index, self.execution, anew=True)
            index_building.check(anew, self.settings.shard_bytes)
            index.run(replace(wanted, coding=anew), self.beam)

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


def preflight(settings: Settings, references: Dataset | None, out: str) -> None:
    """Refuse what a search by an index would refuse, as far as it is known before anything is embedded.

    Args:
        settings: of the run.
        references: embeddings; None where images are embedded into `out`. How many there will be is not known
            then.
        out: of the run.

    Raises:
        SearchError: descriptors do not fit the index, training takes too much memory, or given references
            are too few or have no index that is up to date.
        DatasetError: what lies in the place of the index is something else, or damaged.
    """
    if indexes.is_built_at_once(settings.index):
        return
    indexer = Indexer(settings, Execution.begin(), [])
    if references and not storage.contains(out, references.uri):
        indexer.find(references)
        return
    held = references or Dataset.find_own(storage.join(out, "reference", schemas.EMBEDDINGS))
    coding = codes.plan(held, settings.index, indexer.execution) if held else None
    if references and coding:
        index_building.check(coding, settings.shard_bytes)
    elif not (coding and coding.model):
        form = index_strings.parse(settings.index)
        size = EmbedJob(".", ".", settings.encoder, settings.transform).descriptor_size
        form.check(size, form.least_sample, settings.shard_bytes)
