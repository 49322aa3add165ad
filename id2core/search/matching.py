"""A search: blocks of uploads against shards of references, and files of what is kept of it.

Each (shard, block) gives candidates. The merged candidates of a block become rows of a product (`match_rows`
or `background_rows`). The rows of many blocks become one sorted file, and the commit adds the files.
`staging` says what of it is made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import defaults
from id2core.errors import LostRowsError, OptionError
from id2core.runs.execution import Execution
from id2core.search import indexes, scope, shards
from id2core.search.indexes import FLAT
from id2core.search.scope import Scope
from id2core.store import datasets, moves, schemas
from id2core.store.datasets import Commit, Dataset, FileRecord

# A file has this many bytes or more, where there are so many.
FILE_BYTES = 64 << 20
# Reference files of so many bytes are one shard, which a worker has in memory: their descriptors, twice. The
# larger a shard is, the fewer candidates there are to write and to merge.
SHARD_BYTES = 128 << 20
# Columns of an upload that a product may need.
QUERY_COLUMNS = (*shards.COLUMNS, "generation", "run_id")


@dataclass(frozen=True)
class QueryBlock:
    """One row group of a query file: the unit of queries."""

    file: FileRecord
    row_group: int

    @property
    def name(self) -> str:
        """A file name for the block's matches."""
        return f"{self.file.key}-{self.row_group:04d}"


class Task(NamedTuple):
    """What one worker brings together.

    Attributes:
        files: of references, which are one shard.
        blocks: of queries that it is to meet.
    """

    files: tuple[FileRecord, ...]
    blocks: tuple[QueryBlock, ...]

    def after(self, blocks: int) -> Task:
        """Return what is left of the task after so many blocks."""
        return self._replace(blocks=self.blocks[blocks:])


class Product(Protocol):
    """What a search makes of the candidates of its uploads."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows."""
        ...

    @property
    def folder(self) -> str:
        """Folder of the files below `out`, with a slash at its end; empty for `out` itself."""
        ...

    def rows(self, plan: SearchPlan, queries: pa.Table, candidates: pa.Table) -> pa.Table:
        """Return the rows that are kept of one block.

        Args:
            plan: the search.
            queries: `QUERY_COLUMNS` of the uploads that `query_row` of the candidates counts.
            candidates: a `shards.CANDIDATES` table.
        """
        ...

    def sorted(self, rows: pa.Table) -> pa.Table:
        """Return the rows of a file in its order."""
        ...

    def after(self, backgrounds: Dataset) -> Product:
        """Return the product once a search of the background is committed to a data set."""
        ...

    def is_in(self, commit: Commit) -> bool:
        """Return whether a data set has this search already, by this run or by another one since the plan."""
        ...

    def commit(self, plan: SearchPlan, files: tuple[FileRecord, ...]) -> Dataset:
        """Make the files of a search part of its data set. Safe to repeat."""
        ...


@dataclass(frozen=True)
class SearchPlan:
    """A run of the search job.

    Attributes:
        references, queries: the two embeddings data sets.
        out: URI of the data set that the rows go to.
        last: that data set as it was; None where there was none.
        scope: the pairs to score; None where there is nothing to do.
        top_k: references kept per upload.
        index: by which each shard of the references is searched.
        plan_id: names the work by its content. File names begin with it.
        execution: gives the rows their run_id and time.
        product: what the rows are.
        record_seconds: a worker records its candidates after so long.
    """

    references: Dataset
    queries: Dataset
    out: str
    last: Dataset | None
    scope: Scope | None
    top_k: int
    index: str
    plan_id: str
    execution: Execution
    product: Product
    record_seconds: float = defaults.RECORD_SECONDS

    @property
    def place(self) -> str:
        """Parent of the data set that the rows go to."""
        return moves.place_of(self.out)[0]

    @property
    def dataset(self) -> str:
        """Name of the data set that the rows go to."""
        return moves.place_of(self.out)[1]

    @property
    def has_work(self) -> bool:
        """Whether there is a pair to score."""
        return self.scope is not None and self.scope.pairs > 0

    @property
    def committed(self) -> Dataset | None:
        """The data set if it has this search by now; None if not.

        An engine that loses a machine after the commit starts the job again, and an equal search may end
        first. Either way, nothing is left of what was staged, and nothing is to be done.
        """
        held = Dataset.find_own(self.out)
        return held if held and self.product.is_in(held.commit) else None

    def after(self, backgrounds: Dataset) -> SearchPlan:
        """Return the plan once a search of the background is committed to a data set."""
        return replace(self, product=self.product.after(backgrounds))

    @property
    def todo(self) -> Scope:
        """Return the pairs to score of a plan with work."""
        if self.scope is None:
            raise ValueError("a plan without work has no scope")
        return self.scope

    @property
    def ids(self) -> dict[str, str]:
        """Return encoder_id, transform_id, preprocess_id: the same on both sides."""
        return {key: self.references.ids[key] for key in schemas.ROW_IDS}


