"""Plan a run: list its objects, subtract what earlier runs made, cut the rest into parts, and commit.

The same for every product of `parts`: embeddings and translations.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from id2core import defaults
from id2core.errors import DatasetError, LostRowsError, StorageError, printable
from id2core.runs.execution import Execution
from id2core.runs.parts import PARTS, READ_THREADS, REJECTS, STAGING, Lineage, PartRecord, Product
from id2core.store import datasets, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import Commit, Dataset, FileRecord, Segment, SourceRecord
from id2core.store.rejects import BY_SETTINGS, TRANSIENT
from id2core.store.storage import UNSEEN, Object, Remark

# How often a commit is tried while other runs commit to the same data sets.
_ATTEMPTS = 5
# What the name of a file in `_staging/` begins with that keeps a manifest and a listing, see `keep_staged`.
KEEP = "keep"
# Folder of the pictures that a run makes, where it makes some.
PICTURES = "pictures"
_RETRIED = pa.array(sorted(TRANSIENT | BY_SETTINGS), pa.string())
# Folder of answers of a prompt server.
PROMPTS = "_prompts"
# A data set of this many objects must not shrink by more than this share unawares.
SHRINK_FROM, SHRINK_SHARE = 100, 0.1
# What a listing of images has where somebody planted the sign of a data set, or forgot `dataset:`.
_MARKERS = (datasets.SUCCESS, f"embeddings/{datasets.SUCCESS}")
_log = logging.getLogger("id2")

Key = tuple[str, str]


class _Counts(BaseModel):
    """What a run counts in the commits of its rows and rejects.

    Attributes:
        plan_id: names its work.
        listed: objects of the source.
        transient: objects that the next run tries again.
    """

    plan_id: str = ""
    listed: int = 0
    transient: int = 0


@dataclass(frozen=True)
class Held:
    """The two data sets of a run as they were last read; None for one that was not there.

    Attributes:
        rows: the product's data set.
        rejects: the rejects beside it.
    """

    rows: Dataset | None
    rejects: Dataset | None

    @staticmethod
    def read(product: Product, out: str) -> Held:
        """Read both commits."""
        return Held(*(Dataset.find_own(storage.join(out, name)) for name in (product.dataset, REJECTS)))

    @staticmethod
    def find(product: Product, out: str) -> Held:
        """Read both commits where there are any: rejects are committed before rows, and read after them."""
        rows = Dataset.find_own(storage.join(out, product.dataset))
        return Held(rows, Dataset.find_own(storage.join(out, REJECTS)) if rows else None)

    @property
    def datasets(self) -> list[Dataset]:
        """Return the data sets that exist."""
        return [dataset for dataset in (self.rows, self.rejects) if dataset]

    def objects(self, product: Product) -> int:
        """Return how many objects have rows."""
        return self.rows.rows // product.rows_each if self.rows else 0

    def committed_by(self, plan_id: str) -> str | None:
        """Return the run that committed this work last, with nothing to retry; None where there is work."""
        if self.rows is None or self.rejects is None or self.rows.run_id != self.rejects.run_id:
            return None
        for dataset in self.datasets:
            counts = dataset.commit.counts_of(dataset.run_id, _Counts)
            if counts.plan_id != plan_id or counts.transient:
                return None
        return self.rows.run_id


@dataclass(frozen=True)
class Plan:
    """The work of one run that makes rows of objects.

    Attributes:
        product: what it makes.
        out: parent of the data sets.
        held: the data sets as they were when the run was planned.
        source: the images.
        plan_id: names the work by its content: images, ids, configuration and listing. Two executions with
            the same work share it, and so do their staged files.
        lineage: ids, run_id and time of the rows that this run writes.
        listed: how many objects the source has.
        objects: how many of them have no row yet.
        parts: into how many parts of the manifest these are cut.
        manifest, listing: the staged files, below `out`: the objects without a row, one row group per part,
            and every listed object. Only this run has them. None where there is nothing to do.
        committed: True when this very work was committed before, with nothing to retry. `lineage` then has
            the run_id that committed it.
        allow_shrink: whether a corpus may lose more than a tenth of its rows.
        adopted: run_ids of killed runs whose finished parts are counted among what is made.
    """

    product: Product
    out: str
    held: Held
    source: str
    plan_id: str
    lineage: Lineage
    listed: int
    objects: int
    parts: int
    manifest: FileRecord | None
    listing: FileRecord | None
    committed: bool
    allow_shrink: bool = False
    adopted: tuple[str, ...] = ()

    def uri_of(self, dataset: str) -> str:
        """Return the URI of the product's data set or of the rejects."""
        return storage.join(self.out, dataset)


