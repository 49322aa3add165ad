"""Stage what a search makes once: candidates of a shard, rows of a block, and sorted files.

Each is a unit of work (`runs.units`). A task writes the candidates of its blocks to Parquet files, each block
in row groups of its own. A merge reads the row groups of its block from the files of all tasks. So nothing
large travels between workers, and a restarted job finds what it had.

Candidates do not depend on the run: a run takes those that a killed run with the same plan has left. Rows
name their run, so blocks and sorted files belong to one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from id2core.errors import DatasetError, LostRowsError
from id2core.runs import units
from id2core.runs.units import Record
from id2core.search import matching, shards
from id2core.search.matching import Bin, BlockResult, QueryBlock, SearchPlan, Task
from id2core.store import datasets, moves, parquet, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord

CANDIDATES: Final = "candidates"
# Rows of candidates in a row group. A block of queries has fewer, unless each query keeps very many.
_ROW_GROUP = 2**18
# Row groups to read ahead, and to merge at a time.
_AHEAD, _MERGED = 4, 16
# Pairs of a block that were scored, and its candidates.
Found = tuple[int, pa.Table]


@dataclass(frozen=True)
class Candidates:
    """Where the candidates of one shard for a block are.

    Attributes:
        pairs: how many pairs were scored.
        file: staged, with those of other blocks.
        first, row_groups: which row groups of it they are.
    """

    pairs: int
    file: FileRecord
    first: int
    row_groups: int


def search(
    plan: SearchPlan,
    task: Task,
    stream: Callable[[Task], Iterator[Found]],
    on_recorded: Callable[[int], None] = lambda blocks: None,
) -> Iterator[tuple[QueryBlock, Candidates]]:
    """Yield the candidates of each block of a task, after they are recorded.

    Args:
        plan: the search.
        task: a shard and the blocks to search in it.
        stream: searches the blocks of a task for which no attempt has left candidates, in their order.
        on_recorded: called with the number of blocks that an earlier attempt has recorded.
    """
    whole = task
    for record in units.chain(plan.place, len(whole.blocks), lambda made: _key_of(plan, whole.after(made))):
        on_recorded(record.objects)
        yield from _candidates(task, record)
        task = task.after(record.objects)
    found = stream(task) if task.blocks else iter(())
    while task.blocks:
        record = _write_some(plan, task, found, time.monotonic() + plan.record_seconds)
        yield from _candidates(task, record)
        task = task.after(record.objects)


def _key_of(plan: SearchPlan, task: Task) -> str:
    blocks = [(block.file.name, block.row_group) for block in task.blocks]
    return datasets.digest_of(CANDIDATES, plan.plan_id, [file.name for file in task.files], blocks)


def _write_some(plan: SearchPlan, task: Task, found: Iterator[Found], until: float) -> Record:
    """Write the candidates that come before a time, of at least one block, and their record."""
    key = _key_of(plan, task)
    counts: list[tuple[int, int]] = []

    def tables() -> Iterator[pa.Table]:
        for pairs, table in found:
            counts.append((pairs, -(-table.num_rows // _ROW_GROUP)))
            if table.num_rows:
                yield table
            del table  # or it would stay in memory while the next block is searched
            if time.monotonic() >= until:
                return

    uri = storage.join(plan.place, CANDIDATES)
    file = datasets.write_file(uri, f"{plan.plan_id}-{key}", tables(), shards.CANDIDATES, _ROW_GROUP)
    if not counts:
        raise LostRowsError(f"{len(task.blocks)} blocks of uploads were not searched; run again")
    return units.leave(plan.place, _record(plan, key, CANDIDATES, file, len(counts), blocks=counts))


def _record(
    plan: SearchPlan, key: str, dataset: str, file: FileRecord | None, objects: int, **notes: Any
) -> Record:
    run_id = plan.execution.run_id
    return Record(key, run_id, plan.ids, objects, dataset, file, notes={"plan_id": plan.plan_id, **notes})


def _candidates(task: Task, record: Record) -> Iterator[tuple[QueryBlock, Candidates]]:
    """Yield the candidates that a record has of the first blocks of a task."""
    if record.rows is None:
        raise ValueError("a record of candidates has a file")
    first = 0
    counts: Any = record.notes["blocks"]
    for block, (pairs, row_groups) in zip(task.blocks, counts, strict=False):
        yield block, Candidates(pairs, record.rows, first, row_groups)
        first += row_groups


def searches(plan: SearchPlan, record: Record) -> int | None:
    """Return how many blocks a record of candidates covers; None for a record of other work."""
    is_own = record.dataset == CANDIDATES and record.notes.get("plan_id") == plan.plan_id
    return record.objects if is_own else None


def recorded_block(plan: SearchPlan, block: QueryBlock) -> BlockResult | None:
    """Return the rows of a block that an attempt of the run has written; None if there are none."""
    record = units.find(plan.place, _block_key(plan, block))
    return BlockResult(block.name, _pairs_of(record), record.rows) if record else None


def merge(plan: SearchPlan, block: QueryBlock, met: int, parts: list[Candidates]) -> tuple[int, pa.Table]:
    """Merge the candidates of a block to its best, a few row groups at a time.

    Args:
        plan: the search.
        block: the queries.
        met: how many shards they are searched in.
        parts: the candidates of each shard.

    Returns:
        How many pairs were scored, and a `shards.CANDIDATES` table.

    Raises:
        LostRowsError: a shard is missing.
        DatasetError: candidates are gone or damaged.
    """
    if len(parts) != met:
        raise LostRowsError(f"{block.name} was searched in {len(parts)} shards of {met}; run again")
    places = [(part.file, part.first + i) for part in parts for i in range(part.row_groups)]
    pending: list[pa.Table] = []
    for table in in_order(places, lambda place: _read(plan, *place), _AHEAD):
        pending.append(table)
        if len(pending) == _MERGED:
            pending = [shards.merge(pending, plan.merged)]
    return sum(part.pairs for part in parts), shards.merge(pending, plan.merged)


def write_block(plan: SearchPlan, block: QueryBlock, pairs: int, candidates: pa.Table) -> BlockResult:
    """Write the rows to keep of a block's merged candidates, and their record; see `matching.write_block`."""
    result = matching.write_block(plan, block, pairs, candidates)
    units.leave(plan.place, _record(plan, _block_key(plan, block), plan.dataset, result.file, 1, pairs=pairs))
    return result


