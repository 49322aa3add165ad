"""From two embeddings data sets to `matches/`: blocks of queries against shards of references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from id2core.errors import LostRowsError, OptionError
from id2core.runs.execution import Execution
from id2core.search import indexes, shards
from id2core.search.indexes import FLAT
from id2core.search.results import SearchResult
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset, FileRecord


@dataclass(frozen=True)
class QueryBlock:
    """One row group of a query file: the unit of queries."""

    file: FileRecord
    row_group: int

    @property
    def name(self) -> str:
        """A file name for the block's matches."""
        return f"{self.file.key}-{self.row_group:04d}"


class Judge(Protocol):
    """Gives verdicts to matches; `verdicts.judging.Judge` is one."""

    @property
    def identity(self) -> list[str | None]:
        """What a run that is judged so depends on."""
        ...

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise where scores of these ids cannot be judged."""
        ...

    def judge(
        self, matches: pa.Table, block: str, references: int, information: NDArray[np.floating] | None = None
    ) -> pa.Table:
        """Return the matches of one block with their verdicts, rows in their order."""
        ...


class _Counts(BaseModel):
    """What a search counts in the commit of its matches."""

    matches: int
    queries: int


@dataclass(frozen=True)
class SearchPlan:
    """A run of the search job.

    Attributes:
        references, queries: the two embeddings data sets.
        out: URI of the matches data set.
        last: the matches data set as it was; None where there was none.
        top_k: references kept per query.
        ids: encoder_id, transform_id, preprocess_id: the same on both sides.
        index_id: names the index over the references.
        plan_id: names the work by its content: hash of all of the above and of the content of both sides.
            File names begin with it.
        execution: its run_id and its start are `run_id` and `scanned_at` of the rows.
        committed_by: run_id of the run that committed this very work before; None where there is work.
        corpus: pictures in the references.
        index: by which each shard of them is searched.
        judge: gives the verdicts; None for none.
    """

    references: Dataset
    queries: Dataset
    out: str
    last: Dataset | None
    top_k: int
    ids: dict[str, str]
    index_id: str
    plan_id: str
    execution: Execution
    committed_by: str | None
    corpus: int
    index: str = FLAT
    judge: Judge | None = None

    @property
    def partition(self) -> str:
        """Folder of this run's files below `out`."""
        return f"scan_date={self.execution.started.date().isoformat()}"


def make(
    references: Dataset,
    queries: Dataset,
    out: str,
    top_k: int,
    execution: Execution,
    judge: Judge | None = None,
    index: str = FLAT,
) -> SearchPlan:
    """Check that two embeddings data sets can be compared, and judged so, and name the work.

    Args:
        references, queries: embeddings.
        out: URI of the matches data set.
        top_k: references kept per query.
        execution: gives new rows their run_id and time.
        judge: gives the verdicts; None for none.
        index: a name of `indexes.INDEXES`, by which the references are searched.

    Raises:
        DatasetError: their encoder, transform or preprocessing differ.
        SearchError: there is no such index.
        CalibrationError: the calibration is for other scores.
    """
    if top_k < 1:
        raise OptionError(f"top_k must be at least 1, not {top_k}")
    ids = {key: references.ids[key] for key in schemas.ROW_IDS}
    queries.check_ids(ids)
    if judge:
        judge.check_ids(ids)
    indexes.check_name(index)
    options = [judge.identity] if judge else []
    if index != FLAT:
        options.append([index])
    plan_id = datasets.digest_of(references.digest, queries.digest, top_k, ids, *options)
    last = Dataset.find_own(out)
    return SearchPlan(
        references=references,
        queries=queries,
        out=out,
        last=last,
        top_k=top_k,
        ids=ids,
        index_id=shards.index_id(references, index),
        plan_id=plan_id,
        execution=execution,
        committed_by=last.commit.run_of(plan_id) if last else None,
        corpus=references.rows,
        index=index,
        judge=judge,
    )


def finished(plan: SearchPlan) -> SearchResult | None:
    """Return the result of a plan that was committed before; None where there is something to do."""
    return result(plan, plan.last) if plan.last and plan.committed_by else None


def result(plan: SearchPlan, matches: Dataset) -> SearchResult:
    """Return the result of a plan that `matches` holds."""
    run_id = matches.commit.run_of(plan.plan_id) or plan.execution.run_id
    counts = matches.commit.counts_of(run_id, _Counts)
    return SearchResult(
        dataset=matches.of_run(run_id),
        run_id=run_id,
        plan_id=plan.plan_id,
        queries=counts.queries,
        matches=counts.matches,
        index_id=plan.index_id,
        corpus=plan.corpus,
        resumed=plan.committed_by is not None,
    )