def make(
    product: Product,
    images: str,
    out: str,
    ids: dict[str, str],
    config: Mapping[str, object],
    execution: Execution,
    part_size: int = defaults.PART_SIZE,
    results: str | None = None,
    excluded: frozenset[str] = frozenset(),
    allow_shrink: bool = False,
) -> Plan:
    """List `images`, subtract what `out` holds already, and stage a manifest of the rest.

    Args:
        product: what is to be made of each image.
        images: folder or bucket prefix.
        out: parent of the product's data set and of `rejects/`.
        ids: what must agree within the data set, by column name.
        config: everything else that decides the rows, JSON-able; part of `plan_id`.
        execution: gives the rows their run_id and time.
        part_size: objects in one part.
        results: a folder of results; if it lies within `images` it is not listed. By default `out`.
        excluded: URIs that are no images and are not listed, for example a file of prompts.
        allow_shrink: do not fail where a corpus of 100 objects or more loses over a tenth of its rows.

    Raises:
        DatasetError: `out` holds rows of other images, or rows made with other ids.
        StorageError: no such folder or bucket; or nothing in it, while `out` holds rows of it; or far less
            than there was.
    """
    held = Held.find(product, out)
    for dataset in held.datasets:
        _check_addable(dataset, ids, images)
    outputs = _Outputs(product, images, results or out, out)
    objects = _keep_unseen(_list(images, outputs, excluded), product, held)
    _check_mounted(images, out, objects, held, allow_shrink=allow_shrink)
    plan_id = datasets.digest_of(images, ids, config, [_key(o) for o in objects])
    run_id = held.committed_by(plan_id)
    pending: list[Object] = []
    records: list[PartRecord] = []
    if run_id is None:
        records = _adoptable(out, ids, datasets.segments_of(held.rows) if held.rows else ())
        pending, possible = _pending(out, product, held, records, objects)
        _check_shrink(images, out, held.objects(product), possible, allow_shrink=allow_shrink)
    staged_as = f"{STAGING}/{{}}-{plan_id}-{execution.run_id}"
    return Plan(
        product=product,
        out=out,
        held=held,
        source=images,
        plan_id=plan_id,
        lineage=Lineage(ids, run_id or execution.run_id, execution.started, images),
        listed=len(objects),
        objects=len(pending),
        parts=-(-len(pending) // part_size),
        manifest=None if run_id else _stage(out, staged_as.format("manifest"), pending, part_size),
        listing=None if run_id else _stage(out, staged_as.format("listing"), objects, schemas.ROW_GROUP),
        committed=run_id is not None,
        allow_shrink=allow_shrink,
        adopted=tuple(sorted({record.run_id for record in records})),
    )


def _key(obj: Object) -> Key:
    return obj.uri, obj.generation


def _check_addable(dataset: Dataset, ids: dict[str, str], images: str) -> None:
    dataset.check_ids(ids)
    if dataset.source != images:
        raise DatasetError(
            f"{dataset.uri} was made from {dataset.source}; adding {images} to it would drop those rows: "
            "write to another --out"
        )


def _inside(uri: str, folder: str) -> bool:
    return uri.startswith(folder.rstrip("/") + "/")


def _parent(uri: str) -> str:
    return uri.rpartition("/")[0]


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """Return a local folder without links: it has many files, and resolving a path is slow."""
    return folder if storage.is_remote(folder) else os.path.realpath(storage.local_path(folder))


@dataclass(frozen=True)
class _Outputs:
    """Which files below the images are a run's results: where `out` is decides, never what a name looks like.

    Results that lie below the images are everything below their folder, also where a link leads there. Where
    images and `out` are one folder, they are the run's own folders and the names that files have in them.
    Elsewhere nothing is a result.
    """

    product: Product
    images: str
    results: str
    out: str

    def __contains__(self, uri: str) -> bool:
        folder = f"{_real(_parent(uri))}/"
        if any(_inside(folder, place) for place in self._apart):
            return True
        below = uri[len(self.images.rstrip("/")) + 1 :]
        return self._own_name is not None and bool(self._own_name.fullmatch(below))

    @functools.cached_property
    def _apart(self) -> set[str]:
        """Folders of results that do not hold the images."""
        images = f"{_real(self.images)}/"
        return {place for place in (_real(self.results), _real(self.out)) if not _inside(images, place)}

    @functools.cached_property
    def _own_name(self) -> re.Pattern[str] | None:
        """What files are called that a run writes among the images; None where it writes elsewhere."""
        if _real(self.images) != _real(self.out):
            return None
        digits = "[0-9a-f]"
        rows = rf"(part-|){digits}{{16}}-{digits}{{8}}\.parquet|{datasets.SUCCESS}|\.lock|\.partial-[^/]*"
        picture = rf"{digits}{{2}}/{digits}{{64}}-\d+-{digits}{{8}}\.[a-z]+"
        return re.compile(
            rf"({self.product.dataset}|{REJECTS})/({rows})|{STAGING}/.*|truth\.csv"
            rf"|runs/({Execution.PATTERN}-{digits}{{8}}\.parquet|{datasets.SUCCESS}|\.lock|\.partial-[^/]*)"
            rf"|{PROMPTS}/{digits}{{16}}\.json|{PICTURES}/{picture}"
        )


def _list(images: str, outputs: _Outputs, excluded: frozenset[str]) -> list[Object]:
    """Return the objects of which rows are to be made; what is left out by rule is said aloud."""
    listing = storage.survey(images)
    wanted = [obj for obj in listing.objects if obj.uri not in excluded]
    objects = [obj for obj in wanted if obj.uri not in outputs]
    remarks = listing.remarks + Counter({Remark.OUTPUT: len(wanted) - len(objects)})
    if remarks:
        counts = "; ".join(f"{count} {remark}" for remark, count in sorted(remarks.items()))
        _log.warning("%s: %s", printable(images), counts)
    uris = {obj.uri for obj in objects}
    if marker := next((m for m in _MARKERS if storage.join(images, m) in uris), None):
        _log.warning(
            "%s has a file %s, but is read as a folder of images. If id2 embed wrote this folder, "
            "write dataset:%s. Otherwise nothing needs to be done: the file is one row in rejects/",
            *(printable(text) for text in (images, marker, images)),
        )
    return objects


def _keep_unseen(objects: list[Object], product: Product, held: Held) -> list[Object]:
    """Give what cannot be looked at the versions that earlier runs saw of it, and of what lay below it.

    A link whose disk is not mounted says nothing of the picture: its row stays as long as the link does.
    """
    unseen = {obj.uri for obj in objects if obj.generation == UNSEEN}
    if not unseen:
        return objects
    versions: dict[str, str] = {}
    for name, dataset in ((product.dataset, held.rows), (REJECTS, held.rejects)):
        for table in dataset.tables(_key_columns(name, product)) if dataset else ():
            for uri, generation in _keys(table):
                if generation != UNSEEN and not unseen.isdisjoint(_places(uri)):
                    versions.setdefault(uri, generation)
    kept = [Object(uri, generation, 0) for uri, generation in versions.items()]
    others = [obj for obj in objects if obj.generation != UNSEEN or obj.uri not in versions]
    return sorted(others + kept)


def _places(uri: str) -> list[str]:
    """Return a URI and those of the folders that it is in."""
    cuts = [i for i, c in enumerate(uri) if c == "/" and i]
    return [uri, *(uri[:cut] for cut in cuts)]


def _check_mounted(images: str, out: str, objects: list[Object], held: Held, *, allow_shrink: bool) -> None:
    """Fail where nothing is left of images that have rows; a disk that is not mounted looks like that."""
    if not any(dataset.rows for dataset in held.datasets):
        return
    below = len(images.rstrip("/")) + 1
    visible = any("/." not in f"/{obj.uri[below:]}" for obj in objects)
    if not objects or (not visible and not allow_shrink):
        raise StorageError(
            f"{images} is empty or has only hidden files, but {out} holds rows of it: is it mounted? Nothing "
            "was changed. If the pictures are really gone, write to another --out"
        )


def _check_shrink(images: str, out: str, before: int, after: int, *, allow_shrink: bool) -> None:
    """Fail where a corpus would lose so many rows that a fault is likelier than a change.

    Raises:
        StorageError: how many.
    """
    if before >= SHRINK_FROM and after < before * (1 - SHRINK_SHARE) and not allow_shrink:
        raise StorageError(
            f"{images}: {before} pictures have rows in {out}, and {after} at most would be left. Nothing was "
            "changed. Is a part of it not mounted, or not readable? If the others are to go, give "
            "--allow-shrink"
        )


def _key_columns(dataset: str, product: Product) -> list[str]:
    """Return the columns that name the object of a row."""
    return list(product.key if dataset == product.dataset else Product(dataset).key)


def _pending(
    out: str, product: Product, held: Held, records: list[PartRecord], objects: list[Object]
) -> tuple[list[Object], int]:
    """Return the objects that have no row yet, and how many may have one at the end.

    A row may be in a committed file or in a finished part.
    """
    finished: dict[str, set[Key]] = {}
    for name, dataset in ((product.dataset, held.rows), (REJECTS, held.rejects)):
        columns = _key_columns(name, product) + (["reason"] if name == REJECTS else [])
        uri = storage.join(out, name)
        tables = datasets.read_each(uri, _files(dataset, name, records), columns)
        finished[name] = {key for table in tables for key in _keys(_final(table))}
    made, rejected = finished[product.dataset], finished[REJECTS]
    pending = [o for o in objects if _key(o) not in made and _key(o) not in rejected]
    possible = sum(_key(o) in made for o in objects) + sum(o.generation != UNSEEN for o in pending)
    return pending, possible


def _final(table: pa.Table) -> pa.Table:
    """Return the rows that no later run makes again."""
    if "reason" not in table.column_names:
        return table
    return table.filter(pc.invert(pc.is_in(table["reason"], _RETRIED)))


def _keys(table: pa.Table) -> list[Key]:
    """Return the first two columns, row by row: URI and generation of the object."""
    return list(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))