def _block_key(plan: SearchPlan, block: QueryBlock) -> str:
    return datasets.digest_of("block", plan.plan_id, plan.execution.run_id, plan.out, block.name)


def _pairs_of(record: Record) -> int:
    pairs = record.notes["pairs"]
    if not isinstance(pairs, int):
        raise ValueError("the record of a block counts its pairs")
    return pairs


def _read(plan: SearchPlan, file: FileRecord, row_group: int) -> pa.Table:
    folder = moves.staged(storage.join(plan.place, CANDIDATES))
    try:
        return parquet.read([folder], file, row_group=row_group)
    except DatasetError as error:
        raise DatasetError(
            f"{storage.join(folder, file.name)} is staged for one search, and damaged or gone: start the run "
            f"again to make it anew ({error})"
        ) from error.__cause__


def write_bin(plan: SearchPlan, chosen: Bin) -> Bin:
    """Write the rows of a bin as one sorted file, unless an attempt of the run has done so.

    See `matching.write_bin`.
    """
    names = [file.name for file in chosen.files]
    key = datasets.digest_of("bin", plan.plan_id, plan.execution.run_id, plan.out, names)
    record = units.find(plan.place, key)
    if record and record.rows:
        return chosen.holding(record.rows)
    written = matching.write_bin(plan, chosen)
    for file in written.files:
        units.leave(plan.place, _record(plan, key, plan.dataset, file, len(names)))
    return written


def delete(plan: SearchPlan, committed: Dataset) -> None:
    """Delete what a search has staged, records first, after its rows are committed."""
    staged = [
        uri for uri, record in units.staged(plan.place).items() if record.notes.get("plan_id") == plan.plan_id
    ]
    kept = {file.name for file in committed.files}
    for name in (CANDIDATES, plan.dataset):
        folder = moves.staged(storage.join(plan.place, name))
        own = (file for file in moves.names_in(folder) - kept if _is_own(plan, file))
        staged += [storage.join(folder, file) for file in own]
    units.delete(staged)


def _is_own(plan: SearchPlan, name: str) -> bool:
    return name.rpartition("/")[2].startswith(f"{plan.plan_id}-")