def check_comparable(references: Dataset, queries: Dataset, top_k: int, index: str) -> dict[str, str]:
    """Return the ids that two embeddings data sets have in common.

    Raises:
        OptionError: top_k is below 1.
        DatasetError: their encoder, transform or preprocessing differ.
        SearchError: there is no such index.
    """
    if top_k < 1:
        raise OptionError(f"top_k must be at least 1, not {top_k}")
    indexes.check_name(index)
    ids = {key: references.ids[key] for key in schemas.ROW_IDS}
    queries.check_ids(ids)
    return ids


def tasks(plan: SearchPlan, blocks_each: int, shard_bytes: int = SHARD_BYTES) -> Iterator[Task]:
    """Yield each shard of the references with up to `blocks_each` query blocks that it is to meet.

    Args:
        plan: the search.
        blocks_each: blocks that one load of a shard is good for.
        shard_bytes: files of one shard have so many bytes together; a larger file is one by itself.
    """
    todo = plan.scope
    if todo is None:
        return
    queries = todo.query_files(plan.queries)
    met = (
        (tuple(file for file in queries if todo.meet(file, references)), references)
        for references in todo.reference_files(plan.references)
    )
    for files, group in groupby(met, itemgetter(0)):
        blocks = tuple(QueryBlock(file, number) for file in files for number in range(file.row_groups))
        for shard in _shards((references for _, references in group), shard_bytes):
            for start in range(0, len(blocks), blocks_each):
                yield Task(shard, blocks[start : start + blocks_each])


def _shards(files: Iterable[FileRecord], most: int) -> Iterator[tuple[FileRecord, ...]]:
    """Share out files, in their order, among shards of `most` bytes."""
    shard: list[FileRecord] = []
    for file in files:
        if shard and sum(f.bytes for f in shard) + file.bytes > most:
            yield tuple(shard)
            shard = []
        shard.append(file)
    if shard:
        yield tuple(shard)


def search(plan: SearchPlan, block: QueryBlock, shard: shards.Shard) -> tuple[int, pa.Table]:
    """Score the pairs of a block of queries and a shard that are to be scored.

    Returns:
        How many pairs were scored, and the best as a `shards.CANDIDATES` table, ordered by query_row and
        falling score.
    """
    queries = plan.queries.row_group(block.file, block.row_group, ["descriptor", "run_id"])
    descriptors = shards.checked(
        schemas.column_to_vectors(queries["descriptor"]), block.file.name, plan.queries
    )
    pairs, found = 0, []
    labels = _labels(plan, block, queries)
    classes = np.zeros(len(shard.descriptors), np.int64) if shard.classes is None else shard.classes
    for rows, columns in scope.by_references(labels, classes, plan.todo.open):
        pairs += len(rows) * len(columns)
        candidates = shard.among(columns).search(descriptors[rows], plan.top_k)
        asked = pa.array(rows.astype(np.int32)).take(candidates["query_row"])
        found.append(candidates.set_column(0, shards.CANDIDATES.field("query_row"), asked))
    return pairs, shards.merge(found, plan.top_k)


def _labels(plan: SearchPlan, block: QueryBlock, queries: pa.Table) -> NDArray[np.int64]:
    """Return the class of each upload of a block."""
    classes = plan.todo.queries
    has_own = bool(block.row_group) and block.file.name in classes.own
    groups = plan.queries.row_group_rows(block.file) if has_own else []
    first = sum(groups[: block.row_group])
    return classes.labels(block.file.name, queries["run_id"], first)


def load_shard(plan: SearchPlan, files: Sequence[FileRecord]) -> shards.Shard:
    """Build the shard of some files of references.

    Raises:
        DatasetError: a descriptor is not finite, or longer than 1.
    """
    return shards.load(plan.references, files, plan.index, plan.todo.references)


