"""Remove everything that was made of a picture from the data sets of an `--out`.

Rows go by compare-and-swap, and the log of removals says so. After that, files that still hold the picture
and that no commit lists are deleted at once, without a grace period: superseded ones, and staged ones of runs
that were killed. Every step can be repeated, and a killed erasure is completed by the same command.

A removed pair counts as never searched: what the log says of a picture that was taken down is no history of
the ledger. So a picture that is reinstated is searched like a new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.errors import StoreUnavailableError
from id2core.runs import codes, compaction, leftovers, takedowns, units
from id2core.runs.execution import Execution
from id2core.store import datasets, moves, parquet, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import Commit, Dataset, FileRecord
from id2core.store.schemas import Removal

_TRANSLATIONS: Final = "translations"
# Data sets of a place → columns that name a picture. What names uploads goes last: they are found by it.
_PICTURES: Final[dict[str, tuple[str, ...]]] = {
    _TRANSLATIONS: ("image_id", "origin_id"),
    schemas.EMBEDDINGS: ("image_id",),
    "backgrounds": ("image_id",),
    "verdicts": ("reference_id",),
    "posts": (),
    "matches": ("query_id", "reference_id"),
    "candidates": ("reference_id",),  # staged by searches, and never a data set
}
# Those that name an upload by URI and generation.
_UPLOADS: Final = {"verdicts": ("query_uri", "query_generation"), "posts": ("uri", "generation")}
# Columns that say where a picture is: image_id, URI, generation.
_PLACES: Final = {
    schemas.EMBEDDINGS: ("image_id", "uri", "generation"),
    "matches": ("query_id", "query_uri", "query_generation"),
}
_REMOVED: Final = ("image_id", "uri", "generation")
_TAKEN_DOWN: Final = str(Removal.TAKEN_DOWN)
# In the commit of posts: the digest of the objects that it has no posts of.
_FREE_OF: Final = "free_of"
# Commits that are tried while other runs commit to the same data set, and files that are read ahead.
_ATTEMPTS, _FILES_AHEAD = 20, 4


def find(out: str, uris: Iterable[str]) -> dict[str, set[str]]:
    """Return the pictures that are, or were, at some URIs: image_id → these URIs."""
    wanted = pa.array(sorted(set(uris)), pa.string())
    found: dict[str, set[str]] = {}
    for table in _placed(out):
        for row in table.filter(pc.is_in(table["uri"], value_set=wanted)).to_pylist():
            found.setdefault(row["image_id"], set()).add(row["uri"])
    return found


def places(out: str, image_ids: Iterable[str]) -> dict[str, set[str]]:
    """Return where pictures are or were: image_id → URIs, none for a picture that is not known."""
    found: dict[str, set[str]] = {image_id: set() for image_id in image_ids}
    wanted = pa.array(list(found), pa.string())
    for table in _placed(out):
        for row in table.filter(pc.is_in(table["image_id"], value_set=wanted)).to_pylist():
            found[row["image_id"]].add(row["uri"])
    return found


def holds(dataset: Dataset, image_ids: Iterable[str]) -> bool:
    """Return whether an embeddings data set has a row of one of some pictures."""
    wanted = pa.array(list(image_ids), pa.string())
    tables = _read(dataset.uri, dataset.files, ["image_id"])
    return any(pc.any(pc.is_in(table["image_id"], value_set=wanted)).as_py() for table in tables)


def _placed(out: str) -> Iterator[pa.Table]:
    """Yield image_id, uri and generation of all that an `--out` says of where pictures are."""
    for dataset in _datasets(out, _PLACES):
        columns = list(_PLACES[dataset.commit.dataset])
        for table in _read(dataset.uri, dataset.files, columns):
            yield table.rename_columns(_REMOVED)
        yield from _read(datasets.removals_of(dataset.uri), dataset.commit.removals, list(_REMOVED))


def _datasets(out: str, names: Iterable[str]) -> Iterator[Dataset]:
    """Yield data sets below an `--out`, by name, then by place."""
    for name in names:
        for place in leftovers.places(out):
            dataset = Dataset.find_own(storage.join(place, name))
            if dataset and dataset.commit.dataset == name:
                yield dataset


def _read(uri: str, files: Iterable[FileRecord], columns: list[str]) -> Iterator[pa.Table]:
    return in_order(files, lambda file: datasets.read_file(uri, file, columns), _FILES_AHEAD)


@dataclass(frozen=True)
class _Wanted:
    """Pictures that go.

    Attributes:
        image_ids: the pictures.
        uploads: (uri, generation) of their uploads, as one text each.
    """

    image_ids: pa.Array
    uploads: pa.Array

    @staticmethod
    def find(out: str, image_ids: Iterable[str]) -> _Wanted:
        """Look for the uploads that are these pictures."""
        wanted = pa.array(sorted(set(image_ids)), pa.string())
        uploads: set[str] = set()
        for table in _placed(out):
            own = table.filter(pc.is_in(table["image_id"], value_set=wanted))
            uploads.update(_joined(own, ("uri", "generation")).to_pylist())
        # Objects that came after the picture was taken down have posts at most.
        for place in leftovers.corpora(out):
            uploads.update(map("\0".join, takedowns.withheld(out, place)))
        return _Wanted(wanted, pa.array(sorted(uploads), pa.string()))

    def among(self, table: pa.Table, name: str) -> NDArray[np.bool_]:
        """Return which rows of a data set are of these pictures, bool[n]."""
        mask = np.zeros(table.num_rows, bool)
        for column in _PICTURES[name]:
            mask |= pc.is_in(table[column], value_set=self.image_ids).to_numpy()
        if name in _UPLOADS:
            mask |= pc.is_in(_joined(table, _UPLOADS[name]), value_set=self.uploads).to_numpy()
        return mask


def _joined(table: pa.Table, columns: tuple[str, ...]) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*(pc.fill_null(table[c], "") for c in columns), "\0")


def _columns(name: str) -> list[str]:
    """Return the columns by which rows of a data set are told to be of a picture."""
    return [*_PICTURES[name], *_UPLOADS.get(name, ())]


@dataclass
class Erased:
    """What an erasure removed.

    Attributes:
        rows: data set below the `--out` → rows.
        files: superseded and staged files that were deleted.
        pictures: translations that were deleted.
    """

    rows: Counter[str]
    files: int = 0
    pictures: int = 0

    @staticmethod
    def nothing() -> Erased:
        """Return what is removed where nothing is."""
        return Erased(Counter())


def erase(out: str, image_ids: Iterable[str], execution: Execution) -> Erased:
    """Remove pictures from all data sets below an `--out`, and from what earlier commits left there.

    Args:
        out: the place.
        image_ids: the pictures.
        execution: who removes them.

    Raises:
        DatasetError: a data set is damaged.
        StoreUnavailableError: other runs keep committing to one.
    """
    wanted = _Wanted.find(out, image_ids)
    erased = Erased.nothing()
    for dataset in _datasets(out, _PICTURES):
        going = wanted
        if dataset.commit.dataset == _TRANSLATIONS:
            going = replace(wanted, image_ids=_with_origins(dataset, wanted))
            erased.pictures += _delete_pictures(dataset, going)
        if rows := _erase_rows(dataset.uri, going, execution):
            erased.rows[dataset.uri.removeprefix(f"{out}/")] += rows
    for place in leftovers.places(out):
        erased.files += sum(_purge(place, name, wanted) for name in _PICTURES)
        if corpus := Dataset.find_own(storage.join(place, schemas.EMBEDDINGS)):
            codes.forget(corpus, execution)
    return erased


def forget_posts(place: str, objects: Iterable[tuple[str, str]], execution: Execution) -> int:
    """Remove the posts of objects that runs refused, as their pictures were taken down; return how many.

    Posts that are free of just these objects already are not read again.

    Args:
        place: parent of the data sets of a corpus.
        objects: URI and generation of all that were refused.
        execution: who removes them.
    """
    names, uri = sorted(map("\0".join, objects)), storage.join(place, "posts")
    posts, free_of = Dataset.find_own(uri), datasets.digest_of(*names)
    if not names or posts is None or not _unchecked(posts.commit, free_of):
        return 0
    wanted = _Wanted(pa.array([], pa.string()), pa.array(names, pa.string()))
    rows = _erase_rows(uri, wanted, execution, free_of)
    _purge(place, "posts", wanted)
    return rows


def _unchecked(commit: Commit, free_of: str | None) -> tuple[FileRecord, ...]:
    """Return the files of a commit that no run has found free of some objects: all without a digest of these.

    A run that added posts since may not have known that they are refused: an object that is listed no more,
    or was admitted, is forgotten, and refused again if it comes back.
    """
    runs = commit.runs
    last = next((r for r in reversed(runs) if free_of and runs[r].get(_FREE_OF) == free_of), None)
    checked = set(list(runs)[: list(runs).index(last) + 1]) if last else set()
    return tuple(file for file in commit.files if not file.segments or not checked.issuperset(file.segments))


def forget_embeddings(out: str, place: str, execution: Execution) -> int:
    """Remove what a run made of pictures that were taken down while it was at work; return how many rows.

    Args:
        out: the `--out`, which has the table `takedowns/`.
        place: parent of the embeddings.
        execution: who removes them.
    """
    if not (refused := takedowns.refused(out)):
        return 0
    wanted = _Wanted(pa.array(sorted(refused), pa.string()), pa.array([], pa.string()))
    rows = _erase_rows(storage.join(place, schemas.EMBEDDINGS), wanted, execution)
    _purge(place, schemas.EMBEDDINGS, wanted)
    return rows


def _with_origins(dataset: Dataset, wanted: _Wanted) -> pa.Array:
    """Return pictures with the originals of those that are translations: an original has all or none."""
    origins: set[str] = set(wanted.image_ids.to_pylist())
    for table in _read(dataset.uri, dataset.files, ["image_id", "origin_id"]):
        own = table.filter(pc.is_in(table["image_id"], value_set=wanted.image_ids))
        origins.update(own["origin_id"].to_pylist())
    return pa.array(sorted(origins), pa.string())


def _delete_pictures(dataset: Dataset, wanted: _Wanted) -> int:
    """Delete the files of translations that go, before their rows: these say where they are."""
    folder = f"{moves.place_of(dataset.uri)[0]}/"
    count = 0
    for table in _read(dataset.uri, dataset.files, ["uri", *_columns(_TRANSLATIONS)]):
        own = table.filter(pa.array(wanted.among(table, _TRANSLATIONS)))
        for uri in own["uri"].to_pylist():
            if uri.startswith(folder):
                storage.delete(uri)
                count += 1
    return count


def _erase_rows(uri: str, wanted: _Wanted, execution: Execution, free_of: str | None = None) -> int:
    """Remove the rows of pictures from a data set by compare-and-swap; return how many went.

    Args:
        uri: of the data set.
        wanted: the pictures.
        execution: who removes them.
        free_of: names what goes, for the commit. Files that are free of it are not read.
    """
    for _ in range(_ATTEMPTS):
        dataset = Dataset.find_own(uri)
        if dataset is None:
            return 0
        change = _Change(dataset, wanted, execution, _unchecked(dataset.commit, free_of))
        commit = change.commit()
        if free_of:
            commit = commit.with_note(execution.run_id, {_FREE_OF: free_of})
        if commit == dataset.commit or datasets.replace_commit(uri, commit, dataset):
            return change.rows
    raise StoreUnavailableError(f"{uri}: other runs keep committing to it; run again when they have ended")


@dataclass
class _Change:
    """A data set without some pictures.

    Attributes:
        files: those that may have them.
        rows: how many rows went.
    """

    dataset: Dataset
    wanted: _Wanted
    execution: Execution
    files: tuple[FileRecord, ...]
    rows: int = 0

    @property
    def _name(self) -> str:
        return self.dataset.commit.dataset

    def commit(self) -> Commit:
        """Write what must be written anew, and return the next commit; the present one without a change."""
        commit = self.dataset.commit
        columns = _columns(self._name)
        names = {file.name for file in self.files}
        files = [file for file in commit.files if file.name not in names]
        removed: list[pa.Table] = []
        for file, table in zip(self.files, _read(self.dataset.uri, self.files, columns), strict=True):
            mask = self.wanted.among(table, self._name)
            if not mask.any():
                files.append(file)
                continue
            self.rows += int(mask.sum())
            files += self._without(file, mask)
            if self._name == schemas.EMBEDDINGS:
                removed.append(self._removed(file, mask))
        removals = self._log(removed)
        if not self.rows and removals == commit.removals:
            return commit
        return replace(commit, files=tuple(files), removals=removals)

    def _without(self, file: FileRecord, mask: NDArray[np.bool_]) -> list[FileRecord]:
        """Write a file without some rows; none where no row is left."""
        if mask.all():
            return []
        table = compaction.read_whole(self.dataset.uri, file).filter(pa.array(~mask))
        written = datasets.write_file(self.dataset.uri, file.key, [table], table.schema)
        recorded = _recorded(written, file)
        if file.segments and self._name == schemas.EMBEDDINGS:
            return [recorded.of_segments(datasets.rows_by_run(table))]
        return [recorded]

    def _removed(self, file: FileRecord, mask: NDArray[np.bool_]) -> pa.Table:
        """Return what the log says of the rows of a file that go."""
        columns = [*_REMOVED, "run_id"]
        own = datasets.read_file(self.dataset.uri, file, columns).filter(pa.array(mask))
        constants = {
            "reason": _TAKEN_DOWN,
            "removed_in": self.dataset.commit.version + 1,
            "run_id": self.execution.run_id,
            "removed_at": datetime.now(UTC).replace(microsecond=0),
        }
        known = {name: own[name] for name in _REMOVED} | {"segment": own["run_id"]}
        arrays = [
            known[field.name]
            if field.name in known
            else pa.repeat(pa.scalar(constants[field.name], field.type), own.num_rows)
            for field in schemas.REMOVALS
        ]
        return pa.Table.from_arrays(arrays, schema=schemas.REMOVALS)

    def _log(self, removed: list[pa.Table]) -> tuple[FileRecord, ...]:
        """Return the log of removals with the rows that go, in which all rows of the pictures say why."""
        place, commit = datasets.removals_of(self.dataset.uri), self.dataset.commit
        log: list[FileRecord] = []
        for file in commit.removals:
            table = datasets.read_file(place, file)
            own = pc.is_in(table["image_id"], value_set=self.wanted.image_ids)
            if pc.any(pc.and_(own, pc.not_equal(table["reason"], _TAKEN_DOWN))).as_py():
                reasons = pc.if_else(own, pa.scalar(_TAKEN_DOWN), table["reason"])
                index = table.schema.get_field_index("reason")
                table = table.set_column(index, schemas.REMOVALS.field("reason"), reasons)
                file = _recorded(datasets.write_file(place, file.key, [table], schemas.REMOVALS), file)
            log.append(file)
        if removed:
            table = pa.concat_tables(removed)
            name = f"part-{datasets.digest_of(self.execution.run_id, commit.version, self.dataset.uri)}"
            log.append(datasets.write_removals(self.dataset.uri, name, table))
        return tuple(log)


def _recorded(written: FileRecord, like: FileRecord) -> FileRecord:
    """Return the record of a file with what another one says of its rows."""
    return replace(written, segments=like.segments, source=like.source, bounds=like.bounds)


def _purge(place: str, name: str, wanted: _Wanted) -> int:
    """Delete the files of a data set that no commit lists and that hold a picture; return how many."""
    uri = storage.join(place, name)
    dataset = Dataset.find_own(uri)
    listed = {file.name for file in dataset.files} if dataset else set()
    loose = {
        entry.uri: file
        for folder in dict.fromkeys(moves.folders(uri))
        for entry in storage.entries(folder)
        if (file := entry.uri[len(folder) + 1 :]).endswith(".parquet") and file not in listed
    }
    held = in_order(loose, lambda where: _is_held(where, name, wanted), _FILES_AHEAD)
    doomed = {where: file for (where, file), is_held in zip(loose.items(), held, strict=True) if is_held}
    _forget(place, name, doomed)
    for where in doomed:
        storage.delete(where)
    return len(doomed)


def _is_held(where: str, name: str, wanted: _Wanted) -> bool:
    table = parquet.peek(where, _columns(name))
    return table is not None and bool(wanted.among(table, name).any())


def _forget(place: str, name: str, doomed: Mapping[str, str]) -> None:
    """Delete the records of staged parts whose files go: the next run makes these parts again."""
    names = set(doomed.values())
    for uri, record in units.staged(place).items() if names else ():
        if any(dataset == name and file.name in names for dataset, file in record.files):
            storage.delete(uri)
