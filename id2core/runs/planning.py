"""Plan a run: list its objects, subtract what earlier runs made, cut the rest into parts, and commit.

The same for every product of `parts`: embeddings and translations.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue

from id2core import defaults
from id2core.errors import DatasetError, LostRowsError, StorageError
from id2core.runs import accounting, leases, takedowns, units
from id2core.runs import listing as listings
from id2core.runs.accounting import Account, Fate, Kind, Numbered, Outcome, Scope
from id2core.runs.execution import Execution
from id2core.runs.keys import Keys
from id2core.runs.listing import REMOVALS, Lister, Listing, Outputs
from id2core.runs.parts import READ_THREADS, Lineage, Product
from id2core.runs.units import REJECTS, STAGING, Record
from id2core.sources.base import Source
from id2core.sources.folders import FolderSource
from id2core.store import datasets, members, parquet, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import Commit, Dataset, FileRecord, Mode, Segment, SourceRecord
from id2core.store.rejects import BY_SETTINGS, TRANSIENT
from id2core.store.schemas import Removal
from id2core.store.storage import UNSEEN, Object

_log = logging.getLogger("id2")

# How often a commit is tried while other runs commit to the same data sets, and the pauses between.
_ATTEMPTS, _PAUSE_SECONDS = 20, 0.2
# What the name of a file in `_staging/` begins with that keeps a manifest and a listing, see `keep_staged`.
KEEP = "keep"
_RETRIED = pa.array(sorted(TRANSIENT | BY_SETTINGS), pa.string())
_NOT_EXPIRED = pa.array(sorted(set(Removal) - {Removal.EXPIRED}), pa.string())
# A data set of this many objects must not shrink by more than this share unawares.
SHRINK_FROM, SHRINK_SHARE = 100, 0.1


class _Counts(BaseModel):
    """What a run counts in the commits of its rows and rejects.

    Attributes:
        plan_id: names its work.
        source: URI of its source.
        listed: objects of the source.
        transient: objects that the next run tries again.
        added, rejected: what the run made, see `Made`.
    """

    plan_id: str = ""
    source: str = ""
    listed: int = 0
    transient: int = 0
    added: int = 0
    rejected: int = 0


class Made(NamedTuple):
    """What one run added to the two data sets.

    Attributes:
        added: objects that it gave rows, parts that it adopted from killed runs included.
        rejected: objects that it rejected, and that no earlier run had rejected.
    """

    added: int = 0
    rejected: int = 0

    @staticmethod
    def by(run_id: str, rows: Dataset) -> Made:
        """Return what a run added to a data set, and rejected beside it; nothing where it had no work."""
        counts = rows.commit.counts_of(run_id, _Counts)
        return Made(counts.added, counts.rejected)

    def plus(self, more: Made) -> Made:
        """Return both together."""
        return Made(self.added + more.added, self.rejected + more.rejected)


NOTHING = Made()


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

    def check_ids(self, ids: dict[str, str]) -> None:
        """Raise DatasetError where the rows were made with other ids."""
        for dataset in self.datasets:
            dataset.check_ids(ids)

    def objects(self, product: Product, scope: Scope) -> int:
        """Return how many objects of a source have rows."""
        files = self.rows.files if self.rows else ()
        return sum(f.rows for f in files if scope.owns(f, self.rows)) // product.rows_each

    def committed_by(self, plan_id: str, scope: Scope) -> str | None:
        """Return the run that committed this work, the last of its source, with nothing to retry.

        None where there is work, also where rows of the source have expired since.
        """
        if self.rows is None or self.rejects is None:
            return None
        last = {_last_of(dataset, scope.source) for dataset in self.datasets}
        run_id = last.pop()
        if run_id is None or last:
            return None
        for dataset in self.datasets:
            counts = dataset.commit.counts_of(run_id, _Counts)
            if counts.plan_id != plan_id or counts.transient:
                return None
        expired = scope.expired(datasets.segments_of(self.rows))
        own = (f for f in self.rows.files if scope.owns(f, self.rows))
        return None if any(not expired.isdisjoint(f.segments) for f in own) else run_id


def _last_of(dataset: Dataset, source: str) -> str | None:
    """Return the run that committed rows of a source last; runs of earlier versions do not say which."""
    for run_id in reversed(dataset.runs):
        counts = dataset.commit.counts_of(run_id, _Counts)
        if counts.plan_id and counts.source in ("", source):
            return run_id
    return None


@dataclass(frozen=True)
class Plan:
    """The work of one run that makes rows of objects.

    Attributes:
        product: what it makes.
        out: parent of the data sets.
        held: the data sets as they were when the run was planned.
        source: URI of the source of the images.
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
        scope: which rows may go.
        allow_shrink: whether a mirror may lose more than a tenth of its rows.
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
    scope: Scope
    allow_shrink: bool = False
    adopted: tuple[str, ...] = ()

    def uri_of(self, dataset: str) -> str:
        """Return the URI of the product's data set or of the rejects."""
        return storage.join(self.out, dataset)


