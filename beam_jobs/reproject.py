"""The reprojection job: files of a corpus → files with descriptors of another W → commit beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import apache_beam as beam

from beam_jobs import metrics, parts, runners
from id2core.runs.progress import tally
from id2core.store.datasets import Dataset, FileRecord
from id2core.transforms import reprojection
from id2core.transforms.linear import Transform
from id2core.transforms.reprojection import Reprojection

STAGE = "reproject"


class _Project(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """File of the corpus → its name, and what was made of it."""

    def __init__(self, work: Reprojection) -> None:
        self._work = work
        self._transform = Transform()

    def setup(self) -> None:
        self._transform = self._work.load()

    def process(self, file: FileRecord) -> list[tuple[str, FileRecord]]:
        with metrics.timed("reproject_file"):
            made = reprojection.project(self._work, file, self._transform)
        metrics.count("reproject_rows", made.rows)
        metrics.count("reproject_bytes_read", file.bytes)
        metrics.count("reproject_bytes_written", made.bytes)
        tally.add(STAGE, made.rows)
        return [(file.name, made)]


def _commit(made: list[tuple[str, FileRecord]], work: Reprojection) -> None:
    with metrics.timed("reproject_commit"):
        reprojection.commit(work, made)


def build(pipeline: beam.Pipeline, work: Reprojection) -> None:
    """Add the job's steps to a pipeline on any runner."""
    (
        pipeline
        | "Files" >> beam.Create(work.todo, reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Project" >> beam.ParDo(_Project(work))
        | "AllProjected" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Commit" >> beam.Map(_commit, work=work)
    )


def run(work: Reprojection, beam_arguments: Sequence[str] = ()) -> Dataset:
    """Project the files that are not projected yet, and commit; return the data set beside the corpus.

    Raises:
        DatasetError: a file is gone or damaged.
        TransformError: a worker has another transform.
        LostRowsError: a file was not projected; nothing was committed.
    """
    rows = sum(file.rows for file in work.todo)
    tally.start(STAGE, rows)
    in_process = runners.is_in_process(beam_arguments)
    with (
        nullcontext() if in_process else parts.counted_by_records(STAGE, work.place, rows),
        runners.running(beam_arguments) as pipeline,
    ):
        build(pipeline, work)
    return Dataset.open(work.uri)
