"""Committed Parquet data sets: a directory counts as what its `_SUCCESS` file lists, and no more.

`_SUCCESS` is written last and read first. Files beside it that it does not list are leftovers of an
interrupted run: no reader sees them.

A file is written where no glob looks, and the commit that lists it moves it in, see `moves`. It is checked
before a row of it is used, see `parquet`.

    embeddings = Dataset.open("/scan/reference/embeddings")  # reads the commit, once
    print(embeddings.rows, embeddings.ids["encoder_id"])
    for table in embeddings.tables(["uri", "image_id"]):
        ...
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue, ValidationError

from id2core.errors import DatasetError
from id2core.store import moves, parquet, schemas, storage, strict_json
from id2core.store.ahead import in_order
from id2core.store.base import Mode as Mode
from id2core.store.parquet import Change as Change
from id2core.store.parquet import FileRecord as FileRecord

# How rows come to have the id that is asked for.
_MENDS = {"transform_id": ", or give them descriptors of this transform: id2 reproject"}
Counts = TypeVar("Counts", bound=BaseModel)
Value = TypeVar("Value")
SUCCESS = "_SUCCESS"
# Name of the folder of a log of removed rows.
REMOVALS = "removals"
_TEXTS = ("dataset", "run_id", "schema_version", "committed_at")
# Tables in memory while data sets are read ahead. A store that answers slowly is asked for many at once;
# vectors are large: 8 MB a row group and 40 MB a file where a latent has 4,096 numbers.
_FILES_AHEAD, _VECTOR_FILES_AHEAD, _ROW_GROUPS_AHEAD = 32, 2, 8
# How long a commit remembers what it superseded: longer than any grace period.
_REMEMBERED = timedelta(days=60)


@dataclass(frozen=True)
class Segment:
    """What one run added to a corpus: the rows that have its run_id.

    Attributes:
        number: 1, 2, … in order of commit; never given twice.
        added_at: time of the commit that added it, ISO 8601.
    """

    number: int
    added_at: str

    @staticmethod
    def of_json(raw: Any) -> Segment:
        """Return the segment that a value of JSON is.

        Raises:
            TypeError, ValueError: it is none.
        """
        segment = Segment(**raw)
        if type(segment.number) is not int or segment.number < 1:
            raise ValueError(f"a segment has the number {segment.number!r}")
        _check_time(segment.added_at)
        return segment


@dataclass(frozen=True)
class SourceRecord:
    """What a commit says of one of the sources that feed it.

    Attributes:
        mode: whether rows follow its listing.
    """

    mode: Mode = Mode.MIRROR

    @staticmethod
    def of_json(raw: Any) -> SourceRecord:
        """Return the record that a value of JSON is. Raises TypeError or ValueError where it is none."""
        record = SourceRecord(**raw)
        return replace(record, mode=Mode(record.mode))


def _check_time(text: str) -> None:
    """Raise ValueError unless a text is a time with a time zone, ISO 8601."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")


