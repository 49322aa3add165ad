"""Pictures that somebody had taken down: the table `takedowns/` of an `--out`, and what follows for runs.

A picture is its bytes (`image_id`). As long as it is not reinstated, runs of the `--out` refuse it wherever
it lies. The row stays for good: it says who was taken down, when, and why. `erasure` removes what was made of
the picture.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from id2core.errors import DatasetError
from id2core.runs import units
from id2core.runs.execution import Execution
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Commit, Dataset, FileRecord
from id2core.store.rejects import Reason, Reject

TAKEDOWNS: Final = "takedowns"
REFUSED: Final = Reject(Reason.TAKEN_DOWN, "id2 takedown --reinstate admits it again")


@dataclass(frozen=True)
class Takedown:
    """One row of `takedowns/`.

    Attributes:
        image_id: the picture.
        uris: where it was known to be.
        reason: why, as it was given.
        requested_at, run_id: when and by which run it was taken down.
        reinstated_at: when it was admitted again; None while it is not.
    """

    image_id: str
    uris: tuple[str, ...]
    reason: str | None
    requested_at: datetime
    run_id: str
    reinstated_at: datetime | None = None


def read(out: str) -> list[Takedown]:
    """Return all rows of an `--out`; none where nothing was ever taken down.

    Raises:
        DatasetError: the table is damaged: it is not known what to refuse.
    """
    dataset = Dataset.find_own(storage.join(out, TAKEDOWNS))
    return _rows(dataset.uri, dataset.commit) if dataset else []


def refused(out: str) -> frozenset[str]:
    """Return the pictures that runs of an `--out` refuse; one small file is read where nothing has changed.

    Raises:
        DatasetError: the table is damaged.
    """
    dataset = Dataset.find_own(storage.join(out, TAKEDOWNS))
    return _refused(dataset.uri, dataset.files) if dataset else frozenset()


def withheld(out: str, place: str) -> frozenset[tuple[str, str]]:
    """Return URI and generation of the objects of a corpus that are known to be refused pictures.

    Args:
        out: the `--out`, which has the table.
        place: parent of the data sets of the corpus.

    Raises:
        DatasetError: a data set is damaged.
    """
    pictures = refused(out)
    if not pictures:
        return frozenset()
    objects: set[tuple[str, str]] = set()
    rejects = Dataset.find(storage.join(place, units.REJECTS))
    for table in rejects.tables(["reason", "uri", "generation"]) if rejects else ():
        objects.update(_objects(table.filter(pc.equal(table["reason"], str(Reason.TAKEN_DOWN)))))
    embeddings = Dataset.find(storage.join(place, schemas.EMBEDDINGS))
    log = embeddings.commit.removals if embeddings else ()
    columns, ids = ["image_id", "uri", "generation"], pa.array(sorted(pictures), pa.string())
    for file in log:
        table = datasets.read_file(storage.join(place, datasets.REMOVALS), file, columns)
        objects.update(_objects(table.filter(pc.is_in(table["image_id"], value_set=ids))))
    return frozenset(objects)


def _objects(table: pa.Table) -> Iterator[tuple[str, str]]:
    generations = pc.fill_null(table["generation"], "")
    return zip(table["uri"].to_pylist(), generations.to_pylist(), strict=True)


@functools.lru_cache(maxsize=4)
def _refused(uri: str, files: tuple[FileRecord, ...]) -> frozenset[str]:
    rows = (row for file in files for row in _read(uri, file))
    return frozenset(row.image_id for row in rows if row.reinstated_at is None)


def add(out: str, uris: Mapping[str, Collection[str]], reason: str | None, execution: Execution) -> None:
    """Refuse pictures from now on. Safe to repeat.

    Args:
        out: the place.
        uris: image_id → where the picture is known to be.
        reason: why.
        execution: gives the rows their run_id and time.
    """

    def change(rows: list[Takedown]) -> list[Takedown]:
        held = {row.image_id for row in rows if row.reinstated_at is None}
        known = [
            replace(row, uris=tuple(sorted({*row.uris, *uris.get(row.image_id, ())})))
            if row.reinstated_at is None
            else row
            for row in rows
        ]
        new = (
            Takedown(image_id, tuple(sorted(own)), reason, execution.started, execution.run_id)
            for image_id, own in sorted(uris.items())
            if image_id not in held
        )
        return [*known, *new]

    _update(out, change, execution)


def reinstate(out: str, image_ids: Collection[str], execution: Execution) -> None:
    """Admit pictures again: the next run that finds them embeds them. Safe to repeat."""

    def change(rows: list[Takedown]) -> list[Takedown]:
        return [
            replace(row, reinstated_at=execution.started)
            if row.image_id in image_ids and row.reinstated_at is None
            else row
            for row in rows
        ]

    _update(out, change, execution)


def _update(out: str, change: Callable[[list[Takedown]], list[Takedown]], execution: Execution) -> None:
    uri = storage.join(out, TAKEDOWNS)

    def rewritten(present: Commit | None) -> Commit:
        base = present or Commit(TAKEDOWNS, execution.run_id, {})
        rows = change(_rows(uri, base))
        table = pa.Table.from_pylist([_to_row(row) for row in rows], schemas.TAKEDOWNS)
        file = datasets.write_file(uri, execution.run_id, [table], schemas.TAKEDOWNS)
        return replace(base, run_id=execution.run_id, files=(file,), runs=base.runs | {execution.run_id: {}})

    datasets.update_commit(uri, rewritten, Dataset.find_own(uri))


def _rows(uri: str, commit: Commit) -> list[Takedown]:
    return [row for file in commit.files for row in _read(uri, file)]


def _read(uri: str, file: FileRecord) -> Iterable[Takedown]:
    for row in datasets.read_file(uri, file).to_pylist():
        try:
            yield Takedown(**row | {"uris": tuple(json.loads(row["uris"]))})
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{uri}/{file.name}: not a takedown: {error}") from error


def _to_row(row: Takedown) -> dict[str, object]:
    return asdict(row) | {"uris": json.dumps(row.uris, ensure_ascii=False)}
