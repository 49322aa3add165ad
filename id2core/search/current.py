"""The matches of what stands now: of all runs, with ranks over all of them.

The rows of `matches/` are facts of single searches. Here are those whose upload and reference stand in their
corpora, put together by upload. `infra/sql/` has the same as views for dashboards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.runs.keys import KEY, row_keys
from id2core.search import shards
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset, FileRecord

# Rows that are put together at once, 1 kB each at most.
ROWS_AT_ONCE = 500_000
_UPLOAD = ["query_uri", "query_generation"]
VERDICT_COLUMNS = ("verdict", "verdict_reason", "false_positive_rate", "calibration_id")
_KEYS = (*schemas.PAIR, "rank", "score", "reference_uri", "run_id")
_ORDER = [
    ("query_uri", "ascending"),
    ("query_generation", "ascending"),
    ("score", "descending"),
    ("reference_id", "ascending"),
]


@dataclass(frozen=True)
class CurrentMatches:
    """The matches of what stands in two corpora.

    Attributes:
        matches: of all runs.
        references, queries: embeddings data sets, as they are now.
        top_k: matches of an upload, the best.
        run_ids: only pairs that these runs found; None for all.
        verdicts: later verdicts of pairs, of which the newest counts; None where there are none.
        calibration_id: other verdicts are left out, and so are normalized scores without a calibration.
        further: references and queries of further channels. Ranks are those in one channel.
    """

    matches: Dataset
    references: Dataset
    queries: Dataset
    top_k: int
    run_ids: frozenset[str] | None = None
    verdicts: Dataset | None = None
    calibration_id: str | None = None
    further: tuple[tuple[Dataset, Dataset], ...] = ()

    def tables(self, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
        """Yield matches, all those of an upload in one table, ordered by channel, upload and rank.

        Args:
            columns: of `schemas.MATCHES`; by default all.

        Raises:
            DatasetError: a file is gone or damaged.
        """
        wanted = list(columns) if columns is not None else schemas.MATCHES.names
        verdicts = [] if set(VERDICT_COLUMNS).isdisjoint(wanted) else VERDICT_COLUMNS
        read = list(dict.fromkeys([*wanted, *_KEYS, *verdicts]))
        files = [f for f in self.matches.files if self._may_have(f)]
        number = max(1, -(-sum(file.rows for file in files) // ROWS_AT_ONCE))
        with tempfile.TemporaryDirectory() as folder:
            seen = [_Seen() for _ in self._corpora]
            parts = _by_upload(self._chosen(files, read, seen), number, Path(folder, "matches"))
            judged = _by_upload(self._later_verdicts(), number, Path(folder, "verdicts"))
            for table, later in zip(parts, judged, strict=True):
                # All rows have been seen once the first part is there.
                own = [self._current(table, later, place, one) for place, one in enumerate(seen)]
                current = pa.concat_tables(own)
                if current.num_rows:
                    yield current.select(wanted)

    def _may_have(self, file: FileRecord) -> bool:
        return self.run_ids is None or any(file.may_have(run_id) for run_id in self.run_ids)

    @property
    def _corpora(self) -> list[tuple[Dataset, Dataset]]:
        """Return references and queries of each channel."""
        return [(self.references, self.queries), *self.further]

    def _current(self, table: pa.Table, later: pa.Table, place: int, seen: _Seen) -> pa.Table:
        """Return the current rows of the channel with a place in `_corpora`."""
        rows = _of_ids(table, self._corpora[place][0]) if self.further else table
        standing = self._standing(rows, place, seen)
        if not standing.num_rows:
            return standing
        return self._ranked(self._judged(standing, later), place)

    def _later_verdicts(self) -> Iterator[pa.Table]:
        yield schemas.VERDICTS.empty_table()
        yield from self.verdicts.tables() if self.verdicts else ()

    def _judged(self, table: pa.Table, later: pa.Table) -> pa.Table:
        """Return rows with the newest verdict of each pair, and without verdicts of other calibrations."""
        names = [name for name in VERDICT_COLUMNS if name in table.column_names]
        columns = {name: table[name] for name in names}
        if names and later.num_rows:
            known, newest = _newest(later, table)
            columns = {name: pc.if_else(known, newest[name], table[name]) for name in names}
        if names:
            own = pc.equal(columns["calibration_id"], self.calibration_id or "")
            own = pc.fill_null(own, False)
            columns = {name: pc.if_else(own, c, pa.scalar(None, c.type)) for name, c in columns.items()}
        if self.calibration_id is None:
            nothing = pa.nulls(table.num_rows, pa.float32())
            columns |= {"background": nothing, "normalized_score": nothing}
        arrays = [columns.get(name, table[name]) for name in table.column_names]
        return pa.Table.from_arrays(arrays, schema=table.schema)

    def read(self, columns: Iterable[str] | None = None) -> pa.Table:
        """Return all matches as one table, ordered by upload and rank; see `tables`."""
        wanted = list(columns) if columns is not None else schemas.MATCHES.names
        tables = [schemas.MATCHES.empty_table().select(wanted), *self.tables(wanted)]
        return pa.concat_tables(tables).sort_by(
            [(n, "ascending") for n in ("query_uri", "rank", "channel") if n in wanted]
        )

    def _chosen(
        self, files: Sequence[FileRecord], columns: list[str], seen: list[_Seen]
    ) -> Iterator[pa.Table]:
        """Yield the rows of the run and the ids, file by file, and remember what they are of."""
        yield schemas.MATCHES.empty_table().select(columns)
        for table in datasets.read_each(self.matches.uri, files, columns):
            if self.run_ids is not None:
                own = pa.array(sorted(self.run_ids), pa.string())
                table = table.filter(pc.is_in(table["run_id"].cast(pa.string()), value_set=own))
            for (references, _), one in zip(self._corpora, seen, strict=True):
                own = _of_ids(table, references)
                one.add(own)
                yield own

    def _standing(self, table: pa.Table, place: int, seen: _Seen) -> pa.Table:
        """Return the rows of a channel whose upload and reference stand in its corpora."""
        if place not in self._found:
            references, queries = self._corpora[place]
            self._found[place] = _Pictures.find(references, seen.pictures), _Uploads.find(queries, seen)
        pictures, uploads = self._found[place]
        keep = pictures.has(table["reference_id"])
        if keep.any():
            keep &= uploads.has(table.select(_UPLOAD))
        return table.filter(pa.array(keep))

    def _ranked(self, table: pa.Table, place: int) -> pa.Table:
        """Return the best rows of each upload, ranked anew, each with a URI where its reference is."""
        ordered = table.sort_by(_ORDER)
        keys = row_keys(ordered.select(_UPLOAD))
        starts = np.cumsum(np.append(False, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
        ranks = shards.ranks(starts) + 1
        kept = ordered.filter(pa.array(ranks <= self.top_k))
        columns = {
            "rank": pa.array(ranks[ranks <= self.top_k], pa.int32()),
            "reference_uri": self._found[place][0].uris(kept["reference_id"]),
        }
        arrays = [columns.get(name, kept[name]) for name in kept.column_names]
        return pa.Table.from_arrays(arrays, schema=kept.schema)

    @cached_property
    def _found(self) -> dict[int, tuple[_Pictures, _Uploads]]:
        """What stands of all that was seen, by channel: every reading of the matches asks for the same."""
        return {}


def _of_ids(table: pa.Table, references: Dataset) -> pa.Table:
    """Return the rows of `matches/` that a corpus was searched for."""
    for name in ("encoder_id", "transform_id"):
        table = table.filter(pc.equal(table[name], references.ids[name]))
    return table


class _Seen:
    """Of which uploads and pictures the rows are that were read.

    Attributes:
        uploads: keys of uploads.
        bounds: the least and the greatest URI of an upload; empty without rows.
    """

    def __init__(self) -> None:
        self.uploads = np.empty(0, KEY)
        self.bounds: tuple[str, ...] = ()
        self._pictures: list[pa.ChunkedArray] = []

    def add(self, rows: pa.Table) -> None:
        """Remember rows."""
        if not rows.num_rows:
            return
        self._pictures.append(rows["reference_id"].unique())
        distinct = rows.group_by(_UPLOAD).aggregate([])
        self.uploads = np.union1d(self.uploads, row_keys(distinct.select(_UPLOAD)))
        extremes = pc.min_max(distinct["query_uri"]).as_py()
        known = [*self.bounds, extremes["min"], extremes["max"]]
        self.bounds = min(known), max(known)

    @property
    def pictures(self) -> pa.Array:
        """The image_ids of the pictures, each once."""
        return pa.chunked_array(self._pictures, pa.string()).unique()


def _newest(later: pa.Table, pairs: pa.Table) -> tuple[pa.Array, pa.Table]:
    """Return which pairs have a later verdict, bool[n], and n rows: theirs, or any others."""
    ordered = later.sort_by([("judged_at", "descending"), ("run_id", "descending")])
    keys, first = np.unique(row_keys(ordered.select(schemas.PAIR)), return_index=True)
    own = row_keys(pairs.select(schemas.PAIR))
    places = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
    return pa.array(keys[places] == own), ordered.take(pa.array(first[places]))


@dataclass(frozen=True)
class _Pictures:
    """Reference pictures that were matched and stand in the corpus.

    Attributes:
        ids: their image_id.
        places: of each the first URI.
    """

    ids: pa.Array
    places: pa.Array

    @staticmethod
    def find(references: Dataset, ids: pa.Array) -> _Pictures:
        """Look for pictures in a corpus."""
        tables = references.tables(["image_id", "uri"]) if len(ids) else ()
        standing = [table.filter(pc.is_in(table["image_id"], value_set=ids)) for table in tables]
        if not standing:
            return _Pictures(*(pa.array([], pa.string()),) * 2)
        first = pa.concat_tables(standing).group_by("image_id").aggregate([("uri", "min")])
        return _Pictures(first["image_id"].combine_chunks(), first["uri_min"].combine_chunks())

    def has(self, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return which pictures stand in the corpus, bool[n]."""
        return np.asarray(pc.is_in(ids, value_set=self.ids).to_numpy(), bool)

    def uris(self, ids: pa.ChunkedArray) -> pa.Array:
        """Return the first URI of each picture."""
        return self.places.take(pc.index_in(ids, value_set=self.ids).combine_chunks())