@dataclass(frozen=True)
class Commit:
    """The content of `_SUCCESS`.

    Attributes:
        dataset: which contract of `tables` the rows obey.
        run_id: the run that committed last.
        ids: what must agree before rows are added or compared (`encoder_id`, `transform_id`, …).
        files: the files that make up the data set, sorted by name.
        runs: for every run that committed here, its counts, and the `plan_id` of its work, see `counts_of`.
        sources: URIs of the sources that the rows were made from → what is to be known of each.
        schema_version: the latest version of the table that a file is of; files may be of earlier ones.
        committed_at: ISO 8601.
        superseded: names of files that earlier commits listed and this one does not → when that began, ISO
            8601. Readers of an earlier commit may still need them.
        version: counts the commits of the data set, from 1; 0 where an earlier version of this program wrote
            the last one.
        segments: run_id → what it added, also where no row of it is left; of a corpus. Empty where an earlier
            version wrote the commit, see `segments_of`.
        removals: files of the log of removed rows, in `removals/` beside the data set, sorted by name.
        digests: digest of the files as a compaction cut them → the digest that the same rows had before.
    """

    dataset: str
    run_id: str
    ids: dict[str, str]
    files: tuple[FileRecord, ...] = ()
    runs: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    sources: dict[str, SourceRecord] = field(default_factory=dict)
    schema_version: str = ""
    committed_at: str = ""
    superseded: dict[str, str] = field(default_factory=dict)
    version: int = 0
    segments: dict[str, Segment] = field(default_factory=dict)
    removals: tuple[FileRecord, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """URIs of the sources of its rows, as one text: most data sets have one."""
        return ", ".join(self.sources)

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(f.rows for f in self.files)

    def counts_of(self, run_id: str, kind: type[Counts]) -> Counts:
        """Return what a run counted, as a model of who wrote it; an unknown run counted nothing.

        Raises:
            DatasetError: it counted something else.
        """
        try:
            return kind.model_validate(self.runs.get(run_id, {}))
        except ValidationError as error:
            raise DatasetError(f"{SUCCESS} of {self.dataset} is damaged: run {run_id}: {error}") from error

    def run_of(self, plan_id: str) -> str | None:
        """Return the run_id of the last run that committed the work `plan_id`, or None."""
        run_ids = (r for r, counts in reversed(self.runs.items()) if counts.get("plan_id") == plan_id)
        return next(run_ids, None)

    def with_note(self, run_id: str, note: Mapping[str, JsonValue]) -> Commit:
        """Return the commit in which the entry of a run, the last one, says something beside its counts."""
        return self.with_run(run_id, {**self.runs.get(run_id, {}), **note})

    def with_run(self, run_id: str, counts: Mapping[str, JsonValue]) -> Commit:
        """Return the commit in which the entry of a run is this one, and the last."""
        others = {run: entry for run, entry in self.runs.items() if run != run_id}
        return replace(self, runs=others | {run_id: {**counts}})

    def plan_of(self, run_id: str) -> str:
        """Return the plan_id of a run's work: the names of its files begin with it."""
        return str(self.runs[run_id].get("plan_id", run_id))

    @property
    def digest(self) -> str:
        """Names what the data set holds, times aside: equal digests, equal rows.

        A file of embeddings has the objects in its key that it was made from. A compaction keeps the digest.
        """
        return self.digests.get(self.cut, self.cut)

    @property
    def cut(self) -> str:
        """Names the rows and how they are cut into files."""
        return digest_of(sorted((f.key, f.rows) for f in self.files), sorted(self.ids.items()))

    def has_merged(self, run_id: str) -> bool:
        """Return whether rows of a run are in files that a compaction has merged."""
        return any(f.is_merged and run_id in f.segments for f in self.files)


def segments_of(dataset: Dataset) -> dict[str, Segment]:
    """Return the segments of a corpus by run_id; of a commit without them, from what its files hold.

    These are numbered in order of run_id, and begin when their run began.

    Raises:
        DatasetError: a file is gone or damaged.
    """
    commit = dataset.commit
    if commit.segments:
        return commit.segments
    run_ids = sorted({run_id for file in commit.files for run_id in segments_in(dataset.uri, file)})
    return {r: Segment(number, _begun(r, commit)) for number, r in enumerate(run_ids, 1)}


def rows_by_run(table: pa.Table) -> Counter[str]:
    """Return how many rows of a table each run has made: run_id → rows."""
    counts = table["run_id"].value_counts().to_pylist()
    return Counter({one["values"] or "": one["counts"] for one in counts})


def segment_names(dataset: Dataset) -> dict[int, str]:
    """Return the run_ids of the segments of a corpus by number."""
    return {segment.number: run_id for run_id, segment in segments_of(dataset).items()}


def segments_in(uri: str, record: FileRecord) -> tuple[str, ...]:
    """Return the run_ids whose rows a file has; the column is read where its record does not say."""
    if record.segments or not record.rows:
        return record.segments
    run_ids = read_file(uri, record, ["run_id"])["run_id"].unique().to_pylist()
    return tuple(sorted({run_id or "" for run_id in run_ids}))  # a data set that ships has none


def _begun(run_id: str | None, commit: Commit) -> str:
    """Return when a run of an earlier version began, as its name says; else when it was committed.

    Rows of a bundled data set name no run.
    """
    try:
        begun = datetime.strptime((run_id or "")[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return commit.committed_at
    return begun.isoformat(timespec="seconds")


def digest_of(*parts: object) -> str:
    """Return the first 16 hex of the SHA-256 of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Dataset:
    """A committed data set: where it is and what its `_SUCCESS` lists, read once.

    It is a snapshot: files that other runs commit later are not in it. It can be pickled.

    Attributes:
        uri: its directory.
        commit: what `_SUCCESS` lists.
        mark: the version of `_SUCCESS` that was read, see `storage.read_marked`.
        only_run: the run whose rows count, where files hold those of others, too; empty for all rows.
    """

    uri: str
    commit: Commit
    mark: str = field(default="", compare=False)
    only_run: str = ""

    @classmethod
    def open(cls, uri: str) -> Self:
        """Read the commit of a complete data set.

        Raises:
            DatasetError: there is none, or a newer program wrote it.
        """
        dataset = cls.find(uri)
        if dataset is None:
            raise DatasetError(
                f"{uri} has no {SUCCESS}: its run did not finish. Run it again to complete it."
            )
        return dataset

    @classmethod
    def find(cls, uri: str) -> Self | None:
        """Read the commit of a data set; None where there is none, or only the empty file of another program.

        Raises:
            DatasetError: `_SUCCESS` is damaged, or a newer program wrote it.
        """
        commit, mark = _read_commit(uri)
        return cls(uri, commit, mark) if commit else None

    @classmethod
    def find_own(cls, uri: str) -> Self | None:
        """Read the commit of a data set that is to be extended; None where there is none.

        Raises:
            DatasetError: as `find`, and for an empty `_SUCCESS`: it may be all that is left of earlier runs.
        """
        commit, mark = _read_commit(uri)
        if commit is None and mark:
            raise _empty(uri)
        return cls(uri, commit, mark) if commit else None

    @property
    def rows(self) -> int:
        """Rows in all files."""
        if not self.only_run:
            return self.commit.rows
        return sum(table.num_rows for table in self.tables(["run_id"]))

    @property
    def ids(self) -> dict[str, str]:
        """What must agree before rows are added or compared."""
        return self.commit.ids

    @property
    def digest(self) -> str:
        """Names the rows: equal digests, equal rows."""
        return self.commit.digest

    @property
    def source(self) -> str:
        """URIs of the sources that the rows were made from, as one text."""
        return self.commit.source

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The files, sorted by name."""
        return self.commit.files

    @property
    def run_id(self) -> str:
        """The run that committed last."""
        return self.commit.run_id

    @property
    def runs(self) -> dict[str, dict[str, JsonValue]]:
        """What every run that committed here counted."""
        return self.commit.runs

    def of_run(self, run_id: str) -> Self:
        """Return the data set reduced to the rows of one run.

        Raises:
            DatasetError: it has no such run.
        """
        if run_id not in self.runs:
            raise DatasetError(f"{self.uri} has no run {run_id}; it has {', '.join(self.runs)}")
        plan_id = self.commit.plan_of(run_id)
        files = tuple(
            f for f in self.files if f.belongs_to(plan_id) or (f.is_merged and run_id in f.segments)
        )
        only_run = run_id if any(f.is_merged for f in files) else ""
        return replace(self, commit=replace(self.commit, files=files), only_run=only_run)

    def rows_by_segment(self) -> Counter[str]:
        """Return how many rows of each segment stand: run_id → rows.

        Raises:
            DatasetError: the record of a file does not say, and the file is gone or damaged.
        """
        counts: Counter[str] = Counter()
        for file in self.files:
            counts.update(self._segment_rows(file))
        return counts

    def _segment_rows(self, file: FileRecord) -> Counter[str]:
        """Return the rows of each segment in a file, whose column is read where its record does not say."""
        if len(file.segments) == 1:
            return Counter({file.segments[0]: file.rows})
        if file.segment_rows or not file.rows:
            return Counter(dict(zip(file.segments, file.segment_rows, strict=False)))
        return rows_by_run(read_file(self.uri, file, ["run_id"]))

    def among(self, uris: Iterable[str]) -> Self:
        """Return the data set reduced to the files that may have rows of some objects."""
        wanted = sorted(uris)
        files = tuple(file for file in self.files if file.may_hold_any(wanted))
        return replace(self, commit=replace(self.commit, files=files))

    def check_ids(self, wanted: dict[str, str]) -> None:
        """Raise DatasetError when rows with the ids `wanted` may not be compared with these."""
        check_ids(self.commit, wanted, self.uri)

    def read_file(self, record: FileRecord, columns: list[str] | None = None) -> pa.Table:
        """Read one file. Raises DatasetError when it is gone or damaged."""
        return self._read(record, columns)

    def holds_all_of(self, record: FileRecord) -> bool:
        """Return whether all rows of a file belong to the data set, not only those of one run."""
        return not (self.only_run and record.is_merged)

    def read_vectors(
        self, record: FileRecord, column: str, out: NDArray[Any], beside: Sequence[str] = ()
    ) -> pa.Table:
        """Read vectors of a whole file into `out`, float[rows,m]; return other columns. See `read_file`."""
        return parquet.read_vectors(moves.folders(self.uri), record, column, out, beside)

    @property
    def first_filled(self) -> FileRecord | None:
        """Return the first file that has rows; None where there is none."""
        return next((file for file in self.files if file.rows), None)

    def row_group(self, record: FileRecord, index: int, columns: list[str] | None = None) -> pa.Table:
        """Read one row group of a file. Raises DatasetError when the file is gone or damaged."""
        return self._read(record, columns, index)

    def _read(self, record: FileRecord, columns: list[str] | None, row_group: int | None = None) -> pa.Table:
        if self.holds_all_of(record):
            return read_file(self.uri, record, columns, row_group)
        wanted = columns and list(dict.fromkeys([*columns, "run_id"]))
        table = read_file(self.uri, record, wanted, row_group)
        own = table.filter(pc.equal(table["run_id"], self.only_run))
        return own.select(columns) if columns else own

    def row_group_rows(self, record: FileRecord) -> list[int]:
        """Return how many rows each row group of a file has."""
        return parquet.row_group_rows(moves.folders(self.uri), record)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Read file by file, in the order of their names, some files ahead.

        Args:
            columns: what is read; by default everything.

        Raises:
            DatasetError: a file is gone or damaged.
        """
        return in_order(self.files, lambda record: self._read(record, columns), _ahead(columns))

    def row_groups(self, columns: list[str] | None = None) -> Iterator[tuple[FileRecord, pa.Table]]:
        """Read row group by row group in order, some ahead, each with the file that it is in."""
        tasks = [(record, group) for record in self.files for group in range(record.row_groups)]
        tables = in_order(tasks, lambda task: self.row_group(*task, columns), _ROW_GROUPS_AHEAD)
        return zip((record for record, _ in tasks), tables, strict=True)

    def read(self, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """Read everything as one table: for small data sets (rejects, matches, runs).

        Args:
            schema: of the table where the data set has no file.
            columns: what is read; by default everything.
        """
        tables = list(self.tables(columns))
        return pa.concat_tables(tables) if tables else schema.empty_table().select(columns or schema.names)

    def has_values(self, column: str) -> bool:
        """Return whether a column of vectors has values; True without rows.

        pyarrow cannot read a column of fixed-size lists that is all null, so the metadata of the first
        file that has rows answers.
        """
        record = next((record for record in self.files if record.rows), None)
        return record is None or parquet.has_values(moves.folders(self.uri), record, column)


def _read_commit(uri: str) -> tuple[Commit | None, str]:
    """The commit (None for an empty `_SUCCESS`), and the mark of `_SUCCESS` ("" where there is none)."""
    try:
        data, mark = storage.read_marked(storage.join(uri, SUCCESS))
    except FileNotFoundError:
        return None, ""
    return _parse(data, uri) if data.strip() else None, mark


def _empty(uri: str) -> DatasetError:
    return DatasetError(
        f"{uri}/{SUCCESS} is empty: another program wrote it (Spark and Hadoop do), or it was damaged. "
        "Nothing was changed. Restore it from a copy, or choose another --out"
    )


def _parse(data: bytes, uri: str) -> Commit:
    """Return the commit in the bytes of `_SUCCESS`. Raises DatasetError where it is damaged."""
    if not data.strip():
        raise _empty(uri)
    try:
        raw = strict_json.parse_object(data)
        version, table = int(raw["schema_version"]), str(raw.get("dataset", ""))
        if raw.pop("checksum", None) not in (None, _checksum(raw)):
            raise ValueError("its content does not fit its checksum")
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(uri, error) from error
    schemas.check_version(table, version, uri)
    try:
        return _commit_of(raw)
    except (DatasetError, ValueError, LookupError, TypeError) as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{uri}/{SUCCESS} is damaged: {error}. Nothing was changed. Restore it from a copy, or choose "
        "another --out"
    )


def _commit_of(raw: dict[str, Any]) -> Commit:
    """Return the commit that a JSON object is.

    Raises DatasetError, ValueError, LookupError or TypeError where it is none.
    """
    raw.pop("rows", None)
    files, removals = _files_of(raw.pop("files")), _files_of(raw.pop("removals", []))
    segments = _objects_of(raw.pop("segments", {}), Segment.of_json)
    if len({segment.number for segment in segments.values()}) != len(segments):
        raise ValueError("two segments have one number")
    if "source" in raw and "sources" not in raw:  # of an earlier version: all rows are of one source
        source = raw.pop("source")
        files = tuple(replace(f, source=source) for f in files)
        raw["sources"] = {source: {}} if source else {}
    sources = _objects_of(raw.pop("sources", {}), SourceRecord.of_json)
    digests = _objects_of(raw.pop("digests", {}), str)
    commit = Commit(
        files=files, removals=removals, segments=segments, sources=sources, digests=digests, **raw
    )
    if type(commit.version) is not int or commit.version < 0:
        raise ValueError(f"its version is {commit.version!r}")
    if not isinstance(commit.ids, dict):
        raise TypeError("ids is no object")
    texts = [getattr(commit, name) for name in _TEXTS]
    if not all(isinstance(text, str) for text in (*texts, *commit.ids.values(), *sources)):
        raise TypeError(f"{', '.join(_TEXTS)} or its ids are no text")
    if not isinstance(commit.runs, dict) or not all(isinstance(run, dict) for run in commit.runs.values()):
        raise TypeError("runs is no object of objects")
    for since in dict(commit.superseded).values():
        _check_time(since)
    return commit


def _objects_of(raw: Any, of_json: Callable[[Any], Value]) -> dict[str, Value]:
    """Return an object of JSON with its values read. Raises TypeError where it is none."""
    if not isinstance(raw, dict):
        raise TypeError(f"{str(raw)[:80]!r} is no object")
    return {name: of_json(value) for name, value in raw.items()}


def _files_of(listed: Any) -> tuple[FileRecord, ...]:
    """Return the records of files that a list of JSON is.

    Raises DatasetError or TypeError where it is none.
    """
    if not isinstance(listed, list):
        raise TypeError("files is no list")
    files = tuple(map(FileRecord.of_json, listed))
    if len({f.name for f in files}) != len(files):
        raise DatasetError("it lists a file twice")
    return files


def _checksum(raw: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _stamp(commit: Commit, before: Commit | None) -> Commit:
    """Return the commit as it is written after another one.

    Files are sorted by name. Versions, the time, and what is superseded are filled in.
    """
    now = datetime.now(UTC)
    time = now.isoformat(timespec="seconds")
    superseded: dict[str, str] = {}
    if before:
        listed = {f.name for f in commit.files}
        known = {f.name: time for f in before.files} | before.superseded
        superseded = {
            name: since
            for name, since in known.items()
            if name not in listed and now - datetime.fromisoformat(since) < _REMEMBERED
        }
    return replace(
        commit,
        files=tuple(sorted(commit.files, key=lambda f: f.name)),
        removals=tuple(sorted(commit.removals, key=lambda f: f.name)),
        version=before.version + 1 if before else 1,
        schema_version=str(schemas.version_of(commit.dataset)),
        committed_at=time,
        superseded=superseded,
    )


def _serialize(commit: Commit) -> bytes:
    raw = asdict(commit) | {"rows": commit.rows}
    return json.dumps(raw | {"checksum": _checksum(raw)}, indent=1).encode()


def write_commit(uri: str, commit: Commit) -> None:
    """Make `commit` the content of the data set at `uri`, stamped with the time, whatever it held before."""
    stamped = _stamp(commit, None)
    with moves.announced(uri):
        storage.write_bytes(storage.join(uri, SUCCESS), _serialize(stamped))
        _move_files(uri, None, stamped)


def replace_commit(uri: str, commit: Commit, last: Dataset | None) -> Dataset | None:
    """Make `commit` the content of the data set, unless somebody wrote it since it was read.

    Args:
        uri: directory of the data set.
        commit: its new content.
        last: the data set as it was read; None for one that was not there.

    Returns:
        The data set as it is now; None where nothing was written.
    """
    before, mark = (last.commit, last.mark) if last else (None, "")
    stamped = _stamp(commit, before)
    with moves.announced(uri):
        if not storage.write_if(storage.join(uri, SUCCESS), _serialize(stamped), mark):
            return None
        _move_files(uri, before, stamped)
    return Dataset(uri, stamped)


def _move_files(uri: str, before: Commit | None, after: Commit) -> None:
    """Move what a commit superseded out of the data set, then what it added in."""
    whole = True
    for folder, old, new in (
        (uri, before.files if before else (), after.files),
        (removals_of(uri), before.removals if before else (), after.removals),
    ):
        names, kept = {f.name for f in old}, {f.name for f in new}
        moves.move_out(folder, sorted(names - kept))
        whole &= moves.move_in(folder, sorted(kept - names))
    # Where a file is gone, a later commit may have superseded it while this one moved it.
    if not whole and (present := Dataset.find(uri)):
        finish_moves(present)


def removals_of(uri: str) -> str:
    """Return the folder of the log of removed rows of a corpus."""
    return storage.join(moves.place_of(uri)[0], REMOVALS)


def write_removals(uri: str, key: str, rows: pa.Table) -> FileRecord:
    """Write rows of the log of removals of a corpus, as `write_file` writes; they are at least one."""
    written = write_file(removals_of(uri), key, [rows], schemas.REMOVALS)
    extremes = pc.min_max(rows["uri"]).as_py()
    segments = tuple(sorted(set(rows["segment"].to_pylist())))
    return replace(written, segments=segments, bounds=(extremes["min"], extremes["max"]))


def finish_moves(dataset: Dataset) -> None:
    """Bring every file of a data set to where its commit says that it is; safe to repeat."""
    listed = {f.name for f in dataset.files}
    superseded = dataset.commit.superseded.keys() - listed
    moves.move_out(dataset.uri, sorted(superseded & moves.names_in(dataset.uri)))
    moves.move_in(dataset.uri, sorted(listed & moves.names_in(moves.staged(dataset.uri))))
    if dataset.commit.removals:
        log = removals_of(dataset.uri)
        logged = {f.name for f in dataset.commit.removals}
        moves.move_in(log, sorted(logged & moves.names_in(moves.staged(log))))


def settle(place: str) -> None:
    """Finish the moves of commits that were killed, for every data set of a place that has their marks.

    The marks stay: another process may be at work under one. Data sets with a damaged commit are left alone.
    """
    for name in sorted(moves.announcements(place)):
        with suppress(DatasetError):
            if dataset := Dataset.find(storage.join(place, name)):
                finish_moves(dataset)


def add_files(
    uri: str,
    dataset: str,
    run_id: str,
    plan_id: str,
    files: Iterable[FileRecord],
    counts: Mapping[str, int],
    last: Dataset | None = None,
) -> Dataset:
    """Commit a run's files beside those of other runs, also of ones that commit at the same time.

    Called again, it replaces what the run added before. Of two runs with the same work the first to commit
    keeps it, and the other adds nothing.

    Args:
        uri: directory of the data set.
        dataset: which contract of `schemas` the rows obey.
        run_id: the run.
        plan_id: names the work by its content; the names of the files begin with it.
        files: what the run wrote.
        counts: what it counted.
        last: the data set as it was read before; None for one that was not there. `_SUCCESS` is read again
            only where somebody has written it since.

    Returns:
        The data set as it is now. Its `commit.run_of(plan_id)` is the run whose rows it holds.
    """
    own = {f.name: f for f in files}

    def merge(commit: Commit | None) -> Commit:
        base = commit or Commit(dataset, run_id, {})
        if base.run_of(plan_id) not in (None, run_id) or base.has_merged(run_id):
            return base
        others = {f.name: f for f in base.files if not f.belongs_to(plan_id)}
        every = tuple((others | own).values())
        added = base.with_run(run_id, {**counts, "plan_id": plan_id})
        return replace(added, run_id=run_id, files=every)

    return update_commit(uri, merge, last)


def update_commit(
    uri: str, change: Callable[[Commit | None], Commit], last: Dataset | None = None
) -> Dataset:
    """Replace the commit of a data set by a function of it, losing no other run's change.

    Args:
        uri: directory of the data set.
        change: makes the new commit from the present one (None: there is none). It may be called more than
            once; the result of its last call counts.
        last: the data set as it was read before; None for one that was not there. `_SUCCESS` is read again
            only where somebody has written it since.

    Returns:
        The data set as it is now.

    Raises:
        DatasetError: there is a `_SUCCESS` that is damaged or empty; it is left as it is.
    """
    committed = change(last.commit if last else None)
    if replaced := replace_commit(uri, committed, last):
        return replaced

    present: Commit | None = None

    def change_again(old: bytes | None) -> bytes:
        nonlocal committed, present
        present = None if old is None else _parse(old, uri)
        committed = _stamp(change(present), present)
        return _serialize(committed)

    with moves.announced(uri):
        storage.update(storage.join(uri, SUCCESS), change_again)
        _move_files(uri, present, committed)
    return Dataset(uri, committed)


def check_ids(commit: Commit, wanted: dict[str, str], uri: str) -> None:
    """Raise DatasetError when rows with the ids `wanted` do not belong in the data set at `uri`."""
    for key, value in wanted.items():
        held = commit.ids.get(key)
        if held != value:
            raise DatasetError(
                f"{uri} holds rows with {key} {held}, this run has {value}. They do not belong together: "
                f"write to another --out, or use what those rows were made with{_MENDS.get(key, '')}."
            )


def write_file(
    uri: str,
    key: str,
    batches: Iterable[pa.RecordBatch | pa.Table],
    schema: pa.Schema,
    row_group: int | None = None,
) -> FileRecord:
    """Write a file for a data set where no glob of it looks; the commit that lists it moves it in.

    See `parquet.write` for the arguments.
    """
    return parquet.write(moves.staged(uri), key, batches, schema, row_group)


def rewrite_file(uri: str, record: FileRecord, target: str, key: str, change: Change) -> FileRecord:
    """Write a file for the data set `target` that has the rows of one of the data set `uri`.

    See `parquet.rewrite` for what is checked and raised.

    Args:
        uri: the data set of the file.
        record: what the file must be.
        target: the data set whose commit will list what is written.
        key: name of what is written, without the hash of the bytes.
        change: columns that are made anew; the others are copied without being decoded.
    """
    return parquet.rewrite(moves.folders(uri), record, moves.staged(target), key, change)


def read_file(
    uri: str, record: FileRecord, columns: list[str] | None = None, row_group: int | None = None
) -> pa.Table:
    """Read one file of the data set `uri`, or one of its row groups, wherever it is by now.

    Committed files, files of an earlier commit, and files that are not committed yet are read alike. See
    `parquet.read` for the other arguments, and for what is checked and raised.
    """
    return parquet.read(moves.folders(uri), record, columns, row_group)


def verify(uri: str, record: FileRecord) -> None:
    """Read one file of the data set `uri` and check its SHA-256; rows are not decoded.

    Raises:
        DatasetError: it is gone, damaged, or not the file that the record is of.
    """
    parquet.verify(moves.folders(uri), record)


def read_each(uri: str, records: Sequence[FileRecord], columns: list[str] | None) -> Iterator[pa.Table]:
    """Read many files in order, some ahead; see `Dataset.tables`."""
    return in_order(records, lambda record: read_file(uri, record, columns), _ahead(columns))


def _ahead(columns: list[str] | None) -> int:
    large = columns is None or not schemas.NUMBERS.isdisjoint(columns)
    return _VECTOR_FILES_AHEAD if large else _FILES_AHEAD