def staged(out: str, ids: dict[str, str]) -> dict[str, PartRecord]:
    """Return the URIs of records of parts that are finished but not committed, whoever wrote them.

    Args:
        out: parent of the data sets.
        ids: those that the records have.
    """
    return {uri: record for uri, record in staged_by_uri(out).items() if record.ids == ids}


def staged_by_uri(out: str, known: Collection[str] = ()) -> dict[str, PartRecord]:
    """Return the URIs of staged part records → the records, less those of `known` URIs.

    A record that is damaged is left out: its part is made again.
    """
    try:
        listed = storage.list_objects(storage.join(out, STAGING, PARTS))
    except StorageError:
        return {}
    records = {}
    for uri in (o.uri for o in listed if o.uri not in known):
        with suppress(FileNotFoundError, DatasetError):  # another run may have committed it meanwhile
            records[uri] = PartRecord.from_json(storage.read_marked(uri)[0])
    return records


def _adoptable(out: str, ids: dict[str, str], segments: Collection[str]) -> list[PartRecord]:
    """Return the staged records whose files are whole, and delete the others: their parts are made again.

    Those of runs whose segment is committed are left: a segment is added once, and no more.
    """
    records = {uri: r for uri, r in staged(out, ids).items() if r.run_id not in segments}

    def is_whole(record: PartRecord) -> bool:
        try:
            for name, file in record.files:
                datasets.verify(storage.join(out, name), file)
        except DatasetError:
            return False
        return True

    whole = []
    for (uri, record), good in zip(
        records.items(), in_order(records.values(), is_whole, READ_THREADS), strict=True
    ):
        if good:
            whole.append(record)
        else:
            storage.delete(uri)
    return whole


