"""The search job: query blocks × reference shards → top-k → verdicts → `matches/`.

A background is searched first, by the same job over the same query blocks, into matches of its own; the block
of references then finds the block of its background by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from beam_jobs import runners
from beam_jobs.metrics import count, timed
from id2core import defaults
from id2core.errors import LostRowsError
from id2core.runs.execution import Execution
from id2core.runs.progress import tally
from id2core.search import matching, shards
from id2core.search.indexes import FLAT
from id2core.search.matching import QueryBlock, SearchPlan
from id2core.search.results import SearchResult
from id2core.store.datasets import Dataset, FileRecord
from id2core.verdicts.judging import Judge

STAGE = "search"
# Query blocks that one load of a shard is good for: enough to pay for it, few enough to spread.
BLOCKS_PER_LOAD = 64
# Candidates of a block of queries, and in how many shards they were looked for.
Partial = tuple[int, pa.Table]


class _SearchShard(beam.DoFn):  # type: ignore[misc]  # Beam is not typed
    """(reference file, query blocks) → (block name, partial result) for each block."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan

    def process(self, task: tuple[FileRecord, list[QueryBlock]]) -> Iterator[tuple[str, Partial]]:
        file, blocks = task
        with timed("search_load"):
            shard = shards.load(self._plan.references, file, self._plan.index)
        count("search_references_read", file.rows)
        count("search_bytes_read", file.bytes)
        for block in blocks:
            with timed("search_block"):
                candidates = matching.search(self._plan, block, shard)
            count("search_candidates", candidates.num_rows)
            yield block.name, (1, candidates)
            tally.add(STAGE, 1)


class _Merge(beam.CombineFn):  # type: ignore[misc]
    """Partial results of one block → its top-k over all of them; some merges happen before the shuffle."""

    def __init__(self, k: int) -> None:
        self._k = k

    def create_accumulator(self) -> Partial:
        return 0, shards.CANDIDATES.empty_table()

    def add_input(self, accumulator: Partial, partial: Partial) -> Partial:
        return self.merge_accumulators([accumulator, partial])

    def merge_accumulators(self, accumulators: Iterable[Partial]) -> Partial:
        counts, candidates = zip(*accumulators, strict=True)
        with timed("search_merge"):
            return sum(counts), shards.merge(list(candidates), self._k)

    def extract_output(self, accumulator: Partial) -> Partial:
        return accumulator


class _WriteBlock(beam.DoFn):  # type: ignore[misc]
    """(block name, merged result) → record of the block's match file; a shard that is missing is an error.

    A block holds its queries with all their ranks, so it is judged here, without any other.
    """

    def __init__(self, plan: SearchPlan, blocks: tuple[QueryBlock, ...], shards: int) -> None:
        self._plan, self._shards = plan, shards
        self._blocks = {block.name: block for block in blocks}

    def process(self, merged: tuple[str, Partial]) -> Iterator[FileRecord]:
        name, (shards, candidates) = merged
        if shards != self._shards:
            raise LostRowsError(f"{name} was searched in {shards} shards of {self._shards}; run again")
        with timed("search_write"):
            record = matching.write_block(self._plan, self._blocks[name], candidates)
        count("search_matches", record.rows)
        count("search_bytes_written", record.bytes)
        yield record


@dataclass
class Search(beam.PTransform):  # type: ignore[misc]
    """Reference files → records of the written match files.

    Attributes:
        plan: the work.
        blocks: the query blocks; every one meets every reference file.
        shards: how many reference files there are.

    Example:
        ```
        plan = matching.make(references, queries, "/scan/matches", 10, Execution.begin())
        blocks = tuple(matching.query_blocks(plan))
        with runners.pipeline() as pipeline:
            files = pipeline | beam.Create(references.files)
            files | Search(plan, blocks, len(references.files)) | beam.Map(print)
        ```
    """

    plan: SearchPlan
    blocks: tuple[QueryBlock, ...]
    shards: int

    def __post_init__(self) -> None:
        super().__init__()
        if self.shards < 0:
            raise ValueError(f"there cannot be {self.shards} shards")
        if len({block.name for block in self.blocks}) < len(self.blocks):
            raise ValueError("two query blocks have one name: their matches would be mixed")

    def expand(self, files: beam.PCollection[FileRecord]) -> beam.PCollection[FileRecord]:
        """Pair, search, merge per block, judge and write."""
        return (
            files
            | "Pair" >> beam.FlatMap(_pair, groups=_groups(self.blocks))
            | "Spread" >> beam.Reshuffle()
            | "SearchShards" >> beam.ParDo(_SearchShard(self.plan))
            | "Merge" >> beam.CombinePerKey(_Merge(self.plan.top_k))
            | "Write" >> beam.ParDo(_WriteBlock(self.plan, self.blocks, self.shards))
        )


def _groups(blocks: tuple[QueryBlock, ...]) -> list[list[QueryBlock]]:
    """Return the query blocks that are searched in one load of a shard."""
    starts = range(0, len(blocks), BLOCKS_PER_LOAD)
    return [list(blocks[start : start + BLOCKS_PER_LOAD]) for start in starts]


def _pair(file: FileRecord, groups: list[list[QueryBlock]]) -> list[tuple[FileRecord, list[QueryBlock]]]:
    return [(file, group) for group in groups]


# Matches that were committed in this process, by run and work: the caller need not read them again.
_COMMITTED: dict[tuple[str, str], Dataset] = {}


def _commit(files: list[FileRecord], plan: SearchPlan) -> None:
    with timed("search_commit"):
        _COMMITTED[_key(plan)] = matching.commit(plan, files)


def _key(plan: SearchPlan) -> tuple[str, str]:
    return plan.execution.run_id, f"{plan.out}#{plan.plan_id}"


def build(pipeline: beam.Pipeline, plan: SearchPlan) -> None:
    """Add the job's steps to a pipeline on any runner."""
    references = plan.references.files
    blocks = tuple(matching.query_blocks(plan))
    tally.start(STAGE, len(references) * len(blocks))
    (
        pipeline
        | "References" >> beam.Create(references, reshuffle=False)
        | Search(plan, blocks, len(references))
        | "AllWritten" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Commit" >> beam.Map(_commit, plan=plan)
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
) -> SearchResult:
    """Search every query in every reference and wait for the end.

    Args:
        references, queries: embeddings data sets with the same encoder and transform.
        out: the matches data set.
        execution: gives new rows their run_id and time.
        top_k: references kept per query.
        beam_arguments: Beam's own options, see `runners.pipeline`.
        judge: gives the verdicts; None leaves them open.
        index: a name of `indexes.INDEXES`, by which the references are searched.

    Raises:
        DatasetError: the two cannot be compared.
        CalibrationError: the calibration is for other scores.
    """
    plan = matching.make(references, queries, out, top_k, execution, judge, index)
    return matching.finished(plan) or run_planned(plan, beam_arguments)


def run_planned(plan: SearchPlan, beam_arguments: Sequence[str] = ()) -> SearchResult:
    """Search what is planned and wait for the end; errors as of `run`."""
    with runners.running(beam_arguments) as pipeline:
        build(pipeline, plan)
    matches = _COMMITTED.pop(_key(plan), None) or Dataset.open(plan.out)
    return matching.result(plan, matches)
