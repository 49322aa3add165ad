"""Parts of a planned run spread over workers, and the commit behind them: for every job that makes rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics

from beam_jobs import runners
from id2core.runs import planning
from id2core.runs.parts import REJECTS, PartRecord, Progress
from id2core.runs.planning import Plan
from id2core.runs.progress import tally
from id2core.store import datasets, storage

LOOK_EVERY_SECONDS = 2.0


class Maker(Protocol):
    """The work of a job on a worker; it is sent there, and holds no model before `load`."""

    def load(self) -> dict[str, str]:
        """Load the model, once per process; the ids of what was really loaded."""
        ...

    def make(self, plan: Plan, part: int, progress: Progress) -> PartRecord:
        """Write the files of one part and its record."""
        ...


@dataclass(frozen=True)
class Job:
    """A planned run and who works on it.

    Attributes:
        stage: its name in progress and counters.
        plan: the run; its parts stand in the staged manifest.
        maker: the work.
        error: what to raise when a worker's model is another than the plan's.
    """

    stage: str
    plan: Plan
    maker: Maker
    error: type[Exception]


@dataclass(frozen=True)
class Counted:
    """Objects of the data sets after a run."""

    listed: int
    made: int
    rejected: int


class _MakePart(beam.DoFn):
    """Part number → its key, after its files and its record are in place."""

    def __init__(self, job: Job) -> None:
        self._job = job
        name = f"{job.stage.capitalize()}Parts"
        self._made = Metrics.counter(name, "made")
        self._rejected = Metrics.counter(name, "rejected")

    def setup(self) -> None:
        loaded, planned = self._job.maker.load(), self._job.plan.lineage.ids
        if loaded != planned:
            raise self._job.error(
                f"this worker loaded {loaded}, the run was planned with {planned}: "
                f"give every worker the same files, and hub models a revision"
            )

    def process(self, part: int) -> Iterator[str]:
        yield self._job.maker.make(self._job.plan, part, self._count).key

    def _count(self, made: int, rejected: int) -> None:
        self._made.inc(made)
        self._rejected.inc(rejected)
        tally.add(self._job.stage, made, rejected)


@dataclass
class MakeParts(beam.PTransform):
    """Part numbers of a plan → keys of finished parts.

    Args:
        job: the planned run.
    """

    job: Job

    def expand(self, parts: beam.PCollection[int]) -> beam.PCollection[str]:
        """Spread the parts over the workers and make each."""
        return parts | "Spread" >> beam.Reshuffle() | "Make" >> beam.ParDo(_MakePart(self.job))


@dataclass
class Commit(beam.PTransform):
    """Keys of finished parts → the data sets, committed once all parts are done."""

    plan: Plan

    def expand(self, keys: beam.PCollection[str]) -> beam.PCollection[None]:
        """Wait for every part, then commit: also when there was none to do."""
        return (
            keys
            | "AllDone" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
            | "Commit" >> beam.Map(lambda _, plan: planning.commit(plan), plan=self.plan)
        )


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Add the job's steps to a pipeline on any runner."""
    (
        pipeline
        | "Parts" >> beam.Create(range(job.plan.parts), reshuffle=False)
        | f"{job.stage.capitalize()}Parts" >> MakeParts(job)
        | Commit(job.plan)
    )


def run(job: Job, beam_arguments: Sequence[str] = ()) -> Counted:
    """Do what is planned and wait for the end.

    Raises:
        LostRowsError: an object ended in neither data set; nothing was committed.
    """
    plan = job.plan
    tally.start(job.stage, plan.objects)
    if not plan.done:
        counted = nullcontext() if runners.is_in_process(beam_arguments) else _parts_counted(job)
        with counted, runners.pipeline(beam_arguments) as pipeline:
            build(pipeline, job)
    made, rejected = (
        datasets.require_commit(storage.join(plan.out, d)).rows for d in (plan.product.dataset, REJECTS)
    )
    return Counted(plan.listed, made // plan.product.rows_each, rejected)


def write_template(job: Job, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later (Dataflow's `--template_location`).

    The images are listed when it is planned; the commit is a step of the job, so nothing has to wait
    here for its end.

    Returns:
        Where the template was written.
    """
    pipeline = runners.pipeline(beam_arguments)
    build(pipeline, job)
    pipeline.run()
    return str(runners.template_location(beam_arguments))


@contextmanager
def _parts_counted(job: Job) -> Iterator[None]:
    """While other processes work, count the parts whose records they leave in the store."""
    out = job.plan.out
    seen = set(planning.staged_by_uri(out))
    stop = threading.Event()
    objects = 0

    def look() -> None:
        nonlocal objects
        while not stop.wait(LOOK_EVERY_SECONDS):
            with suppress(FileNotFoundError):  # the commit, elsewhere, is tidying up
                new = planning.staged_by_uri(out, seen)
                seen.update(new)
                for record in new.values():
                    tally.add(job.stage, *record.counts)
                    objects += record.objects

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
        tally.add(job.stage, job.plan.objects - objects)
    finally:
        stop.set()
        thread.join()
