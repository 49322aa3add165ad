"""Build the commit of `matches/` again, with its ledger, from the files and the public table `ledger/`.

Sound where every pair in the files belongs to a search that the table has. Files of other pairs alone are set
aside: their searches are repeated. A file with both is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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


def rebuild(out: str, corpora: Sequence[tuple[Dataset, Dataset]]) -> Rebuilt:
    """Build the commit again. A damaged one is kept beside it as `_SUCCESS.damaged`.

    Args:
        out: the place.
        corpora: references and queries that were searched, of each channel.

    Raises:
        DatasetError: it cannot be done soundly; the message says what to do.
    """
    uri = storage.join(out, _MATCHES)
    files, unreadable, judges = _files(uri)
    events = _events(out, judges, corpora)
    place = Dataset(uri, Commit(_MATCHES, "", {}, files))
    uncovered = _uncovered(place, events, corpora)
    lost = {file.name for file in files if uncovered[file.name]}
    mixed = [file.name for file in files if file.name in lost and uncovered[file.name] < file.rows]
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


def _uncovered(
    matches: Dataset,
    events: dict[str, tuple[Event, ...]],
    corpora: Sequence[tuple[Dataset, Dataset]],
) -> Counter[str]:
    """Count the pairs of each file that no search accounts for; those of an encoder without corpora, too."""
    if len(corpora) == 1:
        [(references, queries)] = corpora
        return Counter(checkup.uncovered(matches, matches.files, events, queries, references).files)
    counts = Counter({file.name: file.rows for file in matches.files})
    for references, queries in corpora:
        encoder_id = references.ids["encoder_id"]
        own = {
            run: tuple(event for event in searches if event.ids["encoder_id"] == encoder_id)
            for run, searches in events.items()
        }
        open_pairs = checkup.uncovered(matches, matches.files, own, queries, references, encoder_id).files
        for file in matches.files:
            counts[file.name] += open_pairs.get(file.name, 0) - _rows_of(matches, file, encoder_id)
    return counts


def _rows_of(matches: Dataset, file: FileRecord, encoder_id: str) -> int:
    """Count the pairs of an encoder in a file."""
    table = matches.read_file(file, ["encoder_id"])
    return int(pc.sum(pc.equal(table["encoder_id"], encoder_id)).as_py() or 0)


def _events(
    out: str,
    judges: Mapping[str, set[str | None]],
    corpora: Sequence[tuple[Dataset, Dataset]],
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
    named = [tuple(map(datasets.segment_names, pair)) for pair in corpora]
    by_encoder = {pair[0].ids["encoder_id"]: names for pair, names in zip(corpora, named, strict=True)}
    for row in sorted(rows, key=lambda row: (row["searched_at"], row["run_id"])):
        references, queries = by_encoder.get(row["encoder_id"], named[0])
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