def make(
    product: Product,
    images: str | Source,
    out: str,
    ids: dict[str, str],
    config: Mapping[str, object],
    execution: Execution,
    part_size: int = defaults.PART_SIZE,
    results: str | None = None,
    excluded: frozenset[str] = frozenset(),
    allow_shrink: bool = False,
    retention_days: float | None = None,
    add_source: bool = False,
    lister: Lister = Source.items,
    options: dict[str, JsonValue] | None = None,
) -> Plan:
    """List `images`, subtract what `out` holds already, and stage a manifest of the rest.

    Rows of other sources are left as they are, and their files are read only where they may hold rows of
    listed objects. What is listed is never in memory as a whole.

    Args:
        product: what is to be made of each image.
        images: a source, or the folder or bucket prefix that is one.
        out: parent of the product's data set and of `rejects/`.
        ids: what must agree within the data set, by column name.
        config: everything else that decides the rows, JSON-able; part of `plan_id`.
        execution: gives the rows their run_id and time.
        part_size: objects in one part.
        results: a folder of results; if it lies within `images` it is not listed. By default `out`.
        excluded: URIs that are no images and are not listed, for example a file of prompts.
        allow_shrink: do not fail where a mirror of 100 objects or more loses over a tenth of its rows.
        retention_days: days for which rows of a source that is appended stay; None for ever.
        add_source: whether `out` may hold rows of other sources already, and none of this one.
        lister: gives the items of the source.
        options: what decides the rows that a killed run left as well: with others, they are made again. Rows
            that are committed stay as they are.

    Raises:
        DatasetError: `out` holds rows made with other ids, or of other sources alone.
        StorageError: no such folder or bucket; or nothing in a mirror, while `out` holds rows of it; or far
            less than there was.
    """
    source = FolderSource(images) if isinstance(images, str) else images
    scope = Scope(source.uri, source.mode, source.places, retention_days)
    held = Held.find(product, out)
    held.check_ids(ids)
    for dataset in held.datasets if not add_source else ():
        _check_source(dataset, source.uri)
    outputs = Outputs(product, source.folder, results or out, out)
    if refused := takedowns.refused(results or out):
        config = {**config, "taken_down": sorted(refused)}
    with Keys() as keys, TemporaryDirectory(prefix="id2-listing-") as folder:
        listing = listings.take(
            source,
            lambda obj: obj.uri not in excluded and obj.uri not in outputs,
            lambda uris: _seen_before(uris, product, held, scope),
            keys,
            Path(folder, "listing.parquet"),
            lister,
        )
        _check_mounted(out, listing, held, scope, allow_shrink=allow_shrink)
        options = options or {}
        plan_id = datasets.digest_of(source.uri, ids, {**config, **options}, listing.digest)
        segments = datasets.segments_of(held.rows) if held.rows else {}
        run_id = held.committed_by(plan_id, scope)
        plan = Plan(
            product=product,
            out=out,
            held=held,
            source=source.uri,
            plan_id=plan_id,
            lineage=Lineage(
                ids, run_id or _unused(execution, segments), execution.started, source.uri, options
            ),
            listed=listing.rows,
            objects=0,
            parts=0,
            manifest=None,
            listing=None,
            committed=run_id is not None,
            allow_shrink=allow_shrink,
            scope=scope,
        )
        return plan if plan.committed else _staged_plan(plan, listing, keys, segments, part_size)


