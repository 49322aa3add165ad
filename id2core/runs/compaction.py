"""Merge the small files of a data set, so that readers open few large ones with rows in a useful order.

Files are merged where eight of a size have come together: a size is a power of eight MiB, so a row is written
again at most three times before its file has its final size of 64 MiB. Files are merged within a partition
and a source, never across. The rows, the digest, the runs, and the segments of the data set stay as they are.

Nothing is lost to a run that commits meanwhile: the merged file replaces its parts in the commit only if all
of them still stand there. A killed compaction leaves a file that no commit names, which `leftovers` removes.

    if compaction.needed(Dataset.open("/scan/matches")):
        compaction.compact("/scan/matches")
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Final

import pyarrow as pa

from id2core.errors import LostRowsError
from id2core.runs import units
from id2core.store import datasets, moves, parquet, schemas, storage
from id2core.store.datasets import Commit, Dataset, FileRecord

# A file of this many bytes is not merged again.
TARGET_BYTES: Final = 64 << 20
# So many files of a size are merged; each size is so many times the one before.
FANOUT: Final = 8
_SMALLEST: Final = 1 << 20
# Rows that are sorted at once, about 350 MB of `matches/`. A larger file is sorted piece by piece.
SORTED_ROWS: Final = 2 * schemas.MATCHES_ROW_GROUP
# Data sets that are compacted → columns that their rows are sorted by. Others keep the order of their files.
ORDERS: Final[dict[str, tuple[str, ...]]] = {
    schemas.EMBEDDINGS: (),
    "rejects": (),
    "matches": tuple(name for name, _ in schemas.MATCHES_ORDER),
    "runs": ("started", "run_id"),
    "ledger": ("searched_at", "run_id"),
    "segments": ("corpus", "number"),
    "verdicts": ("query_uri", "judged_at"),
    "backgrounds": ("uri",),
    "posts": ("uri",),
}
# Plans that are made while other runs supersede the files of earlier ones.
_ROUNDS: Final = 5
# A run that was taken for killed may still end by itself, and then replaces its row.
_MAY_END: Final = timedelta(days=30)


@dataclass(frozen=True)
class Compacted:
    """What a compaction did.

    Attributes:
        merged: files that were merged.
        made: files that were made of them.
        rows: rows in these.
    """

    merged: int = 0
    made: int = 0
    rows: int = 0


class _SupersededError(Exception):
    """Another run has committed in place of a file that was merged."""


def needed(dataset: Dataset) -> bool:
    """Return whether so many small files have come together that `compact` would merge some."""
    return any(_due(files) for files in _buckets(dataset, ()).values())


def compact(uri: str, *, everything: bool = False) -> Compacted:
    """Merge small files of a data set; safe to kill, to repeat, and beside other runs.

    Args:
        uri: the data set.
        everything: merge all files below 64 MiB, also where few have come together.

    Returns:
        What was done; zeros for a data set that is not there or not of a kind that is compacted.

    Raises:
        DatasetError: a file is gone or damaged.
        LostRowsError: the merged file has other rows than its parts; nothing was committed.
    """
    done = Compacted()
    for _ in range(_ROUNDS):
        dataset = Dataset.find_own(uri)
        groups = _groups(dataset, everything=everything) if dataset else []
        if dataset is None or not groups:
            break
        for group in groups:
            record = _merge(dataset, group)
            if _commit(dataset, group, record):
                done = Compacted(done.merged + len(group), done.made + 1, done.rows + record.rows)
    return done


def _groups(dataset: Dataset, *, everything: bool) -> list[list[FileRecord]]:
    """Return which files are to be merged with one another, each group into one file."""
    place, _ = moves.place_of(dataset.uri)
    records = units.staged(place).values()
    staged = {file.name for record in records for _, file in record.files}
    groups = []
    for files in _buckets(dataset, staged).values():
        groups += _cut(files if everything else _due(files))
    return groups


def _buckets(dataset: Dataset, kept: Collection[str]) -> dict[tuple[str, str], list[FileRecord]]:
    """Return the small files that may be merged with one another: by partition and source."""
    buckets: dict[tuple[str, str], list[FileRecord]] = defaultdict(list)
    if dataset.commit.dataset not in ORDERS:
        return buckets
    for file in dataset.files:
        if file.bytes < TARGET_BYTES and file.name not in kept and _is_final(dataset.commit, file):
            buckets[file.name.rpartition("/")[0], file.source].append(file)
    return buckets


def _is_final(commit: Commit, file: FileRecord) -> bool:
    """Return whether no run will replace the file: one of `runs/` is, once its execution has ended."""
    state = commit.runs.get(file.key, {})
    if commit.dataset != "runs" or file.is_merged:
        return True
    if state.get("status") != "killed":
        return state.get("status") in ("done", "failed")
    oldest = datetime.now(UTC) - _MAY_END
    return file.key < f"{oldest:%Y%m%dT%H%M%S}"


def _size(file: FileRecord) -> int:
    """Return the size of a file as a power of `FANOUT`, in MiB."""
    size, limit = 0, _SMALLEST
    while file.bytes >= limit:
        size, limit = size + 1, limit * FANOUT
    return size


def _due(files: list[FileRecord]) -> list[FileRecord]:
    """Return the files of the largest size of which enough have come together, and all smaller ones."""
    counts = Counter(map(_size, files))
    due = max((size for size, count in counts.items() if count >= FANOUT), default=-1)
    return [file for file in files if _size(file) <= due]


def _cut(files: list[FileRecord]) -> list[list[FileRecord]]:
    """Cut files into groups of at least `TARGET_BYTES`, the last aside; a single file is no group."""
    groups: list[list[FileRecord]] = [[]]
    for file in files:
        if sum(f.bytes for f in groups[-1]) >= TARGET_BYTES:
            groups.append([])
        groups[-1].append(file)
    return [group for group in groups if len(group) > 1]


def _merge(dataset: Dataset, group: list[FileRecord]) -> FileRecord:
    """Write one file of the rows of others."""
    run_ids: set[str] = set()
    counts: Counter[str] = Counter()
    read = _tables(dataset.uri, group, run_ids, counts)
    first = next(read)
    tables: Iterator[pa.Table] = chain([first], read)
    schema = first.schema
    row_group = schemas.row_group_of(schema)
    if order := ORDERS[dataset.commit.dataset]:
        keys = [(name, "ascending") for name in order]
        tables = (piece.sort_by(keys) for piece in _recut(tables, SORTED_ROWS))
    del first
    partition = group[0].name.rpartition("/")[0]
    name = f"{parquet.MERGED}{datasets.digest_of(sorted((f.key, f.rows) for f in group))}"
    key = storage.join(partition, name) if partition else name
    written = datasets.write_file(dataset.uri, key, _recut(tables, row_group), schema)
    if written.rows != sum(file.rows for file in group):
        raise LostRowsError(f"{written.rows} rows were merged of {sum(f.rows for f in group)}; run again")
    record = replace(written, source=group[0].source, bounds=_bounds(group))
    if run_ids == counts.keys():
        return record.of_segments(counts)
    return replace(record, segments=tuple(sorted(run_ids)))


def _bounds(group: list[FileRecord]) -> tuple[str, ...]:
    if not all(file.bounds for file in group):
        return ()
    return min(file.bounds[0] for file in group), max(file.bounds[1] for file in group)


def _tables(uri: str, group: list[FileRecord], run_ids: set[str], counts: Counter[str]) -> Iterator[pa.Table]:
    """Yield whole files, whose SHA-256 is checked; add the runs that have rows in them, and count these."""
    for record in group:
        table = read_whole(uri, record)
        counts.update(datasets.rows_by_run(table) if "run_id" in table.column_names else ())
        # Of backgrounds the record names the runs that added the uploads, and not those that wrote the rows.
        run_ids.update(record.segments or filter(None, counts))
        yield table
        del table


def read_whole(uri: str, record: FileRecord) -> pa.Table:
    """Read a file, whose SHA-256 is checked.

    pyarrow cannot read a column of vectors that is all null, so it is filled in.
    """
    folders = moves.folders(uri)
    schema = parquet.schema_of(folders, record)
    vectors = schemas.VECTORS & set(schema.names)
    empty = {name for name in vectors if not parquet.has_values(folders, record, name)}
    if not empty:
        return datasets.read_file(uri, record)
    datasets.verify(uri, record)
    table = datasets.read_file(uri, record, [name for name in schema.names if name not in empty])
    return schemas.completed(table, schema, None, record.rows)


def _recut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of tables in their order, so many at a time."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count < rows:
            continue
        joined = pa.concat_tables(waiting)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield joined.slice(start, rows).combine_chunks()
        waiting, count = [joined.slice(whole)], count - whole
        del joined
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def _commit(dataset: Dataset, group: list[FileRecord], record: FileRecord) -> bool:
    """Put a merged file in place of its parts; return False where one of them stands there no longer."""
    parts = {file.name for file in group}

    def change(commit: Commit | None) -> Commit:
        if commit is None or not parts <= {file.name for file in commit.files}:
            raise _SupersededError
        files = (*(file for file in commit.files if file.name not in parts), record)
        changed = replace(commit, files=files)
        return replace(changed, digests={changed.cut: commit.digest})

    try:
        datasets.update_commit(dataset.uri, change, dataset)
    except _SupersededError:
        storage.delete(storage.join(moves.staged(dataset.uri), record.name))
        return False
    return True
