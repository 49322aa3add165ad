"""Search as a job: query blocks × reference shards → top-k → rows that are kept → sorted files → commit.

The same job searches a background, into rows of its own. If both have work, they are one pipeline, which
commits the background before it judges the rows of the references.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import apache_beam as beam

from beam_jobs import progress, runners
from beam_jobs.metrics import count, timed
from id2core import defaults
from id2core.errors import DatasetError, LostRowsError
from id2core.runs.execution import Execution
from id2core.runs.ledger import Span
from id2core.runs.units import Record
from id2core.search import background_rows, cuts, match_rows, matching, shards, staging
from id2core.search.background_rows import Backgrounds
from id2core.search.indexes import FLAT
from id2core.search.match_rows import Judge
from id2core.search.matching import Bin, BlockResult, QueryBlock, SearchPlan, Task
from id2core.search.results import SearchResult
from id2core.search.staging import Candidates
from id2core.store.datasets import Dataset

STAGE = "search"
# A product uses every core, and memory holds one shard: of the threads of a process, one searches.
_ONE_SHARD = threading.Lock()


@dataclass(frozen=True)
class BlockTask:
    """A query block, and how many shards it is searched in."""

    block: QueryBlock
    shards: int


class _SearchShard(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """Task → (block name, where its candidates are) for each block."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan

    def process(self, task: Task) -> Iterator[tuple[str, Candidates]]:
        if self._plan.committed:
            return
        recorded = partial(progress.add, STAGE)
        with _ONE_SHARD:
            for block, candidates in staging.search(self._plan, task, self._search, recorded):
                yield block.name, candidates

    def _search(self, task: Task) -> Iterator[staging.Found]:
        with timed("search_load"):
            shard = matching.load_shard(self._plan, task.files)
        count("search_references_read", sum(file.rows for file in task.files))
        count("search_bytes_read", sum(file.bytes for file in task.files))
        found = matching.search(self._plan, task.blocks, shard)
        for _ in task.blocks:
            with timed("search_block"):
                pairs, candidates = next(found)
            count("search_pairs", pairs)
            count("search_candidates", candidates.num_rows)
            yield pairs, candidates
            progress.add(STAGE, 1)


class _WriteBlock(beam.DoFn):  # type: ignore[misc]
    """(block name, where its candidates are) → the stored rows of the block. A missing shard is an error.

    A block has all candidates of its queries, so it is judged here, without any other block.
    """

    def __init__(self, plan: SearchPlan, blocks: dict[str, BlockTask]) -> None:
        self._plan, self._blocks = plan, blocks

    def process(
        self, candidates: tuple[str, Iterable[Candidates]], backgrounds: Dataset | None = None
    ) -> Iterator[BlockResult]:
        name, parts = candidates
        task = self._blocks[name]
        plan = self._plan.after(backgrounds) if backgrounds else self._plan
        with _unless_committed(plan):
            yield staging.recorded_block(plan, task.block) or self._write(plan, task, list(parts))

    def _write(self, plan: SearchPlan, task: BlockTask, parts: list[Candidates]) -> BlockResult:
        with timed("search_merge"):
            pairs, merged = staging.merge(plan, task.block, task.shards, parts)
        with timed("search_write"):
            result = staging.write_block(plan, task.block, pairs, merged)
        count("search_matches", result.file.rows if result.file else 0)
        return result


def _write_bin(chosen: Bin, plan: SearchPlan) -> Iterator[Bin]:
    with _unless_committed(plan):
        with timed("search_sort"):
            written = staging.write_bin(plan, chosen)
        count("search_bytes_written", sum(file.bytes for file in written.files))
        yield written


@contextmanager
def _unless_committed(plan: SearchPlan) -> Iterator[None]:
    """Let what is staged be gone or incomplete, if that is because the search is committed."""
    try:
        yield
    except (LostRowsError, DatasetError):
        if plan.committed is None:
            raise


