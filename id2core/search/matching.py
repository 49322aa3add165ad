"""From two embeddings data sets to `matches/`: blocks of queries against shards of references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from id2core.errors import DatasetError, LostRowsError, OptionError
from id2core.search import shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, FileRecord


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

    def judge(self, matches: pa.Table, block: str, references: int) -> pa.Table:
        """Return the matches of one block with their verdicts, rows in their order."""
        ...


@dataclass(frozen=True)
class SearchPlan:
    """A run of the search job.

    Attributes:
        references, queries: URIs of the two embeddings data sets.
        out: URI of the matches data set.
        top_k: references kept per query.
        ids: encoder_id, transform_id, preprocess_id: the same on both sides.
        index_id: names the index over the references.
        run_id: hash of all of the above and of the content of both sides.
        scanned_at: time of the run.
        done: True when this very run was committed before.
        corpus: pictures in the references.
        judge: gives the verdicts; None for none.
    """

    references: str
    queries: str
    out: str
    top_k: int
    ids: dict[str, str]
    index_id: str
    run_id: str
    scanned_at: datetime
    done: bool
    corpus: int
    judge: Judge | None = None

    @property
    def partition(self) -> str:
        """Folder of this run's files below `out`."""
        return f"scan_date={self.scanned_at.date().isoformat()}"


def make(references: str, queries: str, out: str, top_k: int, judge: Judge | None = None) -> SearchPlan:
    """Check that two embeddings data sets can be compared, and judged so, and name the run.

    Raises:
        DatasetError: one of them is incomplete, or their encoder, transform or preprocessing differ.
        CalibrationError: the calibration is for other scores.
    """
    if top_k < 1:
        raise OptionError(f"top_k must be at least 1, not {top_k}")
    reference, query = datasets.require_commit(references), datasets.require_commit(queries)
    ids = {key: reference.ids[key] for key in schemas.IDS}
    datasets.check_ids(query, ids, queries)
    if judge:
        judge.check_ids(ids)
    judged = [judge.identity] if judge else []
    run_id = datasets.digest_of(reference.digest, query.digest, top_k, ids, *judged)
    last = datasets.read_commit(out)
    return SearchPlan(
        references=references,
        queries=queries,
        out=out,
        top_k=top_k,
        ids=ids,
        index_id=shards.index_id(reference),
        run_id=run_id,
        scanned_at=datetime.now(UTC).replace(microsecond=0),
        done=last is not None and last.run_id == run_id,
        corpus=reference.rows,
        judge=judge,
    )


def query_blocks(plan: SearchPlan) -> list[QueryBlock]:
    """Every block of the queries."""
    files = datasets.require_commit(plan.queries).files
    return [QueryBlock(record, i) for record in files for i in range(record.row_groups)]


def search(plan: SearchPlan, block: QueryBlock, shard: shards.Shard) -> pa.Table:
    """The best references of a block of queries in one shard: an `index.CANDIDATES` table."""
    queries = datasets.read_file(plan.queries, block.file, ["descriptor"], block.row_group)
    return shard.search(schemas.column_to_vectors(queries["descriptor"]), plan.top_k)


def write_block(plan: SearchPlan, block: QueryBlock, candidates: pa.Table) -> FileRecord:
    """Judge and write the merged candidates of a block as one file of `matches/`; its record is returned."""
    queries = datasets.read_file(plan.queries, block.file, ["image_id", "uri"], block.row_group)
    constants: dict[str, Any] = {
        "encoder_id": plan.ids["encoder_id"],
        "transform_id": plan.ids["transform_id"],
        "index_id": plan.index_id,
        "run_id": plan.run_id,
        "scanned_at": plan.scanned_at,
    }
    table = to_matches(queries, candidates, constants)
    if plan.judge:
        table = plan.judge.judge(table, block.name, plan.corpus)
    return datasets.write_file(
        plan.out, f"{plan.partition}/{plan.run_id}-{block.name}", [table], schemas.MATCHES
    )


def to_matches(queries: pa.Table, candidates: pa.Table, constants: dict[str, Any]) -> pa.Table:
    """Merged candidates as a `tables.MATCHES` table, rows in their order.

    Args:
        queries: `image_id` and `uri` of the queries that `query_row` counts.
        candidates: an `index.CANDIDATES` table.
        constants: columns that are the same in every row; what is in neither is not known yet (null).
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
        else pa.repeat(pa.scalar(constants.get(field.name), field.type), len(rows))
        for field in schemas.MATCHES
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.MATCHES)


def commit(plan: SearchPlan, files: list[FileRecord]) -> None:
    """Make this run's files part of the matches data set. Safe to repeat.

    Raises:
        LostRowsError: not every query has its k matches (all references, where there are fewer than k).
    """
    queries = datasets.require_commit(plan.queries).rows
    expected = queries * min(plan.top_k, datasets.require_commit(plan.references).rows)
    matches = sum(f.rows for f in files)
    if matches != expected:
        raise LostRowsError(f"{matches} matches of {expected}; nothing was committed. Run again")
    datasets.add_files(plan.out, "matches", plan.run_id, files, {"matches": matches, "queries": queries})


def commit_of(out: str, run_id: str) -> Commit:
    """The matches data set reduced to the files of one run; DatasetError when it has no such run."""
    whole = datasets.require_commit(out)
    if run_id not in whole.runs:
        raise DatasetError(f"{out} has no run {run_id}; it has {', '.join(whole.runs)}")
    return replace(whole, files=tuple(f for f in whole.files if run_id in f.name))


def read_run(out: str, run_id: str | None = None) -> pa.Table:
    """The matches of one run (by default the last), ordered by query and rank."""
    commit = commit_of(out, run_id or datasets.require_commit(out).run_id)
    table = datasets.read_all(out, schemas.MATCHES, commit=commit)
    return table.sort_by([("query_uri", "ascending"), ("rank", "ascending")])