def _files(held: Dataset | None, name: str, records: Iterable[PartRecord]) -> list[FileRecord]:
    """Return the files of the last commit, then of parts finished since; each once."""
    new = [file for record in records for dataset, file in record.files if dataset == name]
    return list({f.name: f for f in [*(held.files if held else ()), *new]}.values())


def _stage(out: str, key: str, objects: list[Object], rows: int) -> FileRecord:
    """Write objects as a manifest with `rows` objects in a row group."""
    chunks = (objects[start : start + rows] for start in range(0, len(objects), rows))
    tables = (pa.Table.from_pylist([vars(o) for o in chunk], schemas.MANIFEST) for chunk in chunks)
    return datasets.write_file(out, key, tables, schemas.MANIFEST, rows)


def keep_staged(plan: Plan) -> None:
    """Keep manifest and listing for a job that somebody starts later, at whatever time."""
    storage.write_bytes(_keep_uri(plan), b"")


def _keep_uri(plan: Plan) -> str:
    return storage.join(plan.out, STAGING, f"{KEEP}-{plan.plan_id}-{plan.lineage.run_id}")


def _read_staged(plan: Plan, file: FileRecord | None, row_group: int | None = None) -> pa.Table:
    """Read a manifest. Raises DatasetError where it is gone or damaged."""
    if file is None:
        raise ValueError("a plan without work has no staged files")
    try:
        return datasets.read_file(plan.out, file, row_group=row_group)
    except DatasetError as error:
        raise DatasetError(
            f"{storage.join(plan.out, file.name)} is staged for one run, and damaged or gone: start the run "
            f"again, which makes it anew ({error})"
        ) from error.__cause__


