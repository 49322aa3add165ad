"""Build the commit of `matches/` again, with its ledger, from the files and the public table `ledger/`.

Sound where every pair in the files belongs to a search that the table has. Files with other pairs are set
aside: their searches are repeated. What cannot be told apart is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import pyarrow.compute as pc
from pydantic import JsonValue

from id2core.errors import DatasetError
from id2core.runs import checkup, ledger
from id2core.runs.ledger import WHOLE_ONLY, Event
from id2core.store import datasets, moves, parquet, schemas, storage
from id2core.store.datasets import SUCCESS, Commit, Dataset, FileRecord

LEDGER: Final = "ledger"
_MATCHES: Final = checkup.MATCHES


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuilding did.

    Attributes:
        searches: events of the ledger.
        files: of pairs.
        set_aside: names of files whose pairs are searched again.
    """

    searches: int
    files: int
    set_aside: tuple[str, ...]


def is_needed(out: str) -> bool:
    """Return whether `matches/` has files and no commit that can be read."""
    uri = storage.join(out, _MATCHES)
    try:
        if Dataset.find_own(uri):
            return False
    except DatasetError:
        return True
    return any(name.endswith(".parquet") for name in moves.names_in(uri))


def rebuild(out: str, references: Dataset, queries: Dataset) -> Rebuilt:
    """Build the commit again. A damaged one is kept beside it as `_SUCCESS.damaged`.

    Args:
        out: the place.
        references, queries: the corpora that were searched.

    Raises:
        DatasetError: it cannot be done soundly; the message says what to do.
    """
    uri = storage.join(out, _MATCHES)
    files, unreadable, judges = _files(uri)
    names = datasets.segment_names(queries), datasets.segment_names(references)
    events = _events(out, judges, *names)
    place = Dataset(uri, Commit(_MATCHES, "", {}, files))
    lost = {file.name for file in files if set(file.segments) - events.keys()}
    lost |= set(checkup.uncovered(place, files, events, queries, references).files)
    mixed = [file.name for file in files if file.name in lost and not events.keys().isdisjoint(file.segments)]
    if unreadable or mixed:
        raise DatasetError(
            f"{uri}/{(unreadable + mixed)[0]} is damaged, or has pairs of searches that {out}/{LEDGER} lacks "
            "beside others. Rename matches/ and scan again: the embeddings beside it are used as they are"
        )
    kept = tuple(file for file in files if file.name not in lost)
    with suppress(FileNotFoundError):
        storage.write_bytes(f"{uri}/{SUCCESS}.damaged", storage.read_marked(storage.join(uri, SUCCESS))[0])
    moves.move_out(uri, sorted(lost))
    runs: dict[str, dict[str, JsonValue]] = {
        run: {ledger.EVENTS: [e.model_dump(mode="json") for e in own]} for run, own in events.items()
    }
    datasets.write_commit(uri, Commit(_MATCHES, next(reversed(runs)), {}, kept, runs=runs))
    return Rebuilt(sum(map(len, events.values())), len(kept), tuple(sorted(lost)))


def _events(
    out: str,
    judges: Mapping[str, set[str | None]],
    queries: Mapping[int, str],
    references: Mapping[int, str],
) -> dict[str, tuple[Event, ...]]:
    """Return the searches of the public table by run_id, in their order."""
    table = Dataset.find(storage.join(out, LEDGER))
    rows = table.read(schemas.LEDGER).to_pylist() if table else []
    if not rows:
        raise DatasetError(
            f"{out} has no table {LEDGER}/, so that nothing says what was searched. Rename matches/ and scan "
            "again: the embeddings beside it are used as they are"
        )
    events: dict[str, tuple[Event, ...]] = {}
    for row in sorted(rows, key=lambda row: (row["searched_at"], row["run_id"])):
        event = Event(
            queries=(row["query_from"], row["query_to"]),
            references=(row["reference_from"], row["reference_to"]),
            query_segment=queries.get(row["query_to"], ""),
            reference_segment=references.get(row["reference_to"], ""),
            ids={name: row[name] for name in schemas.ROW_IDS},
            calibration_id=min(filter(None, judges.get(row["run_id"], ())), default=None),
            views=row["views"] or WHOLE_ONLY,
            **{name: row[name] for name in _SAME},
        )
        events[row["run_id"]] = (*events.get(row["run_id"], ()), event)
    return events


# Columns of the table that an event has by the same name.
_SAME: Final = (
    "searched_at",
    "query_version",
    "reference_version",
    "pairs",
    "index_id",
    "top_k",
    "floor",
)


def _files(uri: str) -> tuple[tuple[FileRecord, ...], list[str], dict[str, set[str | None]]]:
    """Return records of the files that a glob sees, names of damaged ones, and run_id → its calibrations."""
    files, unreadable = [], []
    judges: dict[str, set[str | None]] = defaultdict(set)
    for name in sorted(name for name in moves.names_in(uri) if name.endswith(".parquet")):
        try:
            record = parquet.record_of(storage.join(uri, name), name)
            table = datasets.read_file(uri, record, ["run_id", "calibration_id"])
        except DatasetError:
            unreadable.append(name)
            continue
        for row in table.group_by(["run_id", "calibration_id"]).aggregate([]).to_pylist():
            judges[row["run_id"]].add(row["calibration_id"])
        run_ids = pc.unique(table["run_id"]).to_pylist()
        files.append(replace(record, segments=tuple(sorted(run_ids))))
    return tuple(files), unreadable, judges
