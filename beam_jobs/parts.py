"""Spread the parts of a planned run over workers, then commit: for every job that makes rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import apache_beam as beam

from beam_jobs import metrics, progress, runners
from id2core.runs import planning
from id2core.runs.parts import OnBatch, part_key
from id2core.runs.planning import Held, Plan
from id2core.runs.progress import tally
from id2core.runs.units import REJECTS, Record
from id2core.store.datasets import Dataset
from id2core.store.storage import Object


class Maker(Protocol):
    """The work of a job on a worker. It is sent there, so it holds no model before `load`."""

    def load(self) -> dict[str, str]:
        """Load the model, once per process; return the ids of the loaded weights."""
        ...

    def make(self, plan: Plan, objects: list[Object], progress: OnBatch) -> list[Record]:
        """Write the files of one part and its records; return the records, none if all are there already."""
        ...


@dataclass(frozen=True)
class Job:
    """A planned run and its work.

    Attributes:
        stage: its name in progress, steps and metrics, a lower-case word.
        plan: the run; its parts are in the staged manifest.
        maker: the work.
        error: raised if a worker's model is not the plan's.
    """

    stage: str
    plan: Plan
    maker: Maker
    error: type[Exception]

    def __post_init__(self) -> None:
        if not (self.stage.isidentifier() and self.stage.islower()):
            raise ValueError(f"a stage is named by a lower-case word, not {self.stage!r}")

    def counts(self, record: Record) -> tuple[int, int] | None:
        """Return how many objects a record has as made and rejected; None for a record of other work."""
        return record.counts if record.dataset == self.plan.product.dataset else None

    def check(self, loaded: dict[str, str]) -> None:
        """Raise the job's error if the loaded weights are not those that the run was planned with."""
        if loaded != self.plan.lineage.ids:
            raise self.error(
                f"this worker loaded {loaded}, the run was planned with {self.plan.lineage.ids}: give every "
                "worker the same files, and hub models a revision"
            )


@dataclass(frozen=True)
class Committed:
    """The data sets after a run.

    Attributes:
        rows: the product's data set.
        rejects: the rejects beside it.
        run_id: the run that committed them last: this one, or an earlier one if there was nothing to do.
        listed: number of objects of the source.
        made: number of objects that have rows.
    """

    rows: Dataset
    rejects: Dataset
    run_id: str
    listed: int
    made: int