def _unused(execution: Execution, segments: Collection[str]) -> str:
    """Return the run_id of new rows: the execution's, or another one where its segment is committed.

    A stage that failed behind its commit is tried again, and may find more objects than before.
    """
    return execution.run_id if execution.run_id not in segments else Execution.begin().run_id


def _check_source(dataset: Dataset, source: str) -> None:
    """Raise DatasetError where the rows are of other sources: a mistyped name would double a corpus."""
    others = list(dataset.commit.sources)
    if not others or source in others:
        return
    more = f" and {len(others) - 2} others" if len(others) > 3 else ""
    raise DatasetError(
        f"{dataset.uri} holds rows of {', '.join(others[:2] if more else others)}{more}, and none of "
        f"{source}: give --add-source to add it, or write to another --out. "
        "For a folder that is new every night, write {date} in its place"
    )


def _staged_plan(
    plan: Plan, listing: Listing, keys: Keys, segments: Mapping[str, Segment], part_size: int
) -> Plan:
    """Return a plan with the objects that have no row yet, and stage these and the listing."""
    leases.begin_work(plan.out, plan.source)  # before it is seen what the job of an earlier run has recorded
    records = _adoptable(plan, segments)
    account = _account(plan, plan.held, keys, listing.rows, listing.bounds, records, segments, _RETRIED)
    pending, lost = account.pending()
    objects, visible = 0, 0
    for table in _masked(listing.tables(), pending):
        objects += len(table)
        visible += pc.sum(pc.not_equal(table["generation"], UNSEEN)).as_py() or 0
    each = plan.product.rows_each
    before = plan.held.objects(plan.product, plan.scope)
    made = sum(record.rows.rows for record in records if record.rows) // each
    _check_shrink(plan, before, before - lost // each + made + visible)
    key = f"{STAGING}/{{}}-{plan.plan_id}-{plan.lineage.run_id}"
    parts_of = _in_parts(_masked(listing.tables(), pending), part_size)
    manifest = parquet.write(plan.out, key.format("manifest"), parts_of, schemas.MANIFEST, part_size)
    staged = parquet.write(
        plan.out, key.format("listing"), listing.tables(), schemas.MANIFEST, listings.ROW_GROUP
    )
    return replace(
        plan,
        objects=objects,
        parts=-(-objects // part_size),
        manifest=manifest,
        listing=replace(staged, bounds=listing.bounds),
        adopted=tuple(sorted({record.run_id for record in records})),
    )


def _masked(tables: Iterable[pa.Table], mask: NDArray[np.bool_]) -> Iterator[pa.Table]:
    start = 0
    for table in tables:
        yield table.filter(pa.array(mask[start : start + len(table)]))
        start += len(table)


def _in_parts(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut tables into others of `size` rows; the last one may be smaller."""
    rest = schemas.MANIFEST.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table])
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield rest.slice(start, size)
        rest = rest.slice(whole).combine_chunks()
    if len(rest):
        yield rest


def _seen_before(unseen: set[str], product: Product, held: Held, scope: Scope) -> list[Object]:
    """Give what cannot be looked at the versions that earlier runs saw of it, and of what lay below it.

    A link whose disk is not mounted says nothing of the picture: its row stays as long as the link does. So
    do those of the members of a shard that is gone since it was listed.
    """
    versions: dict[str, str] = {}
    bounds = (min(unseen), max(f"{uri}0" for uri in unseen))  # what is below a URI is less than that
    for name, dataset in ((product.dataset, held.rows), (REJECTS, held.rejects)):
        columns = list(product.key if name == product.dataset else Product(name).key)
        own = (f for f in dataset.files if scope.owns(f, dataset)) if dataset else ()
        files = [f for f in own if f.may_hold(*bounds)]
        for table in accounting.read_keys(dataset.uri, files, columns) if dataset else ():
            for uri, generation in zip(table[0].to_pylist(), table[1].to_pylist(), strict=True):
                if generation != UNSEEN and not unseen.isdisjoint(_places(uri, generation)):
                    versions.setdefault(uri, generation)
    never = (Object(uri, UNSEEN, 0) for uri in unseen - versions.keys())
    return sorted([*never, *(Object(uri, generation, 0) for uri, generation in versions.items())])


def _places(uri: str, generation: str) -> list[str]:
    """Return a URI, those of the folders that it is in, and that of the shard which it is a member of."""
    member = members.parse(Object(uri, generation, 0))
    shards = [member.shard.uri] if member and member.shard.uri else []
    cuts = [i for i, c in enumerate(uri) if c == "/" and i]
    return [uri, *shards, *(uri[:cut] for cut in cuts)]


def _check_mounted(out: str, listing: Listing, held: Held, scope: Scope, *, allow_shrink: bool) -> None:
    """Fail where nothing is left of images that have rows; a disk that is not mounted looks like that."""
    if scope.mode is Mode.APPEND or not any(
        file.rows and scope.bears_on(file, (), set(), own=True)
        for dataset in held.datasets
        for file in dataset.files
        if scope.owns(file, dataset)
    ):
        return
    if not listing.rows or (not listing.visible and not allow_shrink):
        raise StorageError(
            f"{scope.source} is empty or has only hidden files, but {out} holds rows of it: is it mounted? "
            "Nothing was changed. If the pictures are really gone, write to another --out"
        )


def _check_shrink(plan: Plan, before: int, after: int) -> None:
    """Fail where a mirror would lose so many rows that a fault is likelier than a change.

    Raises:
        StorageError: how many.
    """
    if plan.allow_shrink or plan.scope.mode is Mode.APPEND:
        return
    if before >= SHRINK_FROM and after < before * (1 - SHRINK_SHARE):
        raise StorageError(
            f"{plan.source}: {before} pictures have rows in {plan.out}, and {after} at most would be left. "
            "Nothing was changed. Is a part of it not mounted, or not readable? If the others are to go, "
            "give --allow-shrink"
        )


def _account(
    plan: Plan,
    held: Held,
    keys: Keys,
    listed: int,
    bounds: tuple[str, ...],
    records: Iterable[Record],
    segments: Mapping[str, Segment],
    without: pa.Array | None = None,
) -> Account:
    """Return the rows that bear on a listing, in committed files and in those of finished parts.

    Args:
        plan: whose listing it is.
        held: what is committed.
        keys: has the keys of the listing.
        listed: how many these are.
        bounds: the least and the greatest URI among them.
        records: the finished parts.
        segments: of the corpus.
        without: reasons of rejects that do not count.
    """
    expired = plan.scope.expired(segments)
    account = Account(keys, listed, plan.product, plan.scope, expired)
    removals = [f for f in held.rows.commit.removals if bounds and f.may_hold(*bounds)] if held.rows else []
    account.add(
        Kind.EXPIRED, plan.uri_of(REMOVALS), removals, own=False, committed=True, without=_NOT_EXPIRED
    )
    for kind, name, dataset in (
        (Kind.ROW, plan.product.dataset, held.rows),
        (Kind.REJECT, REJECTS, held.rejects),
    ):
        uri, left = plan.uri_of(name), without if kind is Kind.REJECT else None
        files = dataset.files if dataset else ()
        for own in (False, True):  # rows of other sources stand for an object first
            mine = [f for f in files if plan.scope.owns(f, dataset) is own]
            read = [f for f in mine if plan.scope.bears_on(f, bounds, expired, own=own)]
            account.add(kind, uri, read, own=own, committed=True, without=left)
        names = {file.name for file in files}
        new = {f.name: f for r in records for data, f in r.files if data == name and f.name not in names}
        account.add(kind, uri, list(new.values()), own=True, committed=False, without=left)
    return account


def _records(plan: Plan) -> dict[str, Record]:
    """Return URIs and records of parts of the source that are finished but not committed, by whatever run."""
    return {
        uri: record
        for uri, record in units.staged(plan.out).items()
        if record.source == plan.source
        and (record.ids, record.notes) == (plan.lineage.ids, plan.lineage.options)
    }


def _adoptable(plan: Plan, segments: Collection[str]) -> list[Record]:
    """Return staged records of the source whose files are whole, and delete those whose files are not.

    Those of runs whose segment is committed are left: a segment is added once, and no more.
    """
    records = {uri: record for uri, record in _records(plan).items() if record.run_id not in segments}

    def is_whole(record: Record) -> bool:
        return units.is_whole(plan.out, record)

    whole = []
    for (uri, record), good in zip(
        records.items(), in_order(records.values(), is_whole, READ_THREADS), strict=True
    ):
        if good:
            whole.append(record)
        else:
            storage.delete(uri)
    return whole


def keep_staged(plan: Plan) -> None:
    """Keep manifest and listing for a job that somebody starts later, at whatever time."""
    storage.write_bytes(_keep_uri(plan), b"")


def release_staged(plan: Plan) -> None:
    """Treat what is staged for a job that nobody will start as that of any other run."""
    storage.delete(_keep_uri(plan))


def _keep_uri(plan: Plan) -> str:
    return storage.join(plan.out, STAGING, f"{KEEP}-{plan.plan_id}-{plan.lineage.run_id}")


def _read_staged(plan: Plan, file: FileRecord | None, row_group: int | None = None) -> pa.Table:
    """Read a manifest. Raises DatasetError where it is gone or damaged."""
    if file is None:
        raise ValueError("a plan without work has no staged files")
    try:
        return parquet.read([plan.out], file, row_group=row_group)
    except DatasetError as error:
        raise DatasetError(
            f"{storage.join(plan.out, file.name)} is staged for one run, and damaged or gone: start the run "
            f"again, which makes it anew ({error})"
        ) from error.__cause__


def is_taken_over(plan: Plan) -> bool:
    """Return whether a later run adds rows of the source, and warn of it: this one has nothing more to do.

    That is so where a job goes on after the process that had started it has ended.
    """
    later = leases.taken_over(plan.out, plan.source, plan.lineage.run_id)
    if later:
        _log.warning(
            "run %s makes no more rows of %s in %s: run %s has taken over",
            plan.lineage.run_id,
            plan.source,
            plan.out,
            later,
        )
    return later is not None


def read_part(plan: Plan, index: int) -> list[Object]:
    """Return the objects of one part of a plan; none of a plan that is committed.

    An engine that loses a machine after the commit starts the job again, and the commit has deleted what was
    staged.

    Raises:
        DatasetError: the manifest is damaged or gone.
    """
    try:
        return [Object(**row) for row in _read_staged(plan, plan.manifest, index).to_pylist()]
    except DatasetError as error:
        if _is_after_commit(plan, error):
            return []
        raise


def _is_after_commit(plan: Plan, error: DatasetError) -> bool:
    """Return whether what was staged could not be read because the plan is committed."""
    if not isinstance(error.__cause__, FileNotFoundError):
        return False
    held = Held.read(plan.product, plan.out)
    return held.rejects is not None and all(
        any(dataset.commit.counts_of(run_id, _Counts).plan_id == plan.plan_id for run_id in dataset.runs)
        for dataset in held.datasets
    )


def commit(plan: Plan) -> Held | None:
    """Write `_SUCCESS` of both data sets, if and only if every listed object has its rows, or one reject.

    Rows that the source no longer keeps go to the log of removals, and rejects that a later part superseded
    are dropped: the files that hold them are rewritten without them. Safe to repeat. Where another run has
    committed since the plan was made, its commit is read and the work is added to it. If that was a run of
    the same source, its listing is the newer one, and this one drops nothing.

    Returns:
        The data sets as they are now; None where the work was committed before, or a later run
        has taken over.

    Raises:
        LostRowsError: an object has too few rows, or too many.
        DatasetError: a file that is needed is damaged.
        StorageError: other runs keep committing.
    """
    if plan.committed or is_taken_over(plan):
        return None
    try:
        _check_listing(plan)
    except DatasetError as error:
        if _is_after_commit(plan, error):
            return None
        raise
    held = plan.held
    for attempt in range(_ATTEMPTS):
        try:
            records = _records(plan)
            done = bool(held.committed_by(plan.plan_id, plan.scope))
            committed = held if done else _write_commits(plan, held, list(records.values()))
            if committed:
                _delete_staged(plan, committed, records)
                return committed
        except LostRowsError:  # unless another run has committed what it adopted of this one
            if Held.read(plan.product, plan.out) == held:
                raise
        time.sleep(random.random() * min(attempt, 10) * _PAUSE_SECONDS)
        held = Held.read(plan.product, plan.out)
    raise StorageError(f"{plan.out}: other runs keep committing to it; run again when they have ended")


def _check_listing(plan: Plan) -> None:
    """Read the listing once. Raises DatasetError where it is gone or damaged."""
    for _ in _listing_tables(plan):
        pass


def _listing_tables(plan: Plan) -> Iterator[pa.Table]:
    groups = plan.listing.row_groups if plan.listing else 1
    return (_read_staged(plan, plan.listing, group) for group in range(groups))


def _write_commits(plan: Plan, held: Held, records: list[Record]) -> Held | None:
    """Commit rejects, then rows, beside what is held; return None where that is out of date."""
    held.check_ids(plan.lineage.ids)  # another transform may have been put in use meanwhile
    source = SourceRecord(plan.scope.mode)
    if _is_overtaken(plan, held):  # the other listing is newer, so nothing that this one lacks is gone
        plan = replace(plan, scope=replace(plan.scope, mode=Mode.APPEND, retention_days=None))
    segments = datasets.segments_of(held.rows) if held.rows else {}
    runs = {plan.lineage.run_id, *plan.adopted} - segments.keys()
    records = [record for record in records if record.run_id in runs]
    with Keys() as keys:
        listed = 0
        for table in _listing_tables(plan):
            for batch in table.to_batches(listings.BATCH):
                hashes = keys.hash(batch["uri"].to_pylist(), batch["generation"].to_pylist())
                keys.add(hashes, listed)
                listed += len(batch)
        bounds = plan.listing.bounds if plan.listing else ()
        account = _account(plan, held, keys, listed, bounds, records, segments)
        outcome = account.settle()
    _check_accounted(plan, outcome)
    rewritten = Rewritten.of(plan, held, account, outcome)
    each = plan.product.rows_each
    before = held.objects(plan.product, plan.scope)
    _check_shrink(plan, before, rewritten.own_rows // each)
    counts = _Counts(
        plan_id=plan.plan_id,
        source=plan.source,
        listed=outcome.listed,
        transient=outcome.transient,
        added=outcome.added // each,
        rejected=outcome.rejected,
    )
    written = []
    segments = _extended(segments, {record.run_id for record in records})
    for name, files, last in (
        (REJECTS, rewritten.rejects, held.rejects),
        (plan.product.dataset, rewritten.rows, held.rows),
    ):
        commit = _next_commit(plan, name, files, last, counts, source)
        if name == plan.product.dataset:
            removals = (*commit.removals, *rewritten.removals)
            commit = replace(commit, segments=segments, removals=removals)
        dataset = datasets.replace_commit(plan.uri_of(name), commit, last)
        if dataset is None:
            return None
        written.append(dataset)
    return Held(rows=written[1], rejects=written[0])


def _is_overtaken(plan: Plan, held: Held) -> bool:
    """Return whether another run of the source has committed since the plan was made.

    A lease keeps such runs apart. A job that a template describes holds none, and starts whenever it likes.
    """
    then, now = (_last_of(side.rows, plan.source) if side.rows else None for side in (plan.held, held))
    return now not in (then, plan.lineage.run_id)


def _next_commit(
    plan: Plan,
    name: str,
    files: list[FileRecord],
    last: Dataset | None,
    counts: _Counts,
    source: SourceRecord,
) -> Commit:
    run_id = plan.lineage.run_id
    base = last.commit if last else Commit(name, run_id, plan.lineage.ids)
    sources = base.sources | {plan.source: source}
    others = {r: c for r, c in base.runs.items() if r != run_id}  # the last one is the latest
    runs = others | {run_id: {**dict(counts), "rows": sum(f.rows for f in files)}}
    return replace(base, files=tuple(files), run_id=run_id, runs=runs, sources=sources)


def _extended(segments: Mapping[str, Segment], run_ids: Collection[str]) -> dict[str, Segment]:
    """Return segments with those of more runs, numbered in order of run_id: adopted ones come first."""
    number = max((segment.number for segment in segments.values()), default=0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    added = {run_id: Segment(number + i, now) for i, run_id in enumerate(sorted(run_ids), 1)}
    return {**segments, **added}


@dataclass
class Rewritten:
    """The files of a commit after rows have gone from some.

    Attributes:
        rows, rejects: files of the two data sets.
        own_rows: rows of the source.
        removals: new files of the log of removals.
    """

    rows: list[FileRecord]
    rejects: list[FileRecord]
    own_rows: int
    removals: list[FileRecord]

    @staticmethod
    def of(plan: Plan, held: Held, account: Account, outcome: Outcome) -> Rewritten:
        """Write what must be written of files that lose rows, and the log of these."""
        removed = _removed_files(plan, held, account, outcome)
        lists: dict[Kind, list[FileRecord]] = {}
        own_rows = 0
        for kind, dataset in ((Kind.ROW, held.rows), (Kind.REJECT, held.rejects)):
            numbered = [file for file in account.files if file.kind is kind]
            read = {file.record.name for file in numbered}
            files = [f for f in dataset.files if f.name not in read] if dataset else []
            uri = plan.uri_of(plan.product.dataset if kind is Kind.ROW else REJECTS)
            for file in numbered:
                mask = outcome.fates[file.start : file.start + file.record.rows] == Fate.KEPT
                if mask.all():
                    files.append(file.record)
                elif mask.any():
                    files.append(_rewrite(uri, file.record, mask))
            lists[kind] = files
            if kind is Kind.ROW:
                own_rows = sum(f.rows for f in files if plan.scope.owns(f, dataset))
        return Rewritten(lists[Kind.ROW], lists[Kind.REJECT], own_rows, removed)


def _removed_files(plan: Plan, held: Held, account: Account, outcome: Outcome) -> list[FileRecord]:
    """Write the log of the committed rows that go, and return its file; none where all stay."""
    gone = [
        (file, fates)
        for file in account.files
        if file.kind is Kind.ROW and file.committed
        for fates in [outcome.fates[file.start : file.start + file.record.rows]]
        if np.isin(fates, (Fate.UNLISTED, Fate.EXPIRED)).any()
    ]
    if not gone or held.rows is None:
        return []
    replaced = _Replaced(plan, held.rows.uri, gone)
    version = held.rows.commit.version + 1
    now = datetime.now(UTC).replace(microsecond=0)
    segments: set[str] = set()
    bounds: list[str] = []

    def tables() -> Iterator[pa.Table]:
        for file, fates in gone:
            rows = _removed_rows(plan, replaced, file, fates)
            segments.update(rows["segment"].to_pylist())
            extremes = pc.min_max(rows["uri"]).as_py()
            bounds.extend((extremes["min"], extremes["max"]))
            for name, value in (
                ("removed_in", version),
                ("run_id", plan.lineage.run_id),
                ("removed_at", now),
            ):
                field = schemas.REMOVALS.field(name)
                rows = rows.append_column(field, pa.repeat(pa.scalar(value, field.type), len(rows)))
            yield rows.select(schemas.REMOVALS.names).cast(schemas.REMOVALS)

    name = f"part-{datasets.digest_of(plan.plan_id, version, [f.record.name for f, _ in gone])}"
    written = datasets.write_file(plan.uri_of(REMOVALS), name, tables(), schemas.REMOVALS)
    return [
        replace(
            written,
            segments=tuple(sorted(segments)),
            source=plan.source,
            bounds=(min(bounds), max(bounds)),
        )
    ]


def _removed_rows(plan: Plan, replaced: _Replaced, file: Numbered, fates: NDArray[np.uint8]) -> pa.Table:
    """Return what the log says of the rows of one file that go: picture, object, segment and reason."""
    mask = np.isin(fates, (Fate.UNLISTED, Fate.EXPIRED))
    uri, generation = plan.product.key
    table = datasets.read_file(plan.uri_of(plan.product.dataset), file.record)
    held = [name for name in ("image_id", uri, generation, "run_id") if name in table.column_names]
    table = table.select(held).filter(pa.array(mask))
    reasons = np.full(len(table), str(Removal.UNLISTED), object)
    reasons[replaced.among(table[uri])] = str(Removal.REPLACED)
    reasons[fates[mask] == Fate.EXPIRED] = str(Removal.EXPIRED)
    nothing = pa.nulls(len(table), pa.string())
    return pa.table(
        {
            "image_id": table["image_id"] if "image_id" in held else nothing,
            "uri": table[uri],
            "generation": table[generation],
            "segment": table["run_id"],
            "reason": pa.array(reasons, pa.string()),
        }
    )


class _Replaced:
    """Tells URIs that are listed, with another generation, from those that are not."""

    def __init__(self, plan: Plan, uri: str, gone: list[tuple[Numbered, NDArray[np.uint8]]]) -> None:
        files = [file.record for file, _ in gone]
        starts = np.cumsum([0, *(file.rows for file in files)])
        self._listed = np.zeros(starts[-1], bool)
        self._next = 0
        masks = [np.isin(fates, (Fate.UNLISTED, Fate.EXPIRED)) for _, fates in gone]
        with Keys() as keys:
            count = 0
            for table in accounting.read_keys(uri, files, [plan.product.key[0]]):
                for batch in table.to_batches(listings.BATCH):
                    keys.add(keys.hash(batch[0].to_pylist()), count)
                    count += len(batch)
            for table in _listing_tables(plan):
                for batch in table.to_batches(listings.BATCH):
                    keys.add(keys.hash(batch["uri"].to_pylist()), count)
                    count += len(batch)
            for groups in keys.groups():
                listed = (groups.last >= starts[-1])[groups.of_row]
                rows = groups.rows[listed]
                self._listed[rows[rows < starts[-1]]] = True
        self._listed = self._listed[np.concatenate(masks)]

    def among(self, uris: pa.ChunkedArray) -> NDArray[np.bool_]:
        """bool[n]: which of the next n URIs are listed; files and rows come in order."""
        mask = self._listed[self._next : self._next + len(uris)]
        self._next += len(uris)
        return mask


def _delete_staged(plan: Plan, committed: Held, records: dict[str, Record]) -> None:
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


def _rewrite(uri: str, record: FileRecord, mask: NDArray[np.bool_]) -> FileRecord:
    table = datasets.read_file(uri, record).filter(pa.array(mask))
    name = f"part-{datasets.digest_of(record.key, mask.tolist())}"
    written = datasets.write_file(uri, name, [table], table.schema)
    counted = written.of_segments(datasets.rows_by_run(table))
    return replace(counted, source=record.source, bounds=record.bounds)


def _check_accounted(plan: Plan, outcome: Outcome) -> None:
    """Raise LostRowsError where an object has too few rows, or too many."""
    missing, examples = outcome.missing
    if not missing and not outcome.surplus:
        return
    names = []
    for number in examples:
        group, place = divmod(number, listings.ROW_GROUP)
        table = _read_staged(plan, plan.listing, group)
        names.append(table["uri"][place].as_py())
    raise LostRowsError(
        f"{missing} listed objects have too few rows and {outcome.surplus} too many (for example "
        f"{names}); nothing was committed. Run again to complete it."
    )
