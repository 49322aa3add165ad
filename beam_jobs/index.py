"""Index as a job: sample of a corpus → model; its files → codes; a measured recall → commit beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam

from beam_jobs import progress, runners
from beam_jobs.metrics import count, timed
from id2core.runs import codes
from id2core.runs.codes import Coding
from id2core.runs.units import Record
from id2core.search import index_building
from id2core.search.compressed import Model
from id2core.store.datasets import FileRecord

STAGE = "index"


@dataclass(frozen=True)
class Wanted:
    """How an index is to be made.

    Attributes:
        coding: what is planned.
        recall: share of the 10 best references that it is to find, at least.
        memory: bytes that a worker may take.
    """

    coding: Coding
    recall: float
    memory: int


def _train(_: None, wanted: Wanted) -> FileRecord:
    with timed("index_train"):
        return index_building.train(wanted.coding, wanted.memory)


class _Encode(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """File of the corpus → its name and the file with its codes, if it has none yet."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._model: tuple[FileRecord, Model] | None = None

    def process(self, file: FileRecord, model: FileRecord) -> Iterator[tuple[str, FileRecord]]:
        if self._coding.has_codes(file, model):
            return
        with timed("index_encode"):
            made = index_building.encode(self._coding, file, model, self._loaded(model))
        count("index_rows", made.rows)
        progress.add(STAGE, made.rows)
        yield file.name, made

    def _loaded(self, record: FileRecord) -> Model:
        """Return the model of a file; it is read once."""
        if self._model is None or self._model[0] != record:
            self._model = record, index_building.load_model(self._coding, record)
        return self._model[1]


def _commit(made: list[tuple[str, FileRecord]], model: FileRecord, wanted: Wanted) -> None:
    with timed("index_measure"):
        index_building.commit(wanted.coding, model, dict(made), wanted.recall, wanted.memory)


def build(pipeline: beam.Pipeline, wanted: Wanted) -> None:
    """Add the job's steps to a pipeline on any runner."""
    trained = (
        pipeline
        | "Start" >> beam.Create([None], reshuffle=False)
        | "Train" >> beam.Map(_train, wanted=wanted)
    )
    model = beam.pvalue.AsSingleton(trained)
    (
        pipeline
        | "Files" >> beam.Create(wanted.coding.corpus.files, reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Encode" >> beam.ParDo(_Encode(wanted.coding), model)
        | "AllEncoded" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Commit" >> beam.Map(_commit, model, wanted=wanted)
    )


def run(wanted: Wanted, beam_arguments: Sequence[str] = ()) -> None:
    """Make an index what its corpus needs, and wait for the end.

    Raises:
        SearchError: the index cannot be built, or finds too few.
        DatasetError: a file is gone or damaged.
        LostRowsError: a file was not encoded; nothing was committed.
    """
    coding = wanted.coding
    rows = sum(file.rows for file in coding.todo(coding.model))

    def counts(record: Record) -> tuple[int, int] | None:
        is_own = record.dataset == codes.INDEX and record.ids == coding.ids
        return record.counts if is_own and record.key != coding.unit_of_model() else None

    work = [progress.Work(coding.place, rows, counts)]
    with progress.counted(STAGE, work, beam_arguments), runners.running(beam_arguments) as pipeline:
        build(pipeline, wanted)