def read_part(plan: Plan, index: int) -> list[Object]:
    """Return the objects of one part of a plan.

    Raises:
        DatasetError: the manifest is damaged or gone.
    """
    return [Object(**row) for row in _read_staged(plan, plan.manifest, index).to_pylist()]


def _read_listing(plan: Plan) -> set[Key]:
    return set(_keys(_read_staged(plan, plan.listing)))


def commit(plan: Plan) -> Held | None:
    """Write `_SUCCESS` of both data sets, if and only if every listed object has its rows, or one reject.

    Rows of objects that are no longer listed, and rejects that a later part superseded, are dropped: the
    files that hold them are rewritten without them. Safe to repeat. Where another run has committed since
    the plan was made, its commit is read and the work is added to it.

    Returns:
        The data sets as they are now; None where the work was committed before.

    Raises:
        LostRowsError: an object has too few rows, or too many.
        DatasetError: a file that is needed is damaged.
        StorageError: other runs keep committing.
    """
    if plan.committed:
        return None
    try:
        listed = _read_listing(plan)
    except DatasetError as error:
        # The work is committed, and what was staged is gone.
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    held = plan.held
    for _ in range(_ATTEMPTS):
        try:
            records = staged(plan.out, plan.lineage.ids)
            done = bool(held.committed_by(plan.plan_id))
            committed = held if done else _write_commits(plan, held, listed, list(records.values()))
            if committed:
                _delete_staged(plan, committed, records)
                return committed
        except LostRowsError:  # unless another run has committed what it adopted of this one
            if Held.read(plan.product, plan.out) == held:
                raise
        held = Held.read(plan.product, plan.out)
    raise StorageError(f"{plan.out}: other runs keep committing to it; run again when they have ended")


def _write_commits(plan: Plan, held: Held, listed: set[Key], records: list[PartRecord]) -> Held | None:
    """Commit rejects, then rows, beside what is held; return None where that is out of date."""
    segments = datasets.segments_of(held.rows) if held.rows else {}
    runs = {plan.lineage.run_id, *plan.adopted} - segments.keys()
    records = [record for record in records if record.run_id in runs]
    rows, rejects = _account(plan, held, listed, records)
    segments = _extended(segments, {record.run_id for record in records})
    left = sum(f.rows for f in rows) // plan.product.rows_each
    before = held.objects(plan.product)
    _check_shrink(plan.source, plan.out, before, left, allow_shrink=plan.allow_shrink)
    transient = _count_transient(plan.uri_of(REJECTS), rejects)
    counts = _Counts(plan_id=plan.plan_id, listed=len(listed), transient=transient)
    written = []
    for name, files, last in ((REJECTS, rejects, held.rejects), (plan.product.dataset, rows, held.rows)):
        commit = _next_commit(plan, name, files, last, counts)
        if name == plan.product.dataset:
            commit = replace(commit, segments=segments)
        dataset = datasets.replace_commit(plan.uri_of(name), commit, last)
        if dataset is None:
            return None
        written.append(dataset)
    return Held(rows=written[1], rejects=written[0])


