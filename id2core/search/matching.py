"""A search: blocks of uploads against shards of references, and files of what is kept of it.

Each (shard, block) gives candidates. The merged candidates of a block become rows of a product (`match_rows`
or `background_rows`). The rows of many blocks become one sorted file, and the commit adds the files.
`staging` says what of it is made once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import defaults
from id2core.errors import LostRowsError, OptionError
from id2core.runs.execution import Execution
from id2core.search import chance, coded, cuts, indexes, scope, shards, viewed, viewed_rows
from id2core.search.coded import CodedReferences, CodedShard
from id2core.search.indexes import FLAT
from id2core.search.looks import WHOLE_ONLY, Looks, ViewPlan
from id2core.search.scope import Scope
from id2core.store import datasets, moves, parquet, schemas
from id2core.store.ahead import in_order
from id2core.store.datasets import Commit, Dataset, FileRecord

T = TypeVar("T")

# A file has this many bytes or more, where there are so many.
FILE_BYTES = 64 << 20
# Blocks of a task: each has row groups of its own among the candidates.
BLOCKS_PER_LOAD = 1024
# Queries that are multiplied with a shard at once, if their blocks are small.
QUERIES_AT_ONCE = 4096
# Blocks to read ahead.
_AHEAD = 4
# Columns of an upload that a product may need.
QUERY_COLUMNS = (
    *shards.COLUMNS,
    "inset_information",
    "generation",
    "run_id",
    *(name for name, _ in schemas.CREDENTIALS),
)


@dataclass(frozen=True)
class QueryBlock:
    """One row group of a query file: the unit of queries."""

    file: FileRecord
    row_group: int

    @property
    def rows(self) -> int:
        """About how many uploads it has."""
        return -(-self.file.rows // self.file.row_groups)

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
        shard_bytes: of references that a worker holds at once.
        coded: the references with their compressed index; None for an index over descriptors.
        views: under which uploads are looked at; None for the whole alone.
        depth: candidates of an upload that are merged, of which the product keeps `top_k` or fewer.
        is_background: whether the references are a background.
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
    shard_bytes: int = defaults.SHARD_MEMORY << 20
    coded: CodedReferences | None = None
    views: ViewPlan | None = None
    depth: int = 0
    is_background: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes that a reference takes in the memory of a worker."""
        size = shards.descriptor_size(self.references)
        if self.coded:
            return self.coded.row_bytes(size)
        rows = viewed_rows.row_bytes(_latent_size(self.references)) if self.with_rows else 0
        return cuts.row_bytes(size) + rows

    @property
    def with_rows(self) -> bool:
        """Whether looks meet more of a reference than its descriptor: codes are of descriptors alone."""
        return self.views is not None and self.coded is None and self.views.load().has_rows

    @property
    def merged(self) -> int:
        """Candidates of an upload that are merged."""
        return max(self.top_k, self.depth)

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


def tasks(plan: SearchPlan, spread: int = 1, queries_each: int = cuts.QUERIES_PER_LOAD) -> list[Task]:
    """Cut a search into tasks of about the same work, as `cuts.counts` says.

    Args:
        plan: the search.
        spread: how many tasks are wanted, so that every worker has its share.
        queries_each: that one load of a shard is good for.
    """
    if not plan.has_work:
        return []
    todo = plan.todo
    row_bytes = plan.row_bytes
    queries = todo.query_files(plan.queries)
    met_by = functools.cache(lambda classes: tuple(file for file in queries if todo.meet(file, classes)))
    met = (
        (met_by(tuple(todo.references.in_file[references.name].tolist())), references)
        for references in todo.reference_files(plan.references)
    )
    made: list[Task] = []
    for files, group in groupby(met, itemgetter(0)):
        if not files:  # its classes are wanted, but not by the uploads of any file
            continue
        blocks = [QueryBlock(file, number) for file in files for number in range(file.row_groups)]
        references = [references for _, references in group]
        made += _cut(plan, row_bytes, references, blocks, spread, queries_each)
    return made


