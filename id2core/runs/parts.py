"""One part of a run: some thousand objects, read ahead of a model, and what their rows leave behind.

A finished part leaves its Parquet files and, last, a record in `_staging/`. `planning` cuts a run into
parts, skips finished ones when it is started again, and commits. What is made of an object (a latent, a
translation) is the business of `embedding` and `oripid.translation`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain, islice
from typing import TypeVar

import pyarrow as pa

from id2core.store import datasets, schemas, storage
from id2core.store.datasets import FileRecord
from id2core.store.rejects import Reject
from id2core.store.storage import Object

REJECTS = "rejects"
STAGING, PARTS = "_staging", "parts"
READ_THREADS = 8
Progress = Callable[[int, int], None]
Item = TypeVar("Item")
# Rows made since the last ones (None: there were none) and the rows of `tables.REJECTS` besides.
Stream = Iterator[tuple[pa.RecordBatch | None, list[dict[str, str]]]]


@dataclass(frozen=True)
class Product:
    """What a run makes of each object that is not rejected.

    Attributes:
        dataset: name of the data set that the rows go to; rejects go beside it.
        key: its columns that name the object, by URI and generation.
        rows_each: how many rows an object has in it.
    """

    dataset: str
    key: tuple[str, str] = ("uri", "generation")
    rows_each: int = 1


@dataclass(frozen=True)
class Lineage:
    """What every row of a run says of how it was made.

    Attributes:
        ids: what must agree within a data set, by column name.
        run_id: the run.
        started: when it was first planned; the same for a resumed run.
    """

    ids: dict[str, str]
    run_id: str
    started: datetime


@dataclass(frozen=True)
class PartRecord:
    """What a finished part left behind: `rows` in the product's data set, and rejects."""

    key: str
    run_id: str
    ids: dict[str, str]
    objects: int
    rows: FileRecord | None
    rejects: FileRecord | None

    @property
    def counts(self) -> tuple[int, int]:
        """How many objects became rows, and how many were rejected."""
        rejected = self.rejects.rows if self.rejects else 0
        return self.objects - rejected, rejected

    def file_of(self, dataset: str) -> FileRecord | None:
        """The part's file in `rejects` or in the product's data set."""
        return self.rejects if dataset == REJECTS else self.rows

    def to_json(self) -> bytes:
        """The record as it is staged."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(data: bytes) -> PartRecord:
        """The inverse of `to_json`."""
        raw = json.loads(data)
        files = {k: FileRecord(**raw[k]) if raw[k] else None for k in ("rows", REJECTS)}
        return PartRecord(**raw | files)


def read_ahead(
    objects: Iterable[Object],
    fetch: Callable[[Object], Item | Reject],
    ahead: int,
    threads: int = READ_THREADS,
) -> Iterator[tuple[Object, Item | Reject]]:
    """What `fetch` makes of the objects, in their order: by threads, at most `ahead` of them in memory."""

    def fetched(obj: Object) -> tuple[Object, Item | Reject]:
        return obj, fetch(obj)

    with ThreadPoolExecutor(threads) as pool:
        source = iter(objects)
        waiting = deque(pool.submit(fetched, obj) for obj in islice(source, ahead))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(fetched, obj) for obj in islice(source, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def batches(
    fetched: Iterable[tuple[Object, Item | Reject]], size: int
) -> Iterator[tuple[list[Item], list[tuple[Object, Reject]]]]:
    """Gather `size` items at a time, with the rejects met on the way."""
    good: list[Item] = []
    bad: list[tuple[Object, Reject]] = []
    for obj, result in fetched:
        if isinstance(result, Reject):
            bad.append((obj, result))
        else:
            good.append(result)
        if len(good) == size:
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad


def reject_row(obj: Object, reject: Reject, run_id: str) -> dict[str, str]:
    """A row of `tables.REJECTS`."""
    return {
        "uri": obj.uri,
        "generation": obj.generation,
        "reason": str(reject.reason),
        "detail": reject.detail.encode(errors="replace").decode(),
        "run_id": run_id,
    }


def part_key(objects: list[Object], ids: dict[str, str]) -> str:
    """A name for a part: what is worked on, and with what."""
    return datasets.digest_of([(o.uri, o.generation) for o in objects], sorted(ids.items()))


def record_uri(out: str, key: str) -> str:
    """Where the record of a finished part is staged."""
    return storage.join(out, STAGING, PARTS, f"{key}.json")


def write(out: str, product: Product, objects: list[Object], lineage: Lineage, stream: Stream) -> PartRecord:
    """Write a part below `out`: its two files, then its record. Repeated, it gives the same bytes.

    Args:
        out: parent of the data sets.
        product: what the rows are.
        objects: the part.
        lineage: of the run.
        stream: rows and rejects of the objects.
    """
    key = part_key(objects, lineage.ids)
    rejected: list[dict[str, str]] = []

    def row_groups() -> Iterator[pa.RecordBatch]:
        for batch, bad in stream:
            rejected.extend(bad)
            if batch is not None:
                yield batch
            del batch  # or it would stay in memory while the next row group fills

    made = row_groups()
    first = next(made, None)
    name = f"part-{key}"
    rows = rejects = None
    if first is not None:
        schema, every = first.schema, chain([first], made)
        del first
        rows = datasets.write_file(storage.join(out, product.dataset), name, every, schema)
    if rejected:
        table = pa.Table.from_pylist(rejected, schemas.REJECTS)
        schemas.check_reasons(table)
        rejects = datasets.write_file(storage.join(out, REJECTS), name, [table], schemas.REJECTS)
    record = PartRecord(key, lineage.run_id, lineage.ids, len(objects), rows, rejects)
    storage.write_bytes(record_uri(out, key), record.to_json())
    return record
