"""Check what lies below an `--out`: commits, files, keys, segments, and the ledger against the stored pairs.

Nothing is changed. A finding says what is wrong and what to do. Every committed file is read once in whole,
so a check takes as long as reading the place. Beside a running run it may see a commit half moved.

    for finding in checkup.check("/scan"):
        print(finding.place, finding.detail, finding.mend)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from id2core.errors import DatasetError
from id2core.runs import codes, histories, ledger, leftovers
from id2core.runs.keys import KEY, Keys, row_keys
from id2core.runs.ledger import Event, Span
from id2core.store import datasets, moves, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import SUCCESS, Dataset, FileRecord

MATCHES: Final = "matches"
_TABLES: Final = (schemas.EMBEDDINGS, *schemas.TABLES.keys() - {"removals"})
# Columns that name a row, which stands once.
_KEYS: Final = {
    schemas.EMBEDDINGS: ("uri", "generation", "encoder_id"),
    MATCHES: schemas.PAIR,
}
_PAIR: Final = ("query_uri", "query_generation", "reference_id", "encoder_id", "run_id")
_AGAIN: Final = "restore it from a copy, or make the data set again in another --out"
_INDEX_ANEW: Final = "id2 index --anew makes it again"
_AHEAD: Final = 4


class Fault(StrEnum):
    """What can be wrong below an `--out`."""

    COMMIT = "commit"  # `_SUCCESS` is damaged, or gone from a folder with files
    FILE = "file"  # a committed file is gone, damaged, or not the one that was committed
    UNLISTED = "unlisted"  # a glob sees a file that no commit lists
    UNMOVED = "unmoved"  # a glob does not see a committed file yet
    DOUBLED = "doubled"  # two rows have one key
    SEGMENTS = "segments"  # segments do not fit their rows, or a number is missing
    LEDGER = "ledger"  # an event says of a corpus what cannot be
    UNCOVERED = "uncovered"  # a pair is stored that no event accounts for
    INDEX = "index"  # a search would refuse an index, or it has codes of files that are gone


class Finding(BaseModel):
    """Something that is wrong.

    Attributes:
        fault: what kind of thing.
        place: data set or file, below the `--out`.
        detail: what is wrong with it.
        mend: what to do.
    """

    model_config = ConfigDict(frozen=True)

    fault: Fault
    place: str
    detail: str
    mend: str


@dataclass
class Checked:
    """What was looked at."""

    datasets: int = 0
    files: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, fault: Fault, place: str, detail: str, mend: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(fault=fault, place=place, detail=detail, mend=mend))


def check(out: str, corpora: Collection[tuple[str, str]] = ()) -> Checked:
    """Check all data sets below an `--out`.

    Args:
        out: a normalized place.
        corpora: embeddings of references and of uploads that were searched, of each channel; by default
            those of one channel below `out`.
    """
    done = Checked()
    found = {
        dataset.uri: dataset
        for place in leftovers.places(out)
        for name in sorted(_TABLES)
        if (dataset := _open(out, storage.join(place, name).removeprefix(f"{out}/"), done))
    }
    for uri, dataset in found.items():
        place = uri.removeprefix(f"{out}/")
        whole = _check_files(dataset, place, done)
        _check_globs(dataset, place, done)
        if whole and (key := _KEYS.get(dataset.commit.dataset)):
            _check_keys(dataset, place, key, done)
        if whole and dataset.commit.dataset == schemas.EMBEDDINGS:
            _check_segments(dataset, place, done)
    matches = found.get(storage.join(out, MATCHES))
    reference, queries = (storage.join(out, side, schemas.EMBEDDINGS) for side in ("reference", "queries"))
    for uris in corpora or [(reference, queries)]:
        held, asked = (_searched(uri, found) for uri in uris)
        if matches and asked and held and not _has(done, Fault.FILE):
            encoder_id = held.ids["encoder_id"] if len(corpora) > 1 else None
            _check_ledger(matches, asked, held, done, encoder_id)
    return done


def _has(done: Checked, fault: Fault) -> bool:
    return any(finding.fault is fault for finding in done.findings)


def _searched(uri: str, found: dict[str, Dataset]) -> Dataset | None:
    try:
        return found.get(uri) or Dataset.find(uri)
    except DatasetError:
        return None


def _open(out: str, place: str, done: Checked) -> Dataset | None:
    """Open a data set; what stands in the way becomes a finding."""
    uri, name = storage.join(out, place), place.rpartition("/")[2]
    rebuild = "id2 doctor --rebuild makes it again" if place == MATCHES else _AGAIN
    if name == codes.INDEX:
        rebuild = f"delete {uri}, and build it again by id2 index"
    try:
        dataset = Dataset.find_own(uri)
    except DatasetError as error:
        done.add(Fault.COMMIT, place, str(error), rebuild)
        return None
    if dataset is None:
        if any(entry.uri.endswith(".parquet") for entry in storage.entries(uri)):
            done.add(Fault.COMMIT, place, f"it has files and no {SUCCESS}", rebuild)
        return None
    return dataset if dataset.commit.dataset == name else None


def _check_files(dataset: Dataset, place: str, done: Checked) -> bool:
    """Read every file, also of the log of removals; return whether all are what the commit says."""
    log = datasets.removals_of(dataset.uri)
    listed = [(dataset.uri, file) for file in dataset.files]
    listed += [(log, file) for file in dataset.commit.removals]
    done.datasets += 1
    done.files += len(listed)
    done.rows += dataset.rows
    whole = True
    mend = _INDEX_ANEW if dataset.commit.dataset == codes.INDEX else _AGAIN
    for (_, file), error in zip(listed, in_order(listed, _fault_of, _AHEAD), strict=True):
        if error:
            done.add(Fault.FILE, f"{place}/{file.name}", error, mend)
            whole = False
    return whole


def _fault_of(listed: tuple[str, FileRecord]) -> str:
    try:
        datasets.verify(*listed)
    except DatasetError as error:
        return str(error)
    return ""


def _check_globs(dataset: Dataset, place: str, done: Checked) -> None:
    """Compare what a plain glob sees with the commit."""
    log = datasets.removals_of(dataset.uri)
    folders = [(dataset.uri, place, dataset.files)]
    if dataset.commit.removals:
        folders.append((log, f"{place.rpartition('/')[0]}/{datasets.REMOVALS}", dataset.commit.removals))
    for uri, name, files in folders:
        listed = {file.name for file in files}
        seen = {file for file in moves.names_in(uri) if file.endswith(".parquet")}
        for file in sorted(seen - listed):
            mend = "remove it, or run any command there with ID2_LEFTOVER_HOURS=0"
            done.add(Fault.UNLISTED, f"{name}/{file}", "no commit lists it", mend)
        for file in sorted(listed & moves.names_in(moves.staged(uri)) - seen):
            mend = "run any command there: it finishes the moves of a killed one"
            done.add(Fault.UNMOVED, f"{name}/{file}", "it is committed, and not moved in yet", mend)


def _check_keys(dataset: Dataset, place: str, key: tuple[str, ...], done: Checked) -> None:
    """Count rows whose key another row has."""
    with Keys() as keys:
        first = 0
        for _, table in dataset.row_groups(list(key)):
            filled = (pc.fill_null(column, "").to_pylist() for column in table.columns)
            keys.add(keys.hash(*filled), first)
            first += table.num_rows
        doubled = sum(len(groups.rows) - len(groups.starts) for groups in keys.groups())
    if doubled:
        detail = f"{doubled} rows have a key ({', '.join(key)}) that another row has"
        done.add(Fault.DOUBLED, place, detail, f"count them once; to mend it, {_AGAIN}")


def _check_segments(dataset: Dataset, place: str, done: Checked) -> None:
    """Check that numbers have no gap, and that rows and files name segments of the commit."""
    segments = dataset.commit.segments
    if not segments:  # of an earlier version, which had none
        return
    numbers = sorted(segment.number for segment in segments.values())
    if numbers != list(range(1, len(numbers) + 1)):
        done.add(Fault.SEGMENTS, place, f"its segments have the numbers {numbers[:20]}", _AGAIN)
    for file, table in zip(dataset.files, dataset.tables(["run_id"]), strict=True):
        held = set(table["run_id"].unique().to_pylist())
        strange = held - segments.keys() or (held - set(file.segments) if file.segments else None)
        if strange:
            detail = f"its rows are of {', '.join(sorted(map(str, strange)))}, which are no segments of it"
            done.add(Fault.SEGMENTS, f"{place}/{file.name}", detail, _AGAIN)


def _check_ledger(
    matches: Dataset, queries: Dataset, references: Dataset, done: Checked, encoder_id: str | None
) -> None:
    """Check events against the corpora, and stored pairs against events, of one encoder or (None) of all."""
    try:
        events = {run: ledger.events_of(matches.commit, run) for run in matches.runs}
    except DatasetError as error:
        done.add(Fault.COMMIT, MATCHES, str(error), "id2 doctor --rebuild makes it again")
        return
    if encoder_id is not None:
        events = {
            run: tuple(event for event in own if event.ids["encoder_id"] == encoder_id)
            for run, own in events.items()
        }
    for run_id, event in ((run, event) for run, own in events.items() for event in own):
        for side, span, version, corpus in (
            ("uploads", event.queries, event.query_version, queries),
            ("references", event.references, event.reference_version, references),
        ):
            if problem := _misfit(span, version, corpus):
                detail = f"run {run_id} has searched {side} {span} of version {version}: {problem}"
                mend = "the corpus was made again or restored from a copy: scan into another --out"
                done.add(Fault.LEDGER, MATCHES, detail, mend)
    count = uncovered(matches, matches.files, events, queries, references, encoder_id)
    if count.total:
        detail = f"{count.total} pairs are in no search of the ledger, for example in {count.example}"
        done.add(Fault.UNCOVERED, MATCHES, detail, "they would be searched again: scan into another --out")


def _misfit(span: Span, version: int, corpus: Dataset) -> str:
    """Return what an event says of a corpus that cannot be; empty for nothing."""
    last = max((segment.number for segment in datasets.segments_of(corpus).values()), default=0)
    if span[0] <= span[1] and (span[0] < 1 or span[1] > last):
        return f"it has segments up to {last}"
    return f"it has version {corpus.commit.version}" if version > corpus.commit.version else ""


@dataclass
class Uncovered:
    """Pairs that no event accounts for.

    Attributes:
        files: name → how many.
    """

    files: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.files.values())

    @property
    def example(self) -> str:
        """Name of a file that has some."""
        return next(iter(self.files), "")


def uncovered(
    matches: Dataset,
    files: tuple[FileRecord, ...],
    events: dict[str, tuple[Event, ...]],
    queries: Dataset,
    references: Dataset,
    encoder_id: str | None = None,
) -> Uncovered:
    """Count the stored pairs that no event of their run accounts for.

    A picture that stood in several segments is taken to have stood in those between, too: nothing is
    reported that is right.

    Args:
        matches: says where the files are.
        files: of pairs.
        events: run_id → its searches.
        queries, references: the corpora.
        encoder_id: only pairs of this encoder; None for all.
    """
    asked, held = _Numbers.of(queries, histories.OCCURRENCE), _Numbers.of(references, histories.PICTURE)
    found = Uncovered()
    for file in files:
        count = 0
        for group in range(file.row_groups):
            table = datasets.read_file(matches.uri, file, list(_PAIR), group)
            if encoder_id is not None:
                table = table.filter(pc.equal(table["encoder_id"], encoder_id))
            uploads = asked.find(table.select(["query_uri", "query_generation"]))
            pictures = held.find(table.select(["reference_id"]))
            known = np.zeros(table.num_rows, bool)
            for run_id in table["run_id"].unique().to_pylist():
                own = pc.equal(table["run_id"], run_id).to_numpy()
                for event in events.get(run_id, ()):
                    known |= own & _meets(uploads, event.queries) & _meets(pictures, event.references)
            count += int((~known).sum())
        if count:
            found.files[file.name] = count
    return found


def _meets(ranges: NDArray[np.int32], span: Span) -> NDArray[np.bool_]:
    return np.asarray((ranges[0] <= span[1]) & (ranges[1] >= span[0]))


@dataclass(frozen=True)
class _Numbers:
    """The least and the greatest segment of each upload or picture, also of those that were removed.

    Attributes:
        keys: sorted, 16 bytes each.
        least, greatest: int32[n].
    """

    keys: NDArray[np.bytes_]
    least: NDArray[np.int32]
    greatest: NDArray[np.int32]

    @staticmethod
    def of(corpus: Dataset, key: tuple[str, ...]) -> _Numbers:
        """Read the rows of a corpus and its log of removals."""
        segments = datasets.segments_of(corpus)
        names = pa.array(list(segments), pa.string())
        numbers = np.array([0, *(segment.number for segment in segments.values())], np.int32)
        keys, found = [np.empty(0, KEY)], [np.empty(0, np.int32)]
        log = datasets.removals_of(corpus.uri)
        for uri, files, column in (
            (corpus.uri, corpus.files, "run_id"),
            (log, corpus.commit.removals, "segment"),
        ):
            for file in files:
                table = datasets.read_file(uri, file, [*key, column])
                keys.append(row_keys(table.select(list(key))))
                places = pc.fill_null(pc.index_in(table[column], value_set=names), -1).to_numpy()
                found.append(numbers[places + 1])
        every, values = np.concatenate(keys), np.concatenate(found)
        order = np.argsort(every, kind="stable")
        unique, starts = np.unique(every[order], return_index=True)
        if not len(unique):
            return _Numbers(unique, values, values)
        ordered = values[order]
        return _Numbers(unique, np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts))

    def find(self, table: pa.Table) -> NDArray[np.int32]:
        """Return the least and the greatest segment of each row, int32[2,n]; an empty span for none."""
        if not len(self.keys):
            return np.tile(np.array([[1], [0]], np.int32) * np.iinfo(np.int32).max, table.num_rows)
        filled = pa.table([pc.fill_null(column, "") for column in table.columns], names=table.column_names)
        wanted = row_keys(filled)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        hit = self.keys[places] == wanted
        never = np.iinfo(np.int32)
        return np.stack(
            [np.where(hit, self.least[places], never.max), np.where(hit, self.greatest[places], never.min)]
        )