@dataclass(frozen=True)
class _Uploads:
    """Uploads that have matches and stand in the corpus, by key, sorted."""

    keys: NDArray[np.bytes_]

    @staticmethod
    def find(queries: Dataset, seen: _Seen) -> _Uploads:
        """Look for uploads in the files of a corpus that may have them."""
        files = [file for file in queries.files if seen.bounds and file.may_hold(*seen.bounds)]
        tables = datasets.read_each(queries.uri, files, ["uri", "generation"])
        held = [np.intersect1d(row_keys(table), seen.uploads) for table in tables]
        return _Uploads(np.unique(np.concatenate([np.empty(0, KEY), *held])))

    def has(self, uploads: pa.Table) -> NDArray[np.bool_]:
        """Return which uploads stand in the corpus, bool[n]."""
        return np.isin(row_keys(uploads), self.keys)


def _by_upload(tables: Iterator[pa.Table], number: int, folder: Path) -> Iterator[pa.Table]:
    """Yield rows in some parts with all those of an upload in one, through files where there are several."""
    if number == 1:
        yield pa.concat_tables(tables)
        return
    folder.mkdir()
    paths = [folder / f"{i}.arrow" for i in range(number)]
    _spill(tables, paths)
    for path in paths:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            yield reader.read_all()


def _spill(tables: Iterator[pa.Table], paths: list[Path]) -> None:
    """Share rows out among files by upload."""
    with ExitStack() as stack:
        writers: list[pa.RecordBatchFileWriter] = []
        for table in tables:
            if not writers:
                writers = [stack.enter_context(pa.ipc.new_file(str(path), table.schema)) for path in paths]
            keys = row_keys(table.select(_UPLOAD))
            number = np.frombuffer(keys.tobytes(), np.uint64)[::2] % len(paths)
            for i, writer in enumerate(writers):
                writer.write_table(table.filter(pa.array(number == i)))