@dataclass
class Search(beam.PTransform):  # type: ignore[misc]
    """Tasks → bins with their written file.

    Attributes:
        plan: the work.
        blocks: the query blocks of the tasks, by name.
        backgrounds: the committed search of the background, which rows are judged by; None without one.

    Example:
        ```
        plan = match_rows.make(references, queries, "/scan/matches", Execution.begin(), 10)
        tasks = matching.tasks(plan)
        with runners.pipeline() as pipeline:
            pipeline | beam.Create(tasks) | Search(plan, search.blocks_of(tasks)) | beam.Map(print)
        ```
    """

    plan: SearchPlan
    blocks: dict[str, BlockTask]
    backgrounds: beam.PCollection[Dataset] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if any(task.shards < 1 for task in self.blocks.values()):
            raise ValueError("a query block has no shard: leave it out")

    def expand(self, tasks: beam.PCollection[Task]) -> beam.PCollection[Bin]:
        """Search, merge per block, judge, and write. Then sort the rows of many blocks into each file."""
        awaited = [beam.pvalue.AsSingleton(self.backgrounds)] if self.backgrounds else []
        return (
            tasks
            | "Spread" >> beam.Reshuffle()
            | "SearchShards" >> beam.ParDo(_SearchShard(self.plan))
            | "Gather" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_WriteBlock(self.plan, self.blocks), *awaited)
            | "AllBlocks" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Bins" >> beam.FlatMap(matching.bins)
            | "SpreadBins" >> beam.Reshuffle()
            | "Sort" >> beam.FlatMap(_write_bin, plan=self.plan)
        )


def blocks_of(tasks: Iterable[Task]) -> dict[str, BlockTask]:
    """Return the query blocks of tasks by name, each with the number of its shards."""
    blocks: dict[str, BlockTask] = {}
    for _, asked in tasks:
        for block in asked:
            known = blocks.get(block.name)
            if known and known.block != block:
                raise ValueError("two query blocks have one name: their rows would be mixed")
            blocks[block.name] = BlockTask(block, known.shards + 1 if known else 1)
    return blocks


# Data sets committed in this process, by run and work, so that the caller need not read them again.
_COMMITTED: dict[tuple[str, str], Dataset] = {}


def _commit(written: list[Bin], plan: SearchPlan) -> Dataset:
    with timed("search_commit"):
        committed = matching.commit(plan, written)
        staging.delete(plan, committed)
        _COMMITTED[_key(plan)] = committed
    return committed


def _key(plan: SearchPlan) -> tuple[str, str]:
    return plan.execution.run_id, f"{plan.out}#{plan.plan_id}"


def build(
    pipeline: beam.Pipeline,
    plan: SearchPlan,
    tasks: list[Task] | None = None,
    backgrounds: beam.PCollection[Dataset] | None = None,
    title: str = "Search",
) -> beam.PCollection[Dataset]:
    """Add the job's steps to a pipeline on any runner.

    Args:
        pipeline: on any runner.
        plan: the work.
        tasks: of the plan, where the caller has them.
        backgrounds: what `build` returned for the background that rows are judged after.
        title: of the steps; two searches of a pipeline need two.

    Returns:
        The data set after the commit.
    """
    tasks = matching.tasks(plan) if tasks is None else tasks
    return (
        pipeline
        | f"{title}Tasks" >> beam.Create(tasks, reshuffle=False)
        | title >> Search(plan, blocks_of(tasks), backgrounds)
        | f"{title}Written" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | f"{title}Commit" >> beam.Map(_commit, plan=plan)
    )


def run(
    references: Dataset,
    queries: Dataset,
    out: str,
    execution: Execution,
    top_k: int = defaults.TOP_K,
    beam_arguments: Sequence[str] = (),
    judge: Judge | None = None,
    index: str = FLAT,
    floor: float | None = None,
    span: Span | None = None,
) -> SearchResult:
    """Score every pair that no search has scored, and wait for the end.

    Args:
        references, queries: embeddings data sets with the same encoder and transform.
        out: the matches data set.
        execution: gives new rows their run_id and time.
        top_k: references kept per upload.
        beam_arguments: Beam's own options, see `runners.pipeline`.
        judge: gives the verdicts; None leaves them open.
        index: a name of `indexes.INDEXES`, by which the references are searched.
        floor: least score of a pair that is stored; None for all.
        span: first and last number of the query segments; by default all.

    Raises:
        DatasetError: the two cannot be compared.
        CalibrationError: the calibration is for other scores.
    """
    plan = match_rows.make(references, queries, out, execution, top_k, judge, index, floor, span)
    return match_rows.result(plan, run_planned(plan, beam_arguments))


