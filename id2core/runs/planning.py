"""What a run has to do: the listing, less what earlier runs did, cut into parts; and its commit.

The same for every product of `parts`: embeddings, translations.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from id2core.errors import DatasetError, LostRowsError, StorageError
from id2core.runs.parts import PARTS, REJECTS, STAGING, Lineage, PartRecord, Product
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Commit, FileRecord
from id2core.store.rejects import BY_SETTINGS, TRANSIENT
from id2core.store.storage import Object

PART_SIZE = 4096
# Folder of the pictures that a run makes, where it makes some.
PICTURES = "pictures"
_TRIED_AGAIN = pa.array(sorted(TRANSIENT | BY_SETTINGS), pa.string())
# What runs write below their `out`, relative to it.
_OWN_FILES = re.compile(
    rf"[a-z]+/((part-|)[0-9a-f]{{16}}-[0-9a-f]{{8}}\.parquet|{datasets.SUCCESS})|{STAGING}/.*|truth\.csv"
    rf"|_prompts/[0-9a-f]{{16}}\.json|{PICTURES}/[0-9a-f]{{2}}/[0-9a-f]{{64}}-\d+-[0-9a-f]{{8}}\.[a-z]+"
)

Key = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """A run of a job that makes rows of objects.

    Attributes:
        product: what it makes.
        out: the data sets' parent.
        source: the images.
        lineage: ids of the run's rows.
        listed: how many objects there are in all.
        objects: how many of them are still to be done.
        parts: into how many parts of the manifest these are cut.
        manifest, listing: names of the staged files below `out`: what is to be done, one row group per
            part, and everything that was listed.
        done: True when this very run was committed before, with nothing left to try again.
    """

    product: Product
    out: str
    source: str
    lineage: Lineage
    listed: int
    objects: int
    parts: int
    manifest: str
    listing: str
    done: bool


def make(
    product: Product,
    images: str,
    out: str,
    ids: dict[str, str],
    config: dict[str, Any],
    part_size: int = PART_SIZE,
    results: str | None = None,
    leave: frozenset[str] = frozenset(),
) -> Plan:
    """List `images`, subtract what `out` holds already, and stage a manifest of the rest.

    Args:
        product: what is to be made of each image.
        images: folder or bucket prefix.
        out: parent of the product's data set and of `rejects/`.
        ids: what must agree within the data set, by column name.
        config: everything else that decides the rows; part of the run's identity.
        part_size: objects in one part.
        leave: URIs that are no images and are not listed: a file of prompts.
        results: a folder of results; if it lies within `images` it is not listed. By default `out`.

    Raises:
        DatasetError: `out` holds rows of other images, or rows made with other ids.
        StorageError: no such folder or bucket; or nothing in it, while `out` holds rows of it.
    """
    held = {d: datasets.read_commit(storage.join(out, d)) for d in (product.dataset, REJECTS)}
    for dataset, commit in held.items():
        if commit:
            _check_addable(commit, ids, images, storage.join(out, dataset))
    objects = [
        o
        for o in storage.list_objects(images)
        if o.uri not in leave and not _is_output(o.uri, images, results or out, out)
    ]
    if not objects and any(c and c.rows for c in held.values()):
        raise StorageError(
            f"{images} is empty, but {out} holds rows of it: is it mounted? Nothing was changed"
        )
    run_id = datasets.digest_of(images, ids, config, [_key(o) for o in objects])
    done = all(c and c.run_id == run_id and not c.runs[run_id]["transient"] for c in held.values())
    started = datetime.now(UTC) if done else _started(out, run_id)
    lineage = Lineage(ids, run_id, started)
    todo = [] if done else _todo(out, product, held, ids, objects)
    manifest = f"{STAGING}/manifest-{run_id}-{datasets.digest_of([_key(o) for o in todo], part_size)}.parquet"
    listing = f"{STAGING}/listing-{run_id}.parquet"
    if not done:
        _stage(storage.join(out, manifest), todo, part_size)
        _stage(storage.join(out, listing), objects, schemas.ROW_GROUP)
    parts = -(-len(todo) // part_size)
    return Plan(product, out, images, lineage, len(objects), len(todo), parts, manifest, listing, done)


def _key(obj: Object) -> Key:
    return obj.uri, obj.generation


def _check_addable(commit: Commit, ids: dict[str, str], images: str, uri: str) -> None:
    datasets.check_ids(commit, ids, uri)
    if commit.source != images:
        raise DatasetError(
            f"{uri} was made from {commit.source}; adding {images} to it would drop those rows: "
            f"write to another --out"
        )


def _inside(uri: str, folder: str) -> bool:
    return uri.startswith(folder.rstrip("/") + "/")


def _is_output(uri: str, images: str, results: str, out: str) -> bool:
    """True for results of a run, where these lie within the listed folder or around it."""
    if _inside(results, images) and _inside(uri, results):
        return True
    return _inside(uri, out) and bool(_OWN_FILES.fullmatch(uri[len(out.rstrip("/")) + 1 :]))


def _started(out: str, run_id: str) -> datetime:
    """When the run was first planned: a resumed run keeps the time, so its files are the same bytes."""
    uri = storage.join(out, STAGING, f"started-{run_id}.json")
    try:
        return datetime.fromisoformat(json.loads(storage.read_bytes(uri)))
    except FileNotFoundError:
        now = datetime.now(UTC).replace(microsecond=0)
        storage.write_bytes(uri, json.dumps(now.isoformat()).encode())
        return now


def _columns(dataset: str, product: Product) -> list[str]:
    """The columns that name the object of a row."""
    return list(product.key if dataset == product.dataset else Product(dataset).key)


def _todo(
    out: str, product: Product, held: dict[str, Commit | None], ids: dict[str, str], objects: list[Object]
) -> list[Object]:
    """The objects that have no row yet, in a committed file or in a finished part."""
    records = staged(out, ids)
    known: set[Key] = set()
    for dataset, commit in held.items():
        columns = _columns(dataset, product) + (["reason"] if dataset == REJECTS else [])
        uri = storage.join(out, dataset)
        for table in datasets.read_each(uri, _files(commit, dataset, records), columns):
            known.update(_keys(_settled(table)))
    return [o for o in objects if _key(o) not in known]


def _settled(table: pa.Table) -> pa.Table:
    """Rows that need not be made again."""
    if "reason" not in table.column_names:
        return table
    return table.filter(pc.invert(pc.is_in(table["reason"], _TRIED_AGAIN)))


def _keys(table: pa.Table) -> list[Key]:
    """The first two columns, row by row: URI and generation of the object."""
    return list(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))


def staged(out: str, ids: dict[str, str]) -> list[PartRecord]:
    """Records of finished parts, of this run or of one that never committed, with the same ids."""
    return [record for record in staged_by_uri(out).values() if record.ids == ids]


def staged_by_uri(out: str, known: Collection[str] = ()) -> dict[str, PartRecord]:
    """Where records of finished parts stand → the records, less those at `known` places."""
    try:
        found = storage.list_objects(storage.join(out, STAGING, PARTS))
    except StorageError:
        return {}
    return {o.uri: PartRecord.from_json(storage.read_bytes(o.uri)) for o in found if o.uri not in known}


def _files(commit: Commit | None, dataset: str, records: Iterable[PartRecord]) -> list[FileRecord]:
    """Files of the last commit, then of parts finished since; each once."""
    new = [f for r in records if (f := r.file_of(dataset))]
    return list({f.name: f for f in [*(commit.files if commit else ()), *new]}.values())


def _stage(uri: str, objects: list[Object], rows: int) -> None:
    """Write objects as a manifest with `rows` objects in a row group."""
    with storage.replacing(uri) as path, schemas.parquet_writer(path, schemas.MANIFEST) as writer:
        for start in range(0, len(objects), rows):
            chunk = [vars(o) for o in objects[start : start + rows]]
            writer.write_table(pa.Table.from_pylist(chunk, schemas.MANIFEST))


def read_part(plan: Plan, index: int) -> list[Object]:
    """The objects of one part of a plan."""
    with storage.open_input(storage.join(plan.out, plan.manifest)) as file:
        return [Object(**row) for row in pq.ParquetFile(file).read_row_group(index).to_pylist()]


def _read_listing(plan: Plan) -> set[Key]:
    with storage.open_input(storage.join(plan.out, plan.listing)) as file:
        return set(_keys(pq.ParquetFile(file).read(["uri", "generation"])))


def commit(plan: Plan) -> None:
    """Write `_SUCCESS` of both data sets, if and only if every listed object has its rows, or one reject.

    Rows of objects that are no longer listed, and rejects that a later part superseded, are dropped: the
    files that hold them are rewritten without them. Safe to repeat.

    Raises:
        LostRowsError: an object has too few rows, or too many.
    """
    product, run_id = plan.product, plan.lineage.run_id
    try:
        wanted = _read_listing(plan)
    except FileNotFoundError:  # the run is committed, and its staged files are gone
        return
    records = staged(plan.out, plan.lineage.ids)
    seen: Counter[Key] = Counter()
    commits = {}
    for dataset in (product.dataset, REJECTS):  # rows count before an older reject of the same object
        uri = storage.join(plan.out, dataset)
        last = datasets.read_commit(uri)
        files = _keep_wanted(uri, _files(last, dataset, records), _columns(dataset, product), wanted, seen)
        base = last or Commit(dataset, run_id, plan.lineage.ids, source=plan.source)
        commits[uri] = replace(base, files=tuple(files), run_id=run_id)
        if dataset == product.dataset:
            _check_accounted(set(seen), seen, product.rows_each)
            seen = Counter(set(seen))
    _check_accounted(wanted, seen)
    counts = {"listed": len(wanted), "transient": _transient(plan.out, commits)}
    for uri, new in commits.items():
        runs = new.runs | {run_id: counts | {"rows": new.rows}}
        datasets.write_commit(uri, replace(new, runs=runs))
    _tidy(plan)


def _transient(out: str, commits: dict[str, Commit]) -> int:
    """How many objects the next run will try again."""
    uri = storage.join(out, REJECTS)
    reasons = pa.array(sorted(TRANSIENT), pa.string())
    found = datasets.read_each(uri, commits[uri].files, ["reason"])
    return sum(pc.sum(pc.is_in(t["reason"], reasons)).as_py() or 0 for t in found)


def _tidy(plan: Plan) -> None:
    """Remove what this run staged; the listing last, which tells a repeated commit that it is done."""
    own = [uri for uri, record in staged_by_uri(plan.out).items() if record.ids == plan.lineage.ids]
    started = storage.join(plan.out, STAGING, f"started-{plan.lineage.run_id}.json")
    for uri in [*own, started, *(storage.join(plan.out, n) for n in (plan.manifest, plan.listing))]:
        storage.delete(uri)


def _keep_wanted(
    uri: str, files: list[FileRecord], columns: list[str], wanted: set[Key], seen: Counter[Key]
) -> list[FileRecord]:
    """Files reduced to rows of wanted objects that were not seen before, the newest files first."""
    newest_first = files[::-1]
    kept = []
    for record, table in zip(newest_first, datasets.read_each(uri, newest_first, columns), strict=True):
        rows = _keys(table)
        mask = [key in wanted and not seen[key] for key in rows]
        seen.update(key for key, keep in zip(rows, mask, strict=True) if keep)
        if all(mask):
            kept.append(record)
        elif any(mask):
            kept.append(_rewrite(uri, record, mask))
    return kept


def _rewrite(uri: str, record: FileRecord, mask: list[bool]) -> FileRecord:
    table = datasets.read_file(uri, record).filter(pa.array(mask))
    return datasets.write_file(uri, f"part-{datasets.digest_of(record.key, mask)}", [table], table.schema)


def _check_accounted(wanted: set[Key], seen: Counter[Key], rows_each: int = 1) -> None:
    missing = sorted(k for k in wanted if seen[k] < rows_each)
    many = sorted(k for k, n in seen.items() if n > rows_each)
    if missing or many:
        raise LostRowsError(
            f"{len(missing)} listed objects have too few rows and {len(many)} too many "
            f"(for example {(missing + many)[:3]}); nothing was committed. Run again to complete it."
        )