@dataclass(frozen=True)
class BlockResult:
    """What a block of queries gave.

    Attributes:
        block: its name.
        pairs: how many pairs were scored.
        file: its rows; None where none was kept.
    """

    block: str
    pairs: int
    file: FileRecord | None


def write_block(plan: SearchPlan, block: QueryBlock, pairs: int, candidates: pa.Table) -> BlockResult:
    """Write what is kept of the merged candidates of a block.

    Raises:
        LostRowsError: an upload has fewer candidates than it must have.
    """
    queries = plan.queries.row_group(block.file, block.row_group, list(QUERY_COLUMNS))
    _check_depth(plan, block, queries, candidates)
    rows = plan.product.rows(plan, queries, candidates)
    file = _write(plan, block.name, rows) if rows.num_rows else None
    return BlockResult(block.name, pairs, file)


def _write(plan: SearchPlan, name: str, rows: pa.Table) -> FileRecord:
    key = f"{plan.product.folder}{plan.plan_id}-{name}"
    schema = plan.product.schema
    return datasets.write_file(plan.out, key, [rows], schema, schemas.row_group_of(schema))


def _check_depth(plan: SearchPlan, block: QueryBlock, queries: pa.Table, candidates: pa.Table) -> None:
    """Raise LostRowsError unless each upload has its k matches, or all references where there are fewer.

    An approximate index may find fewer.
    """
    depth = np.append(plan.todo.depth(plan.top_k), 0)[_labels(plan, block, queries)]
    held = np.bincount(candidates["query_row"].to_numpy(), minlength=len(depth))
    if (held > depth).any() or (plan.index == FLAT and (held != depth).any()):
        raise LostRowsError(
            f"{held.sum()} matches of {depth.sum()} in {block.name}; nothing was committed. Run again"
        )


@dataclass(frozen=True)
class Bin:
    """Blocks whose matches become one file; `pairs` is how many pairs these blocks scored."""

    number: int
    pairs: int
    files: tuple[FileRecord, ...]

    def holding(self, file: FileRecord) -> Bin:
        """Return the bin with one file in place of those of its blocks."""
        return replace(self, files=(file,))


def bins(blocks: Iterable[BlockResult]) -> list[Bin]:
    """Share out blocks, in their order, among files of `FILE_BYTES` or more; one bin where there is none."""
    made: list[Bin] = []
    pairs, files = 0, []
    for block in sorted(blocks, key=lambda b: b.block):
        pairs += block.pairs
        files += [block.file] if block.file else []
        if sum(file.bytes for file in files) >= FILE_BYTES:
            made.append(Bin(len(made), pairs, tuple(files)))
            pairs, files = 0, []
    if pairs or files or not made:
        made.append(Bin(len(made), pairs, tuple(files)))
    return made


def write_bin(plan: SearchPlan, chosen: Bin) -> Bin:
    """Write the rows of a bin as one sorted file, and return the bin with this file alone."""
    if not chosen.files:
        return chosen
    rows = pa.concat_tables(datasets.read_each(plan.out, chosen.files, None))
    return chosen.holding(_write(plan, f"{chosen.number:04d}", plan.product.sorted(rows)))


def without_work(plan: SearchPlan) -> Dataset | None:
    """Return the data set of a plan that has no pair to score; None where there is something to do.

    That nothing is left is committed where the data set does not say so yet.
    """
    if plan.scope is None and plan.last:
        return plan.last
    return None if plan.has_work else plan.product.commit(plan, ())


def commit(plan: SearchPlan, written: Iterable[Bin]) -> Dataset:
    """Add the files of a search to its data set. Safe to repeat.

    Args:
        plan: the search.
        written: bins with their one file.

    Raises:
        LostRowsError: fewer or more pairs were scored than planned.
        StoreUnavailableError: another run has searched something else meanwhile.
    """
    made = list(written)
    pairs = sum(chosen.pairs for chosen in made)
    if pairs != plan.todo.pairs:
        if committed := plan.committed:
            return committed
        raise LostRowsError(
            f"{pairs} pairs of {plan.todo.pairs} were scored; nothing was committed. Run again"
        )
    return plan.product.commit(plan, tuple(file for chosen in made for file in chosen.files))