class _MakePart(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """Part number → its key, after its files and its record are in place; nothing if a later run makes it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._since = 0.0

    def setup(self) -> None:
        self._job.check(self._job.maker.load())

    def process(self, part: int) -> Iterator[str]:
        stage, plan = self._job.stage, self._job.plan
        with metrics.timed(f"{stage}_list"):
            if planning.is_taken_over(plan):
                return
            objects = planning.read_part(plan, part)
        self._since = time.perf_counter()
        with metrics.timed(f"{stage}_part"):
            records = self._job.maker.make(plan, objects, self._count)
        metrics.count(f"{stage}_bytes_read", sum(o.bytes for o in objects))
        metrics.count(f"{stage}_bytes_written", sum(f.bytes for r in records for _, f in r.files))
        yield part_key(objects, plan.lineage)

    def _count(self, made: int, rejected: int) -> None:
        """Add one batch of rows and rejects to the metrics."""
        stage, now = self._job.stage, time.perf_counter()
        metrics.count(f"{stage}_made", made)
        metrics.count(f"{stage}_rejected", rejected)
        metrics.add_time(f"{stage}_batch", now - self._since)
        self._since = now
        progress.add(stage, made, rejected)


@dataclass
class MakeParts(beam.PTransform):  # type: ignore[misc]
    """Part numbers of a plan → keys of finished parts.

    Attributes:
        job: the planned run.

    Example:
        ```
        job = embed.planned(spec, plan_embed(spec, Execution.begin()))
        with runners.pipeline() as pipeline:
            pipeline | beam.Create(range(job.plan.parts)) | MakeParts(job) | Commit(job)
        ```
    """

    job: Job

    def expand(self, parts: beam.PCollection[int]) -> beam.PCollection[str]:
        """Spread the parts over the workers and make each."""
        return parts | "Spread" >> beam.Reshuffle() | "Make" >> beam.ParDo(_MakePart(self.job))


@dataclass
class Commit(beam.PTransform):  # type: ignore[misc]
    """Keys of finished parts → the data sets, committed once all parts are done.

    Attributes:
        job: the planned run.
    """

    job: Job

    def expand(self, keys: beam.PCollection[str]) -> beam.PCollection[None]:
        """Wait for every part, then commit, even if there was no part to make."""
        return (
            keys
            | "AllDone" >> beam.CombineGlobally(beam.combiners.CountCombineFn())
            | "Commit" >> beam.Map(_commit, job=self.job)
        )


# Commits made in this process, by run and work, so that the caller need not read them again.
_COMMITTED: dict[tuple[str, str], Held | None] = {}


def _commit(parts: int, job: Job) -> None:
    with metrics.timed(f"{job.stage}_commit"):
        _COMMITTED[_key(job.plan)] = planning.commit(job.plan)


def _key(plan: Plan) -> tuple[str, str]:
    return plan.lineage.run_id, f"{plan.out}#{plan.plan_id}"


def build(pipeline: beam.Pipeline, jobs: Sequence[Job]) -> None:
    """Add the steps of jobs to a pipeline on any runner. The jobs do not wait for each other."""
    for number, job in enumerate(jobs, 1):
        which = str(number) if len(jobs) > 1 else ""
        (
            pipeline
            | f"Parts{which}" >> beam.Create(range(job.plan.parts), reshuffle=False)
            | f"{job.stage.capitalize()}Parts{which}" >> MakeParts(job)
            | f"Commit{which}" >> Commit(job)
        )


def run(jobs: Sequence[Job], beam_arguments: Sequence[str] = ()) -> list[Committed]:
    """Run the jobs of one stage as one pipeline, which commits their data sets, and wait for the end.

    Raises:
        LostRowsError: an object ended in neither data set; nothing was committed.
    """
    todo = [job for job in jobs if not job.plan.committed]
    works = [progress.Work(job.plan.out, job.plan.objects, job.counts, only_new=True) for job in todo]
    if todo:
        if runners.is_in_process(beam_arguments):
            _load_models(todo)
        with (
            progress.counted(todo[0].stage, works, beam_arguments),
            runners.running(beam_arguments) as pipeline,
        ):
            build(pipeline, todo)
    else:
        tally.start(jobs[0].stage, sum(job.plan.objects for job in jobs))
    return [_committed(job.plan) for job in jobs]


def _load_models(jobs: Sequence[Job]) -> None:
    """Load the models in this process first, so that a failure is our error and not Beam's."""
    for job in jobs:
        if job.plan.parts:
            job.check(job.maker.load())


def _committed(plan: Plan) -> Committed:
    """Return the data sets of a plan after its job."""
    held = plan.held if plan.committed else _COMMITTED.pop(_key(plan), None)
    rows, rejects = (held.rows, held.rejects) if held else (None, None)
    rows = rows or Dataset.open(plan.uri_of(plan.product.dataset))
    rejects = rejects or Dataset.open(plan.uri_of(REJECTS))
    return Committed(rows, rejects, rows.run_id, plan.listed, rows.rows // plan.product.rows_each)


def write_template(job: Job, beam_arguments: Sequence[str]) -> str:
    """Stage the job for a runner that starts it later (Dataflow's `--template_location`).

    The images were listed when it was planned. The commit is a step of the job, so nothing waits here for the
    end.

    Returns:
        Where the template was written.
    """
    planning.keep_staged(job.plan)
    pipeline = runners.pipeline(beam_arguments)
    build(pipeline, [job])
    pipeline.run()
    return str(runners.template_location(beam_arguments))