def search_background(
    background: Dataset,
    queries: Dataset,
    out: str,
    execution: Execution,
    k: int,
    beam_arguments: Sequence[str] = (),
) -> Backgrounds:
    """Score every upload that has no background score yet, and wait for the end.

    Args:
        background, queries: embeddings data sets with the same encoder and transform.
        out: the data set of backgrounds.
        execution: gives new rows their run_id.
        k: background scores that are averaged.
        beam_arguments: Beam's own options, see `runners.pipeline`.
    """
    plan = background_rows.make(background, queries, out, execution, k)
    made = run_planned(plan, beam_arguments)
    return Backgrounds(made, background_rows.name_of(plan.ids, shards.index_id(background), k))


def run_planned(plan: SearchPlan, beam_arguments: Sequence[str] = ()) -> Dataset:
    """Run a planned search and wait for the end; return the data set. Raises what `run` raises."""
    if (made := matching.without_work(plan)) is not None:
        return made
    [made] = _run([plan], beam_arguments)
    return made


def run_both(
    background: SearchPlan, plan: SearchPlan, beam_arguments: Sequence[str] = ()
) -> tuple[Dataset, Dataset]:
    """Search a background, then references whose rows are judged by it, as one job; wait for the end.

    Args:
        background: planned by `background_rows.make`.
        plan: planned by `match_rows.make`, with a judge that has `Backgrounds.before` it.
        beam_arguments: Beam's own options, see `runners.pipeline`.

    Returns:
        Both data sets. Raises what `run` raises.
    """
    backgrounds, matches = _run([background, plan], beam_arguments)
    return backgrounds, matches


def _run(plans: list[SearchPlan], beam_arguments: Sequence[str]) -> list[Dataset]:
    """Run searches as one job, in order; return their data sets. Each judges after the commit of the last."""
    wanted = cuts.spread(runners.workers(beam_arguments))
    jobs = [(plan, matching.tasks(plan, wanted)) for plan in plans]
    work = [
        progress.Work(plan.place, sum(len(task.blocks) for task in tasks), partial(_counts, plan))
        for plan, tasks in jobs
    ]
    with progress.counted(STAGE, work, beam_arguments):
        if runners.is_in_process(beam_arguments):
            _run_here(jobs)
        else:
            with runners.running(beam_arguments) as pipeline:
                committed = None
                for number, (plan, tasks) in enumerate(jobs):
                    title = "Background" if number + 1 < len(jobs) else "Search"
                    committed = build(pipeline, plan, tasks, committed, title)
    return [_committed(plan) for plan in plans]


def _run_here(jobs: Iterable[tuple[SearchPlan, list[Task]]]) -> None:
    """Run searches in this process, one after the other.

    These are the steps of `build` without a pipeline. A pipeline takes most of a second before it does any
    work, and a second worker in this process would only wait for the first.
    """
    committed: list[Dataset] = []
    for plan, tasks in jobs:
        search, write = _SearchShard(plan), _WriteBlock(plan, blocks_of(tasks))
        gathered: dict[str, list[Candidates]] = {}
        for task in tasks:
            for block, candidates in search.process(task):
                gathered.setdefault(block, []).append(candidates)
        blocks = [result for found in gathered.items() for result in write.process(found, *committed[-1:])]
        written = [file for chosen in matching.bins(blocks) for file in _write_bin(chosen, plan)]
        committed.append(_commit(written, plan))


def _committed(plan: SearchPlan) -> Dataset:
    """Return what a job has committed."""
    return _COMMITTED.pop(_key(plan), None) or Dataset.open(plan.out)


def _counts(plan: SearchPlan, record: Record) -> tuple[int, int] | None:
    """Return how many blocks a record has as searched; None for a record of other work."""
    searches = staging.searches(plan, record)
    return None if searches is None else (searches, 0)
