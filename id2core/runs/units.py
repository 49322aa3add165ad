"""Record units of work, so that no attempt repeats what another one has written.

    OUT/_staging/files/DATASET/…   the files of a unit
    OUT/_staging/parts/KEY.json    its record, written last

A unit is, for example, a part of a corpus, the candidates of a shard, or a file with another W. Its key is a
hash of its inputs. Any later attempt takes the recorded work, if the files are whole, and makes the rest: a
restarted job, a duplicate on another worker, or another run. A slow unit leaves a record every two minutes.
The key of each record names what was left to do when it was begun, so the records of a unit form a chain.

An engine that loses a machine starts its job again and hands out every unit again. The records are the only
checkpoint of a job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from pydantic import JsonValue

from id2core.errors import DatasetError, StorageError
from id2core.store import datasets, storage, strict_json
from id2core.store.ahead import in_order
from id2core.store.datasets import FileRecord
from id2core.store.moves import STAGING as STAGING

REJECTS = "rejects"
PARTS = "parts"
# Records that are read at a time.
_AT_ONCE = 8


@dataclass(frozen=True)
class Record:
    """What a worker has made of a unit, or of a piece of it.

    Attributes:
        key: names what was left to do of the unit.
        run_id, ids: of the run that made it.
        objects: how much of the unit it covers: objects, blocks, or rows.
        dataset: name of the data set that the rows are for.
        rows, rejects: its files; None for a file without rows.
        notes: JSON values for its job.
    """

    key: str
    run_id: str
    ids: dict[str, str]
    objects: int
    dataset: str
    rows: FileRecord | None
    rejects: FileRecord | None = None
    notes: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, int]:
        """Return how many objects became rows, and how many were rejected."""
        rejected = self.rejects.rows if self.rejects else 0
        return self.objects - rejected, rejected

    @property
    def source(self) -> str:
        """URI of the source of its objects."""
        return self.files[0][1].source if self.files else ""

    @property
    def files(self) -> list[tuple[str, FileRecord]]:
        """Its files, each with the name of its data set."""
        named = [(self.dataset, self.rows), (REJECTS, self.rejects)]
        return [(name, file) for name, file in named if file]

    def to_json(self) -> bytes:
        """Return the record as JSON with a checksum."""
        raw = asdict(self)
        return json.dumps(raw | {"checksum": datasets.digest_of(raw)}).encode()

    @staticmethod
    def from_json(data: bytes) -> Record:
        """Return the record that `to_json` wrote.

        Raises:
            DatasetError: it is damaged.
        """
        try:
            raw = strict_json.parse_object(data)
            if raw.pop("checksum") != datasets.digest_of(raw):
                raise ValueError("its content does not fit its checksum")
            files = {k: FileRecord.of_json(raw[k]) if raw[k] else None for k in ("rows", REJECTS)}
            record = Record(**raw | files)
        except (ValueError, LookupError, TypeError) as error:
            raise DatasetError(f"not the record of a part: {error}") from error
        if not isinstance(record.ids, dict) or type(record.objects) is not int:
            raise DatasetError("not the record of a part: ids or objects are of another type")
        return record


def record_uri(place: str, key: str) -> str:
    """Return the URI of the record with a key.

    Args:
        place: parent of the data sets that its files are for.
        key: of the record.
    """
    return storage.join(place, STAGING, PARTS, f"{key}.json")


def leave(place: str, record: Record) -> Record:
    """Write the record of files that are in place; return it."""
    storage.write_bytes(record_uri(place, record.key), record.to_json())
    return record


def is_whole(place: str, record: Record) -> bool:
    """Read the files of a record whole, and return whether they match it."""
    try:
        for name, file in record.files:
            datasets.verify(storage.join(place, name), file)
    except DatasetError:
        return False
    return True


def find(place: str, key: str) -> Record | None:
    """Return the record with a key; None unless it can be read and its files are whole."""
    record = _read(record_uri(place, key))
    return record if record and is_whole(place, record) else None


def chain(
    place: str, total: int, key_of: Callable[[int], str], fits: Callable[[Record], bool] = lambda record: True
) -> Iterator[Record]:
    """Yield the records that earlier attempts left of a unit, in order, up to the first gap.

    Args:
        place: parent of the data sets that its files are for.
        total: size of the unit, in what `Record.objects` counts.
        key_of: amount made → key of the record of what is left.
        fits: whether the run may take a record.
    """
    made = 0
    while made < total:
        record = find(place, key_of(made))
        if record is None or not 0 < record.objects <= total - made or not fits(record):
            return
        yield record
        made += record.objects


def staged(place: str, known: Collection[str] = ()) -> dict[str, Record]:
    """Return the URIs of staged records → the records, without those in `known`.

    Damaged records are left out, so their units are made again.
    """
    try:
        listed = [o.uri for o in storage.list_objects(storage.join(place, STAGING, PARTS))]
    except StorageError:
        return {}
    new = [uri for uri in listed if uri not in known]
    if not new:
        return {}
    read = zip(new, in_order(new, _read, _AT_ONCE), strict=True)
    return {uri: record for uri, record in read if record}


def _read(uri: str) -> Record | None:
    with suppress(FileNotFoundError, DatasetError):  # another run may have committed it meanwhile
        return Record.from_json(storage.read_marked(uri)[0])
    return None


def delete(uris: Iterable[str]) -> None:
    """Delete staged objects, many at a time. Missing ones are no error."""
    for _ in in_order(uris, storage.delete, _AT_ONCE):
        pass