def _next_commit(
    plan: Plan, name: str, files: list[FileRecord], last: Dataset | None, counts: _Counts
) -> Commit:
    run_id = plan.lineage.run_id
    base = (
        last.commit if last else Commit(name, run_id, plan.lineage.ids, sources={plan.source: SourceRecord()})
    )
    runs = base.runs | {run_id: {**dict(counts), "rows": sum(f.rows for f in files)}}
    return replace(base, files=tuple(files), run_id=run_id, runs=runs)


def _extended(segments: Mapping[str, Segment], run_ids: Collection[str]) -> dict[str, Segment]:
    """Return segments with those of more runs, numbered in order of run_id: adopted ones come first."""
    number = max((segment.number for segment in segments.values()), default=0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    added = {run_id: Segment(number + i, now) for i, run_id in enumerate(sorted(run_ids), 1)}
    return {**segments, **added}


def _account(
    plan: Plan, held: Held, listed: set[Key], records: list[PartRecord]
) -> tuple[list[FileRecord], list[FileRecord]]:
    """Return the files of rows and of rejects in which every listed object is once."""
    product = plan.product
    counts: Counter[Key] = Counter()
    kept = []
    for name, last in ((product.dataset, held.rows), (REJECTS, held.rejects)):
        # Rows count before an older reject of the same object.
        files = _files(last, name, records)
        kept.append(_keep_listed(plan.uri_of(name), files, _key_columns(name, product), listed, counts))
        if name == product.dataset:
            _check_accounted(set(counts), counts, product.rows_each)
            counts = Counter(set(counts))
    _check_accounted(listed, counts)
    return kept[0], kept[1]


def _count_transient(uri: str, rejects: list[FileRecord]) -> int:
    """Return how many objects the next run will try again."""
    reasons = pa.array(sorted(TRANSIENT), pa.string())
    tables = datasets.read_each(uri, rejects, ["reason"])
    return sum(pc.sum(pc.is_in(t["reason"], reasons)).as_py() or 0 for t in tables)


def _delete_staged(plan: Plan, committed: Held, records: dict[str, PartRecord]) -> None:
    """Delete what was staged for this work; the listing last: without it, a repeated commit does nothing.

    Records of other runs stay, unless all that they stand for is committed: such a run may still be at work,
    with objects that this one has not listed. Of killed runs, `leftovers` removes them.
    """
    held = {(d.commit.dataset, file) for d in committed.datasets for file in d.files}
    own = [
        uri
        for uri, record in records.items()
        if record.run_id == plan.lineage.run_id or held.issuperset(record.files)
    ]
    staged_files = [storage.join(plan.out, file.name) for file in (plan.manifest, plan.listing) if file]
    for uri in [*own, _keep_uri(plan), *staged_files]:
        storage.delete(uri)


def _keep_listed(
    uri: str, files: list[FileRecord], columns: list[str], listed: set[Key], rows: Counter[Key]
) -> list[FileRecord]:
    """Reduce files to rows of listed objects that newer files do not have; add them to the counts `rows`."""
    newest_first = files[::-1]
    kept = []
    for record, table in zip(newest_first, datasets.read_each(uri, newest_first, columns), strict=True):
        keys = _keys(table)
        mask = [key in listed and not rows[key] for key in keys]
        rows.update(key for key, keep in zip(keys, mask, strict=True) if keep)
        if all(mask):
            kept.append(record)
        elif any(mask):
            kept.append(_rewrite(uri, record, mask))
    return kept


def _rewrite(uri: str, record: FileRecord, mask: list[bool]) -> FileRecord:
    table = datasets.read_file(uri, record).filter(pa.array(mask))
    name = f"part-{datasets.digest_of(record.key, mask)}"
    written = datasets.write_file(uri, name, [table], table.schema)
    run_ids = tuple(sorted(set(table["run_id"].to_pylist())))
    return replace(written, segments=run_ids, source=record.source, bounds=record.bounds)


def _check_accounted(listed: set[Key], rows: Counter[Key], rows_each: int = 1) -> None:
    missing = sorted(key for key in listed if rows[key] < rows_each)
    surplus = sorted(key for key, n in rows.items() if n > rows_each)
    if missing or surplus:
        raise LostRowsError(
            f"{len(missing)} listed objects have too few rows and {len(surplus)} too many (for example "
            f"{(missing + surplus)[:3]}); nothing was committed. Run again to complete it."
        )
