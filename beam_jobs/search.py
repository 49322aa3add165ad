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
from id2core.errors import LostRowsError
from id2core.runs.progress import tally
from id2core.search import matching, shards
from id2core.search.matching import QueryBlock, SearchPlan
from id2core.store import datasets
from id2core.store.datasets import FileRecord
from id2core.verdicts.judging import Judge

STAGE = "search"
# Query blocks that one load of a shard is good for: enough to pay for it, few enough to spread.
BLOCKS_PER_LOAD = 64


@dataclass(frozen=True)
class SearchSummary:
    """Counts of a search run; `corpus` is the number of references."""

    run_id: str
    queries: int
    matches: int
    index_id: str
    corpus: int
    resumed: bool


# Candidates of a block of queries, and in how many shards they were looked for.
Partial = tuple[int, pa.Table]


class _SearchShard(beam.DoFn):
    """(reference file, query blocks) → (block name, partial result) for each block."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan

    def process(self, task: tuple[FileRecord, list[QueryBlock]]) -> Iterator[tuple[str, Partial]]:
        file, blocks = task
        shard = shards.load(self._plan.references, file)
        for block in blocks:
            yield block.name, (1, matching.search(self._plan, block, shard))
            tally.add(STAGE, 1)


class _Merge(beam.CombineFn):
    """Partial results of one block → its top-k over all of them; some merges happen before the shuffle."""

    def __init__(self, k: int) -> None:
        self._k = k

    def create_accumulator(self) -> Partial:
        return 0, shards.CANDIDATES.empty_table()

    def add_input(self, accumulator: Partial, partial: Partial) -> Partial:
        return self.merge_accumulators([accumulator, partial])

    def merge_accumulators(self, accumulators: Iterable[Partial]) -> Partial:
        counts, candidates = zip(*accumulators, strict=True)
        return sum(counts), shards.merge(list(candidates), self._k)

    def extract_output(self, accumulator: Partial) -> Partial:
        return accumulator


class _WriteBlock(beam.DoFn):
    """(block name, merged result) → record of the block's match file; a shard that is missing is an error.

    A block holds its queries with all their ranks: it is judged here, without any other.
    """

    def __init__(self, plan: SearchPlan, blocks: tuple[QueryBlock, ...], shards: int) -> None:
        self._plan, self._shards = plan, shards
        self._blocks = {block.name: block for block in blocks}

    def process(self, found: tuple[str, Partial]) -> Iterator[FileRecord]:
        name, (shards, candidates) = found
        if shards != self._shards:
            raise LostRowsError(f"{name} was searched in {shards} shards of {self._shards}; run again")
        yield matching.write_block(self._plan, self._blocks[name], candidates)


@dataclass
class Search(beam.PTransform):
    """Reference files → records of the written match files.

    Args:
        plan: the run.
        blocks: the query blocks; every one meets every reference file.
        shards: how many reference files there are.
    """

    plan: SearchPlan
    blocks: tuple[QueryBlock, ...]
    shards: int

    def expand(self, files: beam.PCollection[FileRecord]) -> beam.PCollection[FileRecord]:
        """Pair, search, merge per block, judge and write."""
        starts = range(0, len(self.blocks), BLOCKS_PER_LOAD)
        groups = [list(self.blocks[i : i + BLOCKS_PER_LOAD]) for i in starts]
        return (
            files
            | "Pair" >> beam.FlatMap(lambda file, groups: [(file, g) for g in groups], groups=groups)
            | "Spread" >> beam.Reshuffle()
            | "SearchShards" >> beam.ParDo(_SearchShard(self.plan))
            | "Merge" >> beam.CombinePerKey(_Merge(self.plan.top_k))
            | "Write" >> beam.ParDo(_WriteBlock(self.plan, self.blocks, self.shards))
        )


def build(pipeline: beam.Pipeline, plan: SearchPlan) -> None:
    """Add the job's steps to a pipeline on any runner."""
    references = datasets.require_commit(plan.references).files
    blocks = tuple(matching.query_blocks(plan))
    tally.start(STAGE, len(references) * len(blocks))
    (
        pipeline
        | "References" >> beam.Create(references, reshuffle=False)
        | Search(plan, blocks, len(references))
        | "AllWritten" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Commit" >> beam.Map(lambda files, plan: matching.commit(plan, files), plan=plan)
    )


def run(
    references: str,
    queries: str,
    out: str,
    top_k: int = 10,
    beam_arguments: Sequence[str] = (),
    judge: Judge | None = None,
) -> SearchSummary:
    """Search every query in every reference and wait for the end.

    Args:
        references, queries: committed embeddings data sets with the same encoder and transform.
        out: the matches data set.
        top_k: references kept per query.
        beam_arguments: Beam's own options, see `runners.pipeline`.
        judge: gives the verdicts; None leaves them open.

    Raises:
        DatasetError: a data set is incomplete or the two cannot be compared.
        CalibrationError: the calibration is for other scores.
    """
    plan = matching.make(references, queries, out, top_k, judge)
    if not plan.done:
        with runners.pipeline(beam_arguments) as pipeline:
            build(pipeline, plan)
    counts = datasets.require_commit(out).runs[plan.run_id]
    return SearchSummary(
        plan.run_id, counts["queries"], counts["matches"], plan.index_id, plan.corpus, plan.done
    )