def _cut(
    plan: SearchPlan,
    row_bytes: int,
    references: Sequence[FileRecord],
    blocks: Sequence[QueryBlock],
    spread: int,
    queries_each: int,
) -> Iterator[Task]:
    """Yield the tasks of references and queries that all meet each other; see `tasks`."""
    held, asked = [file.rows for file in references], [block.rows for block in blocks]
    count, parts = cuts.counts(sum(held), sum(asked), row_bytes, plan.shard_bytes, spread, queries_each)
    room = min(plan.shard_bytes // row_bytes, sum(held) // count + max(held))
    each = sum(asked) // parts + max(asked)
    for shard in _groups(references, held, room, len(references)):
        for some in _groups(blocks, asked, each, BLOCKS_PER_LOAD):
            yield Task(shard, some)


def _groups(items: Sequence[T], sizes: Sequence[int], most: int, count: int) -> Iterator[tuple[T, ...]]:
    """Cut items, in their order, into groups of `most` in size, or of one item, and of `count` items."""
    group: list[T] = []
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if group and (held + size > most or len(group) == count):
            yield tuple(group)
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield tuple(group)


def search(
    plan: SearchPlan, blocks: Sequence[QueryBlock], shard: shards.Shard | CodedShard
) -> Iterator[tuple[int, pa.Table]]:
    """Score the pairs of blocks of queries and a shard that are to be scored.

    Yields:
        For each block how many pairs were scored, and the best as a `shards.CANDIDATES` table, ordered by
        query_row and falling score.
    """
    at_once = cuts.CODED_QUERIES_AT_ONCE if plan.coded else QUERIES_AT_ONCE
    for some in _groups(blocks, [block.rows for block in blocks], at_once, len(blocks)):
        yield from _search_together(plan, some, shard)


def _search_together(
    plan: SearchPlan, blocks: Sequence[QueryBlock], shard: shards.Shard | CodedShard
) -> Iterator[tuple[int, pa.Table]]:
    """Search blocks by one product with the shard: see `search`."""
    read = list(in_order(blocks, partial(_read_queries, plan), _AHEAD))
    starts = np.cumsum([0, *(len(labels) for _, labels in read)])
    asked = Looks.together([looks for looks, _ in read])
    labels = np.concatenate([each for _, each in read])
    pairs, found = np.zeros(len(blocks), np.int64), []
    classes = np.zeros(len(shard), np.int64) if shard.classes is None else shard.classes
    for rows, columns in scope.by_references(labels, classes, plan.todo.open):
        block_of = np.searchsorted(starts, rows, "right") - 1
        pairs += np.bincount(block_of, minlength=len(blocks)) * len(columns)
        candidates = _meet(plan, shard.among(columns), asked.of(rows))
        uploads = pa.array(rows.astype(np.int32)).take(candidates["query_row"])
        found.append(candidates.set_column(0, shards.CANDIDATES.field("query_row"), uploads))
    merged = shards.merge(found, plan.merged) if len(found) != 1 else found[0]
    query_rows = merged["query_row"].to_numpy()
    cuts = np.searchsorted(query_rows, starts)
    for number, (first, end) in enumerate(pairwise(cuts)):
        own = pa.array(query_rows[first:end] - np.int32(starts[number]))
        rows_of = merged.slice(first, end - first)
        yield int(pairs[number]), rows_of.set_column(0, shards.CANDIDATES.field("query_row"), own)


def _meet(plan: SearchPlan, shard: shards.Shard | CodedShard, asked: Looks) -> pa.Table:
    """Return the best references of uploads in a shard."""
    if plan.views is None:
        return shard.search(asked.descriptors, plan.merged)
    if isinstance(shard, CodedShard):
        return viewed.search_coded(shard, asked, plan.merged)
    return viewed.search(shard, asked, plan.merged)


def _read_queries(plan: SearchPlan, block: QueryBlock) -> tuple[Looks, NDArray[np.int64]]:
    """Return the looks at the n uploads of a block, and their classes int64[n]."""
    views = plan.views.load() if plan.views else WHOLE_ONLY
    views = views.of_wholes if plan.is_background else views
    columns = ["descriptor", "run_id", *views.columns]
    queries = plan.queries.row_group(block.file, block.row_group, columns)
    vectors = schemas.column_to_vectors(queries["descriptor"])
    descriptors = shards.checked(vectors, block.file.name, plan.queries)
    return chance.looks_of(views, queries, descriptors), _labels(plan, block, queries)


def _latent_size(references: Dataset) -> int:
    schema = parquet.schema_of(moves.folders(references.uri), references.files[0])
    return int(schema.field("latent").type.list_size)


def _labels(plan: SearchPlan, block: QueryBlock, queries: pa.Table) -> NDArray[np.int64]:
    """Return the class of each upload of a block."""
    classes = plan.todo.queries
    has_own = bool(block.row_group) and block.file.name in classes.own
    groups = plan.queries.row_group_rows(block.file) if has_own else []
    first = sum(groups[: block.row_group])
    return classes.labels(block.file.name, queries["run_id"], first)


def load_shard(plan: SearchPlan, files: Sequence[FileRecord]) -> shards.Shard | CodedShard:
    """Build the shard of some files of references.

    Raises:
        DatasetError: a descriptor is not finite, or longer than 1.
    """
    classes = plan.todo.references
    if plan.coded:
        return coded.load(plan.coded, files, classes)
    return shards.load(plan.references, files, plan.index, classes, with_rows=plan.with_rows)


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
    return datasets.write_file(plan.out, key, [rows], schema)


def _check_depth(plan: SearchPlan, block: QueryBlock, queries: pa.Table, candidates: pa.Table) -> None:
    """Raise LostRowsError unless each upload has its k matches, or all references where there are fewer.

    An approximate index may find fewer.
    """
    depth = np.append(plan.todo.depth(plan.merged), 0)[_labels(plan, block, queries)]
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
