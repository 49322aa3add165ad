"""A new calibration judges the pairs that are stored, without a search: `verdicts/` beside `matches/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from id2core.errors import CalibrationError
from id2core.runs import ledger
from id2core.runs.execution import Execution
from id2core.runs.ledger import Event
from id2core.search.current import VERDICT_COLUMNS
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Commit, Dataset, FileRecord
from id2core.verdicts import calibration, channels
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.channel_judging import AnyJudge, ChannelJudge
from id2core.verdicts.channels import Channels, JointCalibration

VERDICTS = "verdicts"
# Where an `--out` keeps the calibrations that it was judged by.
CALIBRATIONS = "calibrations"
# Columns of `matches/` that a verdict follows from.
_READ = (*schemas.PAIR, "score", "information")
# Times that a corpus grows before a night judges all stored pairs by the thresholds of its new size.
FOLLOW = 1.25
# Pairs that are judged at once, about 100 MB.
_ROWS_AT_ONCE = 2**17


class _Counts(BaseModel):
    """What a judging says in the commit of `verdicts/`.

    Attributes:
        calibration_id: by what it judged.
        judged: how many pairs.
        references: size of the corpus that it judged for; 0 in what an earlier version wrote.
        searched: run_id → how many of its searches had their pairs judged.
    """

    calibration_id: str = ""
    judged: int = 0
    references: int = 0
    searched: dict[str, int] = {}


@dataclass(frozen=True)
class Judged:
    """What a judging did.

    Attributes:
        calibration_id: by which calibration.
        verdicts: verdict → how many pairs got it.
        skipped: pairs of uploads that are gone and have no background, so that nothing can be said of them.
        before: calibration that judged last, None where there was none.
    """

    calibration_id: str
    verdicts: dict[str, int]
    skipped: int
    before: str | None


def is_judged(matches: Dataset, out: str, by: AnyJudge, references: Dataset) -> bool:
    """Return whether every stored pair has its newest verdict by a judge, for a corpus like this.

    Thresholds that a tail model gives follow the size of the corpus. Verdicts stay valid until it has grown
    by `FOLLOW`. Those of a channel follow it without a tail model, too.
    """
    chosen = by.calibration
    judgings = _judgings(out)
    if judgings and judgings[-1].calibration_id != by.calibration_id:
        return False
    events = _searches_after(judgings, matches)
    if any(event.calibration_id != by.calibration_id for event in events):
        return False
    if isinstance(by, ChannelJudge):
        events = [event for event in events if chosen.is_for(event.ids)]
    elif chosen.rates_from != calibration.TAIL_MODEL:
        return True
    searched = {event.references[1] for event in events}
    sizes = [*(judging.references for judging in judgings[-1:]), *_sizes(references, searched)]
    least = max(chosen.references, chosen.for_references or 1)
    return max(least, references.rows) < FOLLOW * max(least, min(sizes, default=references.rows))


def _sizes(references: Dataset, last: set[int]) -> Iterator[int]:
    """Yield how many references stand in the segments up to each of some numbers."""
    numbers = {run_id: segment.number for run_id, segment in datasets.segments_of(references).items()}
    rows = references.rows_by_segment() if last else Counter[str]()
    for number in last:
        yield sum(count for run_id, count in rows.items() if numbers[run_id] <= number)


def active(matches: Dataset, out: str) -> str | None:
    """Return the calibration that judged last; None for none."""
    judgings = _judgings(out)
    if searches := _searches_after(judgings, matches):
        return searches[-1].calibration_id
    return judgings[-1].calibration_id if judgings else None


def _judgings(out: str) -> list[_Counts]:
    """Return what all judgings counted, in their order."""
    verdicts = Dataset.find(storage.join(out, VERDICTS))
    return [verdicts.commit.counts_of(run_id, _Counts) for run_id in verdicts.runs] if verdicts else []


def _searches_after(judgings: list[_Counts], matches: Dataset) -> list[Event]:
    """Return the searches whose pairs the last judging has not seen."""
    seen = judgings[-1].searched if judgings else {}
    return [e for r in matches.runs for e in ledger.events_of(matches.commit, r)[seen.get(r, 0) :]]


def check_floor(matches: Dataset, out: str, judge: AnyJudge) -> None:
    """Raise CalibrationError when a judge would judge pairs that were never stored.

    A floor is one of the score that its calibration judges. What a search left out by another score is not
    known.
    """
    chosen, lowest = judge.calibration, judge.lowest
    ids = {name: getattr(chosen, name) for name in schemas.ROW_IDS}
    events = ledger.events(matches.commit, ids)
    for floor, calibration_id in {(e.floor, e.calibration_id) for e in events if e.floor is not None}:
        if floor > lowest:
            raise CalibrationError(
                f"{matches.uri} keeps pairs with a score of {floor:.4f} or more, but this "
                f"calibration reviews those of {lowest:.4f} or more: scan into another --out"
            )
        if calibration_id in (None, chosen.calibration_id, judge.calibration_id):
            continue
        by = _calibration_of(out, str(calibration_id), ids)
        if by.normalization != chosen.normalization:
            raise CalibrationError(
                f"{matches.uri} keeps pairs with a score of {floor:.4f} or more, normalized "
                f"{_described(by)}, but this calibration normalizes {_described(chosen)}: scan into another "
                "--out, with --keep all where several are to be tried"
            )


def _calibration_of(out: str, calibration_id: str, ids: Mapping[str, str]) -> Calibration:
    """Return what judged scores of some ids: of a joint calibration, the calibration of their channel."""
    uri = place_of(out, calibration_id)
    try:
        return calibration.load(uri)
    except CalibrationError:
        joint = channels.load(uri)
    own = (c for c in joint.channels if all(getattr(c, name) == value for name, value in ids.items()))
    return calibration.load(place_of(out, next(own).calibration_id))


def _described(chosen: Calibration) -> str:
    how = chosen.normalization
    if how is None:
        return "by nothing"
    return f"by {how.factor:g} × the {how.k} best in the background {how.background_id}"


def keep(judge: AnyJudge, out: str) -> None:
    """Keep the calibrations of a judge in an `--out`, so that its judging can be made again."""
    used: list[Calibration | JointCalibration] = [judge.calibration]
    if isinstance(judge, ChannelJudge):
        used.append(judge.channels.joint)
    for chosen in used:
        uri = place_of(out, chosen.calibration_id)
        if not storage.exists(uri):
            chosen.save(uri)


def place_of(out: str, calibration_id: str) -> str:
    """Return where an `--out` keeps a calibration."""
    return storage.join(out, CALIBRATIONS, f"{calibration_id}.json")


def earlier(matches: Dataset, out: str, ids: Mapping[str, str]) -> Calibration:
    """Return the calibration that judged before the present one.

    Args:
        matches: the data set.
        out: parent of `verdicts/`.
        ids: `schemas.ROW_IDS` of the corpora, and `views`; a calibration for others is passed over.

    Raises:
        CalibrationError: there is none.
    """
    for calibration_id in _before(matches, out):
        chosen = calibration.load(place_of(out, calibration_id))
        if chosen.is_for(ids):
            return chosen
    raise CalibrationError(f"{out} has been judged by one calibration only: there is nothing to go back to")


def earlier_channels(matches: Dataset, out: str, ids: Mapping[str, Mapping[str, str]]) -> Channels:
    """Return the joint calibration that judged before the present one.

    Args:
        matches, out: as of `earlier`.
        ids: name of a channel → its ids, as of `earlier`; what judged other channels is passed over.

    Raises:
        CalibrationError: there is none.
    """
    for calibration_id in _before(matches, out):
        try:
            joint = channels.load(place_of(out, calibration_id))
        except CalibrationError:
            continue  # of one channel
        own = [calibration.load(place_of(out, channel.calibration_id)) for channel in joint.channels]
        names = [channel.name for channel in joint.channels]
        if names == list(ids) and all(map(Calibration.is_for, own, ids.values())):
            return Channels(joint, tuple(own))
    raise CalibrationError(
        f"{out} has been judged by one joint calibration only: there is nothing to go back to"
    )


def _before(matches: Dataset, out: str) -> Iterator[str]:
    """Yield the calibrations that judged before the present one, the newest first."""
    now = active(matches, out)
    events = ledger.events(matches.commit)
    known = [event.calibration_id for event in events] + [j.calibration_id for j in _judgings(out)]
    yield from (known_id for known_id in reversed(known) if known_id and known_id != now)


def judge(matches: Dataset, out: str, judges: Sequence[tuple[AnyJudge, int]], execution: Execution) -> Judged:
    """Judge every stored pair anew. Memory does not grow with the pairs.

    Args:
        matches: the data set.
        out: parent of `verdicts/`.
        judges: of each channel the judge, and how many references the channel has. All have one
            `calibration_id`.
        execution: gives the verdicts their run_id and time.

    Raises:
        CalibrationError: the calibration is for other scores, or reaches below the floor.
    """
    [calibration_id] = {judge.calibration_id for judge, _ in judges}
    for judge, _ in judges:
        check_floor(matches, out, judge)
        keep(judge, out)
    before = active(matches, out)
    uri = storage.join(out, VERDICTS)
    judging = _Judging(matches, judges, calibration_id, execution)
    written = [judging.write(uri, i, file) for i, file in enumerate(matches.files)]
    files = [file for file in written if file]
    searched = {run_id: len(ledger.events_of(matches.commit, run_id)) for run_id in matches.runs}

    def add(present: Commit | None) -> Commit:
        base = present or Commit(VERDICTS, execution.run_id, {})
        pairs = sum(judging.verdicts.values())
        references = min(count for _, count in judges)
        counts = _Counts(
            calibration_id=calibration_id, judged=pairs, references=references, searched=searched
        )
        every = {file.name: file for file in (*base.files, *files)}
        others = {run_id: c for run_id, c in base.runs.items() if run_id != execution.run_id}
        runs = others | {execution.run_id: counts.model_dump()}
        return replace(base, run_id=execution.run_id, files=tuple(every.values()), runs=runs)

    datasets.update_commit(uri, add, Dataset.find_own(uri))
    return Judged(calibration_id, dict(judging.verdicts), judging.skipped, before)


@dataclass
class _Judging:
    """Writes the verdicts of matches, file by file and row group by row group, and counts them."""

    matches: Dataset
    judges: Sequence[tuple[AnyJudge, int]]
    calibration_id: str
    execution: Execution
    # Later than any judging before: two may begin in one second.
    judged_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    verdicts: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    def write(self, uri: str, number: int, file: FileRecord) -> FileRecord | None:
        """Write the verdicts of the pairs of a file; None where none of them can be judged."""
        tables = self._tables(file)
        first = next(tables, None)
        if first is None:
            return None
        key = f"{self.execution.run_id}-{self.calibration_id[:16]}-{number:04d}"
        every = chain([first], tables)
        return datasets.write_file(uri, key, every, schemas.VERDICTS, schemas.MATCHES_ROW_GROUP)

    def _tables(self, file: FileRecord) -> Iterator[pa.Table]:
        for group in range(file.row_groups):
            held = self.matches.row_group(file, group, list(_READ))
            for start in range(0, held.num_rows, _ROWS_AT_ONCE):
                for by, references in self.judges:
                    table = self._judged(held.slice(start, _ROWS_AT_ONCE), by, references)
                    if table.num_rows:
                        self.verdicts.update(table["verdict"].to_pylist())
                        yield table

    def _judged(self, held: pa.Table, by: AnyJudge, references: int) -> pa.Table:
        """Return the verdicts of the pairs with a calibration's ids and, where needed, a background."""
        for name in ("encoder_id", "transform_id"):
            held = held.filter(pc.equal(held[name], getattr(by.calibration, name)))
        if by.backgrounds:
            known = by.backgrounds.know(held["query_uri"], held["query_generation"])
            self.skipped += held.num_rows - int(known.sum())
            held = held.filter(pa.array(known))
        if not held.num_rows:
            return schemas.VERDICTS.empty_table()
        judged = by.judge(schemas.completed(held, schemas.MATCHES, None, held.num_rows), references)
        constants = {"judged_at": self.judged_at, "run_id": self.execution.run_id}
        columns = [
            judged[field.name]
            if field.name in (*schemas.PAIR, *VERDICT_COLUMNS)
            else pa.repeat(pa.scalar(constants[field.name], field.type), held.num_rows)
            for field in schemas.VERDICTS
        ]
        return pa.Table.from_arrays(columns, schema=schemas.VERDICTS)
