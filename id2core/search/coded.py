"""Search a shard by the codes of a compressed index, and score what it finds exactly.

A shard in memory is nothing but codes. The best of an upload by codes are scored by their stored descriptors,
which are read file by file for many uploads at once. Ids are read at the end, of the few that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import DatasetError, SearchError
from id2core.runs import codes
from id2core.runs.codes import IndexFacts
from id2core.runs.histories import Classes
from id2core.search import compressed, index_strings, scoring, shards
from id2core.search.compressed import CodeIndex, Model
from id2core.search.index_strings import Compressed
from id2core.store import schemas
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord

# Files whose candidates are scored at once.
READERS: Final = 2
# What it costs to score a candidate exactly, in rows that are read in that time, and candidates that are all
# scored exactly at most: their ids are in memory at once.
_ROWS_READ: Final = 4
_MOST_NAMED: Final = 2**18
_NOTHING: Final = np.float32(-np.inf)


@dataclass(frozen=True)
class CodedReferences:
    """References, and the index beside them.

    Attributes:
        references: their embeddings.
        index: the data set of the index, with the codes of all their files.
    """

    references: Dataset
    index: Dataset

    @property
    def facts(self) -> IndexFacts:
        """How the index is searched, and what it finds. Raises DatasetError where it does not say."""
        with _damage(self.index):
            return codes.facts_of(self.index)

    @property
    def form(self) -> Compressed:
        """The index by its string."""
        return index_strings.parse(self.index.ids[codes.STRING])

    @property
    def name(self) -> str:
        """Names the index: its string and its model."""
        return f"{self.form.text}@{self._model_file.key.rpartition('-')[2][:8]}"

    @cached_property
    def _model_file(self) -> FileRecord:
        model = codes.model_of(self.index)
        if model is None:
            raise DatasetError(f"{self.index.uri} has no model: build the index again")
        return model

    @property
    def index_id(self) -> str:
        """Names the index over these references: its string, its model, and the digest of the data set."""
        return shards.index_id(self.references, self.name)

    def row_bytes(self, descriptor_size: int) -> int:
        """Return the bytes that a reference takes in the memory of a worker."""
        return self.form.row_bytes(descriptor_size)

    def check(self) -> None:
        """Raise SearchError unless the index has codes of exactly the files of the references."""
        if problem := self.problem:
            raise SearchError(
                f"{self.index.uri} {problem}: run id2 index --index {self.form.text} with the --out that "
                "they are in"
            )

    @property
    def problem(self) -> str:
        """What the index lacks for a search of the references; empty for nothing.

        Raises:
            DatasetError: it has no model, or does not say how it is searched.
        """
        missing = [f for f in self.references.files if codes.key_of(f, self._model_file) not in self._codes]
        if not (self.facts.probes and self.facts.depth):
            raise DatasetError(f"{self.index.uri} does not say how it is searched: {compressed.REBUILD}")
        is_of_others = self.index.ids != codes.ids_of(self.references, self.form.text)
        if not (self.references.only_run or missing or is_of_others):
            return ""
        files = "1 file" if len(missing) == 1 else f"{len(missing):,} files"
        what = files if missing else "descriptors like those"
        return f"lacks codes of {what} of {self.references.uri}"

    @property
    def surplus(self) -> str:
        """What the index has beside codes of the references, which a search ignores; empty for nothing."""
        own = {codes.key_of(file, self._model_file) for file in self.references.files}
        count = len(self._codes.keys() - own)
        files = "1 file" if count == 1 else f"{count:,} files"
        return f"has codes of {files} that left {self.references.uri}" if count else ""

    def model(self) -> Model:
        """Read the model. Raises DatasetError where it is gone or damaged."""
        with _damage(self.index):
            data = codes.read_model(self.index.uri, self._model_file)
        return compressed.load(self.form, shards.descriptor_size(self.references), data)

    @property
    def code_files(self) -> list[FileRecord]:
        """The files of codes."""
        return list(self._codes.values())

    @cached_property
    def _codes(self) -> dict[str, FileRecord]:
        return codes.coded(self.index, self._model_file)

    def read(self, file: FileRecord) -> NDArray[np.uint8]:
        """Return the codes of a file of references, uint8[rows, stored_bytes], in its order.

        Raises:
            DatasetError: they are gone, damaged, or missing.
        """
        record = self._codes.get(codes.key_of(file, self._model_file))
        if record is None or record.rows != file.rows:
            raise DatasetError(f"{self.index.uri} has no codes of {file.name}: {compressed.REBUILD}")
        with _damage(self.index):
            column = self.index.read_file(record, ["code"])["code"]
        if (held := schemas.column_to_bytes(column)) is None or not held.size:
            raise DatasetError(
                f"{self.index.uri}/{record.name} has codes of several lengths: {compressed.REBUILD}"
            )
        return held


@contextmanager
def _damage(index: Dataset) -> Iterator[None]:
    """Say of files that are gone or damaged how an index is mended."""
    try:
        yield
    except DatasetError as error:
        cause = str(error).partition(";")[0]
        raise DatasetError(f"{cause}. To mend the index {index.uri}, {compressed.REBUILD}") from error


@dataclass(frozen=True)
class CodedShard:
    """Some files of references that are searched at once by their codes; see `shards.Shard`.

    Attributes:
        coded: the references.
        files: which files of them.
        classes: int64[N], of each row; None where all are alike.
        rows: int64[n], ascending: which rows of the files; None for all.
    """

    coded: CodedReferences
    files: tuple[FileRecord, ...]
    classes: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.rows is None else len(self.rows)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(file.rows for file in self.files)])

    def prepare(self) -> None:
        """Read the codes, if nothing has yet."""
        _ = self.index

    @cached_property
    def index(self) -> CodeIndex:
        """The index over the codes; it is built when it is first asked for."""
        return self.coded.model().over(self._read_codes())

    def _read_codes(self) -> Iterator[NDArray[np.uint8]]:
        read = zip(self.files, in_order(self.files, self.coded.read, shards.READERS), strict=True)
        for number, (file, held) in enumerate(read):
            if self.rows is None:
                yield held
                continue
            first = self._starts[number]
            own = self.rows[np.searchsorted(self.rows, first) : np.searchsorted(self.rows, first + file.rows)]
            yield held[own - first]

    @cached_property
    def _smaller(self) -> dict[bytes, CodedShard]:
        return {}

    def among(self, rows: NDArray[np.int64]) -> CodedShard:
        """Return the shard of some rows, int64[n], ascending."""
        if len(rows) == len(self):
            return self
        key = rows.tobytes()
        if key not in self._smaller:
            self._smaller.clear()
            self._smaller[key] = CodedShard(self.coded, self.files, rows=rows)
        return self._smaller[key]

    def search(self, queries: NDArray[np.float32], k: int) -> pa.Table:
        """Return the k best references of each query among those that the index finds.

        Args:
            queries: float32[Q,m], rows of length 1.
            k: how many.

        Returns:
            A `shards.CANDIDATES` table, ordered by query_row and falling score, equal scores by id and URI.
            Scores are exact.

        Raises:
            DatasetError: a file is gone or damaged.
        """
        if not len(self) or not len(queries):
            return shards.CANDIDATES.empty_table()
        found = self._find(queries, k)
        if found.size > min(len(self) // _ROWS_READ, _MOST_NAMED):
            found = self._best(queries, found, k)  # reads the files once more
        parts = self._by_file(found)
        tables = in_order(parts, partial(self._named, queries), READERS)
        return shards.merge(list(tables), k)

    def _find(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the rows of the files that the index finds, int64[Q,depth], below 0 where it found fewer."""
        facts = self.coded.facts
        depth = min(max(facts.depth, k), len(self))
        _, found = self.index.search(queries, depth, facts.probes)
        if self.rows is None:
            return found
        return np.where(found >= 0, self.rows[np.maximum(found, 0)], found)

    def _best(self, queries: NDArray[np.float32], found: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return the rows found that may be among the k best, and -1 in place of the others, int64[Q,depth].

        These are scored in float32: what is as good as the k-th but for rounding stays.
        """
        scores = np.full(found.size, _NOTHING)

        def fill(part: _Part) -> None:
            vectors, _ = self._read(part.file)
            scores[part.places] = compressed.scores(queries, part.queries, vectors, part.rows)

        for _ in in_order(self._by_file(found), fill, READERS):
            pass
        table = scores.reshape(found.shape)
        last = min(k, found.shape[1]) - 1
        kth = -np.partition(-table, last, axis=1)[:, [last]]
        reach = kth - 2 * scoring.tolerance(queries.shape[1])
        return np.where((found >= 0) & (table >= reach), found, -1)

    def _read(self, file: FileRecord, beside: Sequence[str] = ()) -> tuple[NDArray[np.float32], pa.Table]:
        """Return the descriptors of a file, float32[rows,m], and other columns."""
        references = self.coded.references
        held = np.empty((file.rows, shards.descriptor_size(references)), np.float32)
        table = references.read_vectors(file, "descriptor", held, beside)
        return shards.checked(held, file.name, references), table

    def _named(self, queries: NDArray[np.float32], part: _Part) -> pa.Table:
        """Return candidates of a file with exact scores and ids, as a `shards.CANDIDATES` table."""
        vectors, table = self._read(part.file, shards.COLUMNS)
        scores = scoring.dots(queries, part.queries, vectors, part.rows)
        ids = table.take(pa.array(part.rows))
        numbers = pa.array(part.queries.astype(np.int32)), pa.array(scores)
        nothing = pa.nulls(len(ids), pa.string()), pa.nulls(len(ids), pa.float32())
        columns = [*numbers, *(ids[name] for name in shards.COLUMNS), *nothing]
        return pa.Table.from_arrays(columns, schema=shards.CANDIDATES)

    def _by_file(self, found: NDArray[np.int64]) -> Iterator[_Part]:
        """Share out rows of the files, of which some are below 0, among the files that they are in."""
        flat = found.reshape(-1)
        order = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat, self._starts, sorter=order)
        pieces = zip(self.files, self._starts[:-1], bounds[:-1], bounds[1:], strict=True)
        for file, start, first, end in pieces:
            if end > first:
                places = order[first:end]
                yield _Part(file, places, places // found.shape[1], flat[places] - start)


@dataclass(frozen=True)
class _Part:
    """Candidates that are in one file.

    Attributes:
        file: of references.
        places: int64[P], among all candidates.
        queries: int64[P], whose they are.
        rows: int64[P], in the file.
    """

    file: FileRecord
    places: NDArray[np.int64]
    queries: NDArray[np.int64]
    rows: NDArray[np.int64]


def load(coded: CodedReferences, files: Sequence[FileRecord], classes: Classes | None = None) -> CodedShard:
    """Build the shard of some files of references, at least one.

    Args:
        coded: the references.
        files: which files.
        classes: of the rows; None where they do not matter.

    Raises:
        DatasetError: the files are not those that the index has codes of.
    """
    labels = None
    if classes is not None:
        runs = in_order(files, lambda file: coded.references.read_file(file, ["run_id"]), shards.READERS)
        named = zip(files, runs, strict=True)
        labels = np.concatenate([classes.labels(file.name, table["run_id"]) for file, table in named])
    shard = CodedShard(coded, tuple(files), labels)
    shard.prepare()
    return shard
