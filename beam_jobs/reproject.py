"""Reproject as a job: files of a corpus → files with descriptors of another W → commit beside the corpus."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue
from threadpoolctl import threadpool_limits

from beam_jobs import metrics, progress, runners
from id2core.runs.units import Record
from id2core.store.datasets import Dataset, FileRecord
from id2core.transforms import reprojection
from id2core.transforms.reprojection import Reprojection

STAGE = "reproject"
# Files that this process works on at a time, each with two threads. At least two, so that one waits for the
# disk while another is computed. At most eight, because each takes 150 MB.
_LEAST_FILES, _MOST_FILES = 2, 8


class _Project(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """File of the corpus → its name and the new file. Works on several files at a time."""

    def __init__(self, work: Reprojection, files: int) -> None:
        self._work, self._files = work, files

    def setup(self) -> None:
        _one_thread_a_product()
        self._transform = self._work.load()
        self._pool = ThreadPoolExecutor(self._files)

    def start_bundle(self) -> None:
        self._under_way: deque[tuple[FileRecord, Future[tuple[FileRecord, float]]]] = deque()

    def process(self, file: FileRecord) -> Iterator[tuple[str, FileRecord]]:
        self._under_way.append((file, self._pool.submit(self._project, file)))
        if len(self._under_way) == self._files:
            yield self._made()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._under_way:
            yield GlobalWindows.windowed_value(self._made())

    def teardown(self) -> None:
        self._pool.shutdown()

    def _project(self, file: FileRecord) -> tuple[FileRecord, float]:
        """Project a file; return the new file, and the seconds that it took."""
        began = time.perf_counter()
        made = reprojection.project(self._work, file, self._transform)
        return made, time.perf_counter() - began

    def _made(self) -> tuple[str, FileRecord]:
        """Wait for the file that was begun first, and count it here: Beam counts only in its own threads."""
        file, future = self._under_way.popleft()
        made, seconds = future.result()
        metrics.add_time("reproject_file", seconds)
        metrics.count("reproject_rows", made.rows)
        metrics.count("reproject_bytes_read", file.bytes)
        metrics.count("reproject_bytes_written", made.bytes)
        progress.add(STAGE, made.rows)
        return file.name, made


def _commit(made: list[tuple[str, FileRecord]], work: Reprojection) -> None:
    with metrics.timed("reproject_commit"):
        reprojection.commit(work, made)


def _one_thread_a_product() -> threadpool_limits:
    """Compute each matrix product in the calling thread. The end of the block undoes this.

    Several threads compute at a time. The BLAS library would split each product among threads of its own,
    which wait for the slowest one. This wait costs as much as the work.
    """
    return threadpool_limits(1, user_api="blas")


def build(pipeline: beam.Pipeline, work: Reprojection, files: int = 1) -> None:
    """Add the job's steps to a pipeline on any runner.

    Args:
        pipeline: where they are added.
        work: what was planned.
        files: how many files a worker works on at a time. Other engines run several workers in a process.
    """
    (
        pipeline
        | "Files" >> beam.Create(work.todo, reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Project" >> beam.ParDo(_Project(work, files))
        | "AllProjected" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Commit" >> beam.Map(_commit, work=work)
    )


def run(work: Reprojection, beam_arguments: Sequence[str] = ()) -> Dataset:
    """Project the remaining files, and commit; return the data set beside the corpus.

    Raises:
        DatasetError: a file is gone or damaged.
        TransformError: a worker has another transform.
        LostRowsError: a file was not projected; nothing was committed.
    """
    keys = {work.unit_of(file) for file in work.todo}

    def counts(record: Record) -> tuple[int, int] | None:
        return record.counts if record.key in keys else None

    counted = progress.Work(work.place, sum(file.rows for file in work.todo), counts)
    in_process = runners.is_in_process(beam_arguments)
    files = min(max(_LEAST_FILES, (os.cpu_count() or 1) // 2), _MOST_FILES) if in_process else 1
    with (
        progress.counted(STAGE, [counted], beam_arguments),
        _one_thread_a_product() if in_process else nullcontext(),
        runners.running(beam_arguments) as pipeline,
    ):
        build(pipeline, work, files)
    return Dataset.open(work.uri)
