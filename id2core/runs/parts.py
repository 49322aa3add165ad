"""Make one part of a run: read some thousand objects ahead of a model, and write their rows.

A part is a unit of work, see `units`: a worker writes its Parquet files, and last a record. A slow part gets
them every two minutes. `planning` cuts a run into parts, skips finished ones in a repeated run, and commits.
`encoders.embedding` and `translation.rows` make the rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, islice
from typing import TypeVar

import pyarrow as pa
from pydantic import JsonValue

from id2core import defaults
from id2core.runs import units
from id2core.runs.units import REJECTS, Record
from id2core.store import datasets, schemas, storage
from id2core.store.rejects import Reject
from id2core.store.storage import Object

READ_THREADS = 8
# Called after a batch with how many of its objects were made and how many rejected.
OnBatch = Callable[[int, int], None]
Item = TypeVar("Item")
# Rows since the last item (None where there are none), and rows of `schemas.REJECTS`.
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
    """What every row of a run records of how it was made.

    Attributes:
        ids: what must agree within a data set, by column name.
        run_id: the execution that writes the row.
        started: when it began.
        source: URI of the source that the objects are of.
        options: whatever else decides what is in a row. A run adopts no part that was made with others.
    """

    ids: dict[str, str]
    run_id: str
    started: datetime
    source: str = ""
    options: dict[str, JsonValue] = field(default_factory=dict)


def read_ahead(
    objects: Iterable[Object],
    fetch: Callable[[Object], Item | Reject],
    ahead: int,
    threads: int = READ_THREADS,
) -> Iterator[tuple[Object, Item | Reject]]:
    """Yield each object with what `fetch` returns for it, in their order, fetched ahead by threads.

    Args:
        objects: what to fetch.
        fetch: called in a thread; it returns an item or a reject.
        ahead: at most this many results are in memory.
        threads: how many fetch at a time.
    """

    def fetch_one(obj: Object) -> tuple[Object, Item | Reject]:
        return obj, fetch(obj)

    with ThreadPoolExecutor(threads) as pool:
        source = iter(objects)
        waiting = deque(pool.submit(fetch_one, obj) for obj in islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(fetch_one, obj) for obj in islice(source, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def batches(
    fetched: Iterable[tuple[Object, Item | Reject]],
    size: int,
    size_of: Callable[[Item], int] = lambda item: 1,
) -> Iterator[tuple[list[Item], list[tuple[Object, Reject]]]]:
    """Yield items of `size` together, or less where the next one has no room, with the rejects between them.

    Args:
        fetched: objects with their items, or rejects.
        size: of a batch.
        size_of: of an item; a larger one than `size` is a batch alone.
    """
    good: list[Item] = []
    bad: list[tuple[Object, Reject]] = []
    held = 0
    for obj, result in fetched:
        if isinstance(result, Reject):
            bad.append((obj, result))
            continue
        if good and held + size_of(result) > size:
            yield good, bad
            good, bad, held = [], [], 0
        good.append(result)
        held += size_of(result)
        if held >= size:
            yield good, bad
            good, bad, held = [], [], 0
    if good or bad:
        yield good, bad


def reject_row(obj: Object, reject: Reject, run_id: str) -> dict[str, str]:
    """Return a row of `schemas.REJECTS`."""
    return {
        "uri": obj.uri,
        "generation": obj.generation,
        "reason": str(reject.reason),
        "detail": reject.detail.encode(errors="replace").decode(),
        "run_id": run_id,
    }


def part_key(objects: list[Object], lineage: Lineage) -> str:
    """Return a name for a part: a hash of its objects, and of the ids and options of the run."""
    made_with = lineage.ids | lineage.options
    return datasets.digest_of([(o.uri, o.generation) for o in objects], sorted(made_with.items()))


def remaining(out: str, objects: list[Object], lineage: Lineage) -> list[Object]:
    """Return the objects of a part that the records of earlier attempts of this run do not cover."""
    records = units.chain(
        out,
        len(objects),
        lambda made: part_key(objects[made:], lineage),
        lambda record: record.run_id == lineage.run_id,
    )
    return objects[sum(record.objects for record in records) :]


def write(
    out: str,
    product: Product,
    objects: list[Object],
    lineage: Lineage,
    stream: Stream,
    seconds: float = defaults.RECORD_SECONDS,
) -> list[Record]:
    """Write a part below `out`: its files, then a record. A slow part is cut into several such pieces.

    Rows do not depend on where the part is cut. The key of each record names what was left to do when it was
    begun, so `remaining` finds it.

    Args:
        out: parent of the data sets.
        product: what the rows are.
        objects: the part.
        lineage: ids and run of the rows.
        stream: rows and rejects of the objects, in their order.
        seconds: time after which a piece ends.

    Returns:
        The records; none for no objects.
    """
    records = []
    while objects:
        record = _write_some(out, product, objects, lineage, stream, time.monotonic() + seconds)
        records.append(record)
        objects = objects[record.objects :]
    return records


def _write_some(
    out: str, product: Product, objects: list[Object], lineage: Lineage, stream: Stream, until: float
) -> Record:
    """Write the files and the record of what comes before a time, of at least one row or reject."""
    key = part_key(objects, lineage)
    rejected: list[dict[str, str]] = []
    ended = True

    def row_groups() -> Iterator[pa.RecordBatch]:
        nonlocal ended
        for batch, bad in stream:
            rejected.extend(bad)
            if batch is not None:
                yield batch
            some = batch is not None or rejected
            del batch  # or it would stay in memory while the next row group fills
            if some and time.monotonic() >= until:
                ended = False
                return

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
    # The stream is in the order of the objects, so that what has come is of the first of them.
    count = (rows.rows // product.rows_each if rows else 0) + len(rejected)
    completed = len(objects) if ended else count
    uris = [obj.uri for obj in objects[:completed]]
    bounds = min(uris), max(uris)
    rows, rejects = (
        file and replace(file, segments=(lineage.run_id,), source=lineage.source, bounds=bounds)
        for file in (rows, rejects)
    )
    made_by = lineage.run_id, lineage.ids
    record = Record(key, *made_by, completed, product.dataset, rows, rejects, lineage.options)
    return units.leave(out, record)