def query_blocks(plan: SearchPlan) -> list[QueryBlock]:
    """Return every block of the queries."""
    return [QueryBlock(record, i) for record in plan.queries.files for i in range(record.row_groups)]


def search(plan: SearchPlan, block: QueryBlock, shard: shards.Shard) -> pa.Table:
    """Find the best references of a block of queries in one shard: a `shards.CANDIDATES` table."""
    queries = plan.queries.row_group(block.file, block.row_group, ["descriptor"])
    descriptors = schemas.column_to_vectors(queries["descriptor"])
    return shard.search(shards.checked(descriptors, block.file.name, plan.queries), plan.top_k)


def write_block(plan: SearchPlan, block: QueryBlock, candidates: pa.Table) -> FileRecord:
    """Judge the merged candidates of a block and write them as one file of `matches/`; return its record."""
    queries = plan.queries.row_group(block.file, block.row_group, list(shards.COLUMNS))
    constants = MatchConstants(
        encoder_id=plan.ids["encoder_id"],
        transform_id=plan.ids["transform_id"],
        index_id=plan.index_id,
        run_id=plan.execution.run_id,
        scanned_at=plan.execution.started,
    )
    table = to_matches(queries, candidates, constants)
    if plan.judge:
        table = plan.judge.judge(table, block.name, plan.corpus, _information(queries, candidates))
    return datasets.write_file(
        plan.out, f"{plan.partition}/{plan.plan_id}-{block.name}", [table], schemas.MATCHES
    )


def _information(queries: pa.Table, candidates: pa.Table) -> NDArray[np.float32]:
    """float32[n]: of each candidate, the information of the picture that shows less; NaN is not known."""
    asked = queries["information"].take(candidates["query_row"])
    both = (column.to_numpy() for column in (asked, candidates["reference_information"]))
    return np.asarray(np.fmin(*both), np.float32)


@dataclass(frozen=True)
class MatchConstants:
    """Columns of `matches/` that are the same in every row of a search."""

    encoder_id: str
    transform_id: str
    index_id: str
    run_id: str
    scanned_at: datetime


def to_matches(queries: pa.Table, candidates: pa.Table, constants: MatchConstants) -> pa.Table:
    """Return merged candidates as a `schemas.MATCHES` table, rows in their order.

    Args:
        queries: `image_id` and `uri` of the queries that `query_row` counts.
        candidates: a `shards.CANDIDATES` table.
        constants: columns that are the same in every row. Columns of neither are null: not known yet.
    """
    rows = candidates["query_row"]
    asked = queries.take(rows)
    columns = {
        "query_id": asked["image_id"],
        "query_uri": asked["uri"],
        "rank": pa.array(shards.ranks(rows.to_numpy()) + 1, pa.int32()),
        **{name: candidates[name] for name in ("score", "reference_id", "reference_uri")},
    }
    arrays = [
        columns[field.name]
        if field.name in columns
        else pa.repeat(pa.scalar(getattr(constants, field.name, None), field.type), len(rows))
        for field in schemas.MATCHES
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.MATCHES)


def commit(plan: SearchPlan, files: list[FileRecord]) -> Dataset:
    """Make this run's files part of the matches data set, unless another run committed the same work first.

    Safe to repeat. Returns the matches data set as it is now.

    Raises:
        LostRowsError: not every query has its k matches (all references, where there are fewer than k), or
            with an approximate index a query has more.
    """
    expected = plan.queries.rows * min(plan.top_k, plan.references.rows)
    matches = sum(f.rows for f in files)
    # An approximate index may find fewer references for a query than there are.
    if matches > expected or (plan.index == FLAT and matches != expected):
        raise LostRowsError(f"{matches} matches of {expected}; nothing was committed. Run again")
    counts = _Counts(matches=matches, queries=plan.queries.rows)
    return datasets.add_files(
        plan.out, "matches", plan.execution.run_id, plan.plan_id, files, dict(counts), plan.last
    )


def block_files(matches: Dataset, run_id: str) -> dict[str, FileRecord]:
    """Return the names of the query blocks that a run searched → their match files; {} for an unknown run."""
    if run_id not in matches.runs:
        return {}
    prefix = f"/{matches.commit.plan_of(run_id)}-"
    return {f.key.partition(prefix)[2]: f for f in matches.of_run(run_id).files}


def read_run(matches: Dataset, run_id: str | None = None) -> pa.Table:
    """Read the matches of one run (by default the last), ordered by query and rank.

    Raises:
        DatasetError: there is no such run.
    """
    table = matches.of_run(run_id or matches.run_id).read(schemas.MATCHES)
    return table.sort_by([("query_uri", "ascending"), ("rank", "ascending")])
