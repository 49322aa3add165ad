"""Give the rows of a corpus the descriptors of another transform, from their latents. Read no picture.

    OUT/reference/embeddings/                            in use
    OUT/reprojected/TRANSFORM_ID/reference/embeddings/   the copy beside it, until `put_in_use`

The copy is a data set like any other, with the same rows. It can be searched, calibrated, and measured while
searches still use the corpus. It is brought up to date file by file: no file is projected twice.

Rows that have left the corpus since leave the copy, too, and its own log of removals records them. So a
search of the copy knows what it has compared before.

A switch is one compare-and-swap of the corpus. Segments, sources, and the log of removals stay, so the ledger
knows that no pair has been searched with the new descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from id2core.errors import DatasetError, LostRowsError, StoreUnavailableError, TransformError
from id2core.runs import codes, leftovers, units
from id2core.runs.execution import Execution
from id2core.runs.units import Record
from id2core.store import datasets, moves, parquet, schemas, storage
from id2core.store.ahead import in_order
from id2core.store.datasets import SUCCESS, Change, Commit, Dataset, FileRecord
from id2core.transforms import reference_rows
from id2core.transforms.crop_rows import ROW_BYTES
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

# Files that are copied at a time, by a store that copies them itself.
_COPIES = 16
# Where all is that was made beside a corpus, also by a search of it.
_FOLDERS = (schemas.EMBEDDINGS, codes.INDEX, datasets.REMOVALS, moves.SUPERSEDED, moves.STAGING)


class _Counts(BaseModel):
    """What a run counts in the commit of what lies beside a corpus.

    Attributes:
        rows: that it has.
        corpus_version: of the commit of the corpus whose rows these are; None where no run says.
    """

    rows: int = 0
    corpus_version: int | None = None


@dataclass(frozen=True)
class Reprojection:
    """A corpus, and what is made beside it.

    Attributes:
        corpus: its embeddings, as they were when this was planned.
        place: parent of the data set beside it.
        transform: as `load_transform` takes it.
        ids: of the rows that are made.
        execution: who makes them.
        beside: the data set as it was; None for one that was not there.
    """

    corpus: Dataset
    place: str
    transform: str
    ids: dict[str, str]
    execution: Execution
    beside: Dataset | None

    @property
    def uri(self) -> str:
        """URI of the data set that is made."""
        return storage.join(self.place, schemas.EMBEDDINGS)

    @cached_property
    def todo(self) -> tuple[FileRecord, ...]:
        """Files of the corpus that are not projected yet."""
        kept = self._kept
        return tuple(file for file in self.corpus.files if file.name not in kept)

    @property
    def _kept(self) -> dict[str, FileRecord]:
        """Name of a file of the corpus → the one that was made of it before."""
        made = {file.key: file for file in self.beside.files} if self.beside else {}
        pairs = ((file, made.get(self.key_of(file))) for file in self.corpus.files)
        return {file.name: own for file, own in pairs if own and own.rows == file.rows}

    @property
    def is_current(self) -> bool:
        """Whether the data set beside the corpus has exactly its rows."""
        return self.beside is not None and not self.todo and len(self.beside.files) == len(self.corpus.files)

    def key_of(self, file: FileRecord) -> str:
        """Return the name, without the hash of its bytes, of what is made of a file."""
        prefix = parquet.MERGED if file.is_merged else "part-"
        return prefix + self.unit_of(file)

    def unit_of(self, file: FileRecord) -> str:
        """Return the key of the unit of work that a file is."""
        # Not of its key: pictures that come back have the key that they had, and rows of another run.
        version = schemas.version_of(schemas.EMBEDDINGS)  # files of earlier versions lack what a search reads
        return datasets.digest_of(file.name, file.rows, self.ids["transform_id"], version)

    def load(self) -> Transform:
        """Load the transform.

        Raises:
            TransformError: it is not the one that this was planned with.
        """
        chosen = load_transform(self.transform, self.ids["encoder_id"])
        if chosen.transform_id != self.ids["transform_id"]:
            raise TransformError(
                f"this worker loaded transform {chosen.transform_id}, the run was planned with "
                f"{self.ids['transform_id']}: give every worker the same file"
            )
        return chosen

    def record_uri(self, file: FileRecord) -> str:
        """Return where the record of what is made of a file is staged."""
        return units.record_uri(self.place, self.unit_of(file))


def place_beside(out: str, corpus: str, transform_id: str) -> str:
    """Return the parent of the data set that is made beside a corpus.

    Args:
        out: the `--out` that the corpus is in.
        corpus: its name below `out`; empty where `out` is the corpus.
        transform_id: of the descriptors.
    """
    return storage.join(out, leftovers.REPROJECTED, transform_id, *filter(None, [corpus]))


def plan(corpus: Dataset, place: str, transform: str, execution: Execution) -> Reprojection:
    """Plan what is to be made beside a corpus.

    Args:
        corpus: its embeddings.
        place: see `place_beside`.
        transform: as `load_transform` takes it.
        execution: who makes it.

    Raises:
        DatasetError: the corpus holds no latents.
        TransformError: the transform belongs to another encoder, or takes other latents.
    """
    chosen = load_transform(transform, corpus.ids["encoder_id"])
    chosen.check_encoder(corpus.ids["encoder_id"])
    if not corpus.has_values("latent"):
        raise DatasetError(f"{corpus.uri} holds no latents: embed its images again")
    if filled := corpus.first_filled:
        latents = parquet.schema_of(moves.folders(corpus.uri), filled).field("latent").type
        chosen.output_size(latents.list_size)
    ids = corpus.ids | {"transform_id": chosen.transform_id}
    beside = Dataset.find_own(storage.join(place, schemas.EMBEDDINGS))
    if beside:
        beside.check_ids(ids)
    return Reprojection(corpus, place, transform, ids, execution, beside)


def lacks_rows(corpus: Dataset, transform: Transform) -> bool:
    """Return whether rows lack the crops and the detail that their own transform gives.

    Embeddings with `--views none` have none, and earlier versions none or others. Reads the crops of all.

    Raises:
        DatasetError: a file is gone or damaged.
    """
    filled = corpus.first_filled
    if filled is None or not corpus.has_values("latent"):
        return False
    latents = parquet.schema_of(moves.folders(corpus.uri), filled).field("latent").type.list_size
    if not reference_rows.has_rows(transform, latents):
        return False
    lengths = (pc.binary_length(table["crops"]) for table in corpus.tables(["crops"]))
    return any(each.null_count or pc.any(pc.not_equal(each, ROW_BYTES)).as_py() for each in lengths)


def project(work: Reprojection, file: FileRecord, transform: Transform) -> FileRecord:
    """Make the file that has the rows of another with new descriptors, and its record after it.

    What an earlier attempt has recorded is taken as it is.

    Raises:
        DatasetError: the file is gone or damaged.
        TransformError: the transform does not take these latents.
    """
    if made := _recorded(work, file):
        return made
    if not file.rows:
        raise DatasetError(f"{work.corpus.uri}/{file.name} has no row")
    change = _change(work, file, transform)
    made = datasets.rewrite_file(work.corpus.uri, file, work.uri, work.key_of(file), change)
    made = replace(
        made,
        segments=file.segments,
        segment_rows=file.segment_rows,
        source=file.source,
        bounds=file.bounds,
    )
    key, run_id = work.unit_of(file), work.execution.run_id
    units.leave(work.place, Record(key, run_id, work.ids, made.rows, schemas.EMBEDDINGS, made))
    return made


def _recorded(work: Reprojection, file: FileRecord) -> FileRecord | None:
    """Return what an earlier attempt made of a file, if it is whole."""
    record = units.find(work.place, work.unit_of(file))
    return record.rows if record and record.ids == work.ids else None


def _change(work: Reprojection, file: FileRecord, transform: Transform) -> Change:
    """Return how the columns that depend on the transform are made of the latents of a file."""
    latents = parquet.schema_of(moves.folders(work.corpus.uri), file).field("latent").type.list_size
    size = transform.output_size(latents)
    transform_id = pa.scalar(work.ids["transform_id"], pa.string())

    rows = ReferenceRows.of(transform, latents)

    def make(table: pa.Table) -> dict[str, pa.Array]:
        vectors = schemas.column_to_vectors(table["latent"])
        return {
            "descriptor": schemas.vectors_to_array(transform.apply(vectors), size),
            "transform_id": pa.repeat(transform_id, len(table)),
            **_beside(rows, vectors),
        }

    schema = schemas.embeddings_schema(latents, size)
    return Change(schema, ("latent",), ("descriptor", "transform_id", "crops", "detail"), make)


def _beside(rows: ReferenceRows | None, latents: NDArray[np.float16]) -> dict[str, pa.Array]:
    """Return the columns of crops and detail; null for a W that gives none."""
    if rows is None:
        return dict.fromkeys(("crops", "detail"), pa.nulls(len(latents), pa.binary()))
    crops, detail = rows(latents)
    return {"crops": schemas.octets_to_array(crops), "detail": schemas.octets_to_array(detail)}


def commit(work: Reprojection, made: Iterable[tuple[str, FileRecord]]) -> Dataset:
    """Make the data set beside a corpus have its rows: what was made before, and what is new. Safe to repeat.

    Args:
        work: what was planned.
        made: name of a file of the corpus, and what was made of it.

    Raises:
        LostRowsError: a file was not projected.
        StoreUnavailableError: another run has committed meanwhile.
    """
    files = work._kept | dict(made)
    missing = [file.name for file in work.corpus.files if file.name not in files]
    if missing:
        raise LostRowsError(f"{len(missing)} files were not projected, {missing[0]} among them; run again")
    run_id, source = work.execution.run_id, work.corpus.commit
    base = work.beside.commit if work.beside else Commit(schemas.EMBEDDINGS, run_id, work.ids)
    changed = replace(
        base,
        run_id=run_id,
        files=tuple(files[file.name] for file in source.files),
        runs=base.runs | {run_id: dict(_Counts(rows=source.rows, corpus_version=source.version))},
        sources=source.sources,
        segments=datasets.segments_of(work.corpus),
        removals=(*base.removals, *_removals(work)),
    )
    committed = datasets.replace_commit(work.uri, changed, work.beside)
    if committed is None:
        committed = Dataset.open(work.uri)
        if committed.run_id != run_id:
            raise StoreUnavailableError(f"{work.uri}: run {committed.run_id} has committed; run again")
    for file in source.files:
        storage.delete(work.record_uri(file))
    return committed


def _removals(work: Reprojection) -> tuple[FileRecord, ...]:
    """Write what the corpus says of rows that left it since the last commit beside it; none for nothing."""
    if work.beside is None:
        return ()
    before = work.beside.commit
    seen = before.counts_of(before.run_id, _Counts).corpus_version
    log = work.corpus.commit.removals if seen is not None else ()
    place = datasets.removals_of(work.corpus.uri)
    left = [
        table
        for whole in datasets.read_each(place, log, None)
        if (table := whole.filter(pc.greater(whole["removed_in"], seen))).num_rows
    ]
    if not left:
        return ()
    table = pa.concat_tables(left)
    version = pa.repeat(pa.scalar(before.version + 1, pa.int64()), len(table))
    table = table.set_column(table.schema.get_field_index("removed_in"), "removed_in", version)
    table = table.cast(schemas.REMOVALS)
    name = f"part-{datasets.digest_of(work.execution.run_id, before.version, work.uri)}"
    return (datasets.write_removals(work.uri, name, table),)


def put_in_use(work: Reprojection) -> Dataset:
    """Give a corpus the rows that were made beside it; return it. Safe to repeat.

    The rejects beside the corpus follow first: whoever adds rows meanwhile is refused by its ids.

    Raises:
        StoreUnavailableError: another run has committed to the corpus, or beside it, since this was planned.
        DatasetError: what was made beside it does not have its rows, or is damaged.
    """
    if work.beside is None or not work.is_current:
        raise DatasetError(f"{work.uri} does not have the rows of {work.corpus.uri} yet")
    staged = moves.staged(work.corpus.uri)

    def copy(file: FileRecord) -> None:
        storage.copy(storage.join(work.uri, file.name), storage.join(staged, file.name))
        datasets.verify(work.corpus.uri, file)  # the former files go: what replaces them must be whole

    try:
        for _ in in_order(work.beside.files, copy, _COPIES):
            pass
    except (FileNotFoundError, DatasetError) as error:
        present = Dataset.find_own(work.uri)
        if present is None or present.mark != work.beside.mark:
            raise StoreUnavailableError(f"{work.uri}: another run has committed to it; run again") from error
        raise DatasetError(
            f"{work.uri} has a file that is gone or damaged: --drop it and run again"
        ) from error
    if rejects := _rejects_of(work.corpus):
        _swap(rejects, rejects.commit, work.ids, work.execution)
    changed = replace(work.corpus.commit, files=work.beside.files)
    try:
        return _swap(work.corpus, changed, work.ids, work.execution)
    except StoreUnavailableError:
        match_rejects(Dataset.open(work.corpus.uri), work.execution)
        raise


def match_rejects(corpus: Dataset, execution: Execution) -> None:
    """Give the rejects beside a corpus its ids: a switch that was killed, or given up, may have changed them.

    Raises:
        StoreUnavailableError: another run has committed to them meanwhile.
    """
    rejects = _rejects_of(corpus)
    if rejects and rejects.ids["transform_id"] != corpus.ids["transform_id"]:
        _swap(rejects, rejects.commit, corpus.ids, execution)


def _rejects_of(corpus: Dataset) -> Dataset | None:
    rejects = Dataset.find_own(storage.join(moves.place_of(corpus.uri)[0], units.REJECTS))
    return rejects if rejects and "transform_id" in rejects.ids else None


def _swap(dataset: Dataset, changed: Commit, ids: dict[str, str], execution: Execution) -> Dataset:
    runs = changed.runs | {execution.run_id: {"rows": changed.rows}}
    changed = replace(changed, ids=ids, run_id=execution.run_id, runs=runs, digests={})
    swapped = datasets.replace_commit(dataset.uri, changed, dataset)
    if swapped is None:
        raise StoreUnavailableError(f"{dataset.uri}: another run has committed to it; run again")
    return swapped


def drop(place: str) -> int:
    """Remove what was made beside a corpus; return how many files that were. Files of others stay."""
    for name in (codes.INDEX, schemas.EMBEDDINGS):
        storage.delete(storage.join(place, name, SUCCESS))
    entries = [entry for folder in _FOLDERS for entry in storage.entries(storage.join(place, folder))]
    for entry in entries:
        storage.delete(entry.uri)
    return len(entries)
