"""A new calibration judges the pairs that are stored, without a search: `verdicts/` beside `matches/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import Judge

VERDICTS = "verdicts"
# Where an `--out` keeps the calibrations that it was judged by.
CALIBRATIONS = "calibrations"
_PAIR = ("query_uri", "query_generation", "reference_id", "encoder_id", "transform_id", "channel")


class _Counts(BaseModel):
    """What a judging says in the commit of `verdicts/`: by what, how many pairs, of how many searches."""

    calibration_id: str = ""
    judged: int = 0
    events: int = 0


@dataclass(frozen=True)
class Judged:
    """What a judging did.

    Attributes:
        calibration_id: by which calibration.
        pairs: how many pairs got a new verdict.
        before: calibration that judged last, None where there was none.
    """

    calibration_id: str
    pairs: int
    before: str | None


def is_judged(matches: Dataset, out: str, calibration_id: str) -> bool:
    """Return whether every stored pair has its verdict by a calibration."""
    judgings = _judgings(out)
    last = judgings[-1] if judgings else _Counts()
    searches = _events(matches)[last.events if last.calibration_id == calibration_id else 0 :]
    return all(event.calibration_id == calibration_id for event in searches)


def active(matches: Dataset, out: str) -> str | None:
    """Return the calibration that judged last; None for none."""
    judgings, events = _judgings(out), _events(matches)
    if judgings and len(events) == judgings[-1].events:
        return judgings[-1].calibration_id
    return events[-1].calibration_id if events else None


def _judgings(out: str) -> list[_Counts]:
    """Return what all judgings counted, in their order."""
    verdicts = Dataset.find(storage.join(out, VERDICTS))
    return [verdicts.commit.counts_of(run_id, _Counts) for run_id in verdicts.runs] if verdicts else []


def _events(matches: Dataset) -> list[Event]:
    return [event for run_id in matches.runs for event in ledger.events_of(matches.commit, run_id)]


def check_floor(matches: Dataset, chosen: Calibration) -> None:
    """Raise CalibrationError when a calibration would judge pairs that were never stored."""
    for event in _events(matches):
        if event.floor is not None and event.floor > chosen.review.score:
            raise CalibrationError(
                f"{matches.uri} keeps pairs with a score of {event.floor:.4f} or more, but this "
                f"calibration reviews those of {chosen.review.score:.4f} or more: scan into another --out"
            )


def keep(chosen: Calibration, out: str) -> None:
    """Keep a calibration in an `--out`, so that its judging can be made again."""
    uri = _place(out, chosen.calibration_id)
    if not storage.exists(uri):
        chosen.save(uri)


def _place(out: str, calibration_id: str) -> str:
    return storage.join(out, CALIBRATIONS, f"{calibration_id}.json")


def earlier(matches: Dataset, out: str) -> Calibration:
    """Return the calibration that judged before the present one.

    Raises:
        CalibrationError: there is none.
    """
    now = active(matches, out)
    known = [e.calibration_id for e in _events(matches)] + [j.calibration_id for j in _judgings(out)]
    others = [calibration_id for calibration_id in known if calibration_id and calibration_id != now]
    if not others:
        raise CalibrationError(
            f"{out} has been judged by one calibration only: there is nothing to go back to"
        )
    return calibration.load(_place(out, others[-1]))


def judge(matches: Dataset, out: str, by: Judge, references: int, execution: Execution) -> Judged:
    """Judge every stored pair by a calibration.

    Args:
        matches: the data set.
        out: parent of `verdicts/`.
        by: the judge.
        references: rows of the reference corpus.
        execution: gives the verdicts their run_id and time.

    Raises:
        CalibrationError: the calibration is for other scores, or reaches below the floor.
    """
    check_floor(matches, by.calibration)
    before = active(matches, out)
    keep(by.calibration, out)
    uri = storage.join(out, VERDICTS)
    key = f"{execution.run_id}-{by.calibration_id[:16]}"
    files = [
        _write(uri, f"{key}-{i:04d}", table)
        for i, table in enumerate(_judged(matches, by, references, execution))
    ]
    pairs = sum(file.rows for file in files)

    def add(present: Commit | None) -> Commit:
        base = present or Commit(VERDICTS, execution.run_id, {})
        counts = _Counts(
            calibration_id=by.calibration_id, judged=pairs, events=len(_events(matches))
        ).model_dump()
        every = {file.name: file for file in (*base.files, *files)}
        runs = base.runs | {execution.run_id: counts}
        return replace(base, run_id=execution.run_id, files=tuple(every.values()), runs=runs)

    datasets.update_commit(uri, add, Dataset.find_own(uri))
    return Judged(by.calibration_id, pairs, before)


def _judged(matches: Dataset, by: Judge, references: int, execution: Execution) -> Iterator[pa.Table]:
    """Yield the verdicts of the pairs of each file that have the calibration's ids."""
    chosen = by.calibration
    for table in matches.tables():
        for name in ("encoder_id", "transform_id"):
            table = table.filter(pc.equal(table[name], getattr(chosen, name)))
        if not table.num_rows:
            continue
        judged = by.judge(table, references)
        constants = {"judged_at": execution.started, "run_id": execution.run_id}
        columns = [
            judged[field.name]
            if field.name in (*_PAIR, *VERDICT_COLUMNS)
            else pa.repeat(pa.scalar(constants[field.name], field.type), table.num_rows)
            for field in schemas.VERDICTS
        ]
        yield pa.Table.from_arrays(columns, schema=schemas.VERDICTS)


def _write(uri: str, key: str, table: pa.Table) -> FileRecord:
    return datasets.write_file(uri, key, [table], schemas.VERDICTS, schemas.MATCHES_ROW_GROUP)
