"""Training classes of W: every origin with its translations, as rows of one file of latents.

`load` joins data sets of embeddings with data sets of translations. The latents are written once, sorted
by class, to a cache that is named by what the data sets hold, and are memory-mapped from there: a corpus
larger than memory is trained on as it lies on disk.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from id2core.errors import PairsError
from id2core.runs.progress import OnStage, silent
from id2core.store import datasets, schemas, storage, strict_json
from id2core.store.datasets import Dataset

_LAYOUT = 1  # of the cache
_LATENTS, _FACTS = "latents.npy", "pairs.json"


class UnpairedRows(BaseModel):
    """Counts of rows that are in no class, by reason.

    Attributes:
        origins_without_latent: origins of translations that no embeddings hold.
        origins_without_translation: origins with a latent, none of whose translations has one.
        translations_without_latent: translated pictures that no embeddings hold.
        translations_without_origin: translated pictures with a latent whose origin has none.
        repeated_translations: further rows of a translated picture, and rows of pictures that are origins.
        repeated_latents: further embeddings of a picture, at other URIs.
        unrelated_latents: embeddings of pictures that no translation names.
    """

    model_config = ConfigDict(frozen=True)

    origins_without_latent: int = 0
    origins_without_translation: int = 0
    translations_without_latent: int = 0
    translations_without_origin: int = 0
    repeated_translations: int = 0
    repeated_latents: int = 0
    unrelated_latents: int = 0

    def __str__(self) -> str:
        counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in self if count]
        return ", ".join(counts) or "nothing left out"


@dataclass(frozen=True, eq=False)
class Pairs:
    """C classes, each an origin and its translations, in N rows.

    Attributes:
        latents: float16[N,n], sorted by class, the origin first in each; read-only, memory-mapped by `load`.
        origin_ids: image_id of every class's origin, ascending.
        offsets: int64[C+1]; class c has the rows `offsets[c]` to `offsets[c+1]`, the first is its origin.
        ids: `encoder_id` and `preprocess_id` of the latents.
        digest: names the rows: equal digests, equal latents.
        unpaired: rows of the data sets that are in no class.
    """

    latents: NDArray[np.float16]
    origin_ids: list[str]
    offsets: NDArray[np.int64]
    ids: dict[str, str]
    digest: str = ""
    unpaired: UnpairedRows = field(default_factory=UnpairedRows)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the latents of rows int64[B]: float16[B,n]."""
        return self.latents[rows]

    @functools.cached_property
    def labels(self) -> NDArray[np.int32]:
        """Return the class of each row, int32[N]."""
        return np.repeat(np.arange(len(self.origin_ids), dtype=np.int32), np.diff(self.offsets))

    @functools.cached_property
    def is_origin(self) -> NDArray[np.bool_]:
        """Return whether each row is its class's origin, bool[N]."""
        mask = np.zeros(len(self.latents), np.bool_)
        mask[self.offsets[:-1]] = True
        return mask

    def held_out(self, share: float) -> NDArray[np.bool_]:
        """Return the classes for validation, bool[C]; see `held_out`."""
        return held_out(self.origin_ids, share)


def held_out(origin_ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Return which classes are for validation: it depends on the origin's image_id alone.

    Args:
        origin_ids: image_ids of C origins.
        share: expected share of the classes, from 0 to below 1; a larger one keeps those of a smaller one.

    Returns:
        bool[C].

    Raises:
        PairsError: the share is out of range.
    """
    if not 0 <= share < 1:
        raise PairsError(f"the share for validation is {share}; choose 0 or more and less than 1")
    below = share * 2**64
    return np.array([int(datasets.digest_of("validation", i), 16) < below for i in origin_ids], np.bool_)


def load(
    embeddings: Sequence[Dataset],
    translations: Sequence[Dataset],
    cache: str | os.PathLike[str],
    progress: OnStage = silent,
) -> Pairs:
    """Return the training classes of data sets, from the cache where they were made before.

    A picture has one row: of several URIs the first counts; an origin is no member of another class; a
    translation of several origins belongs to the first by image_id. Memory holds the image_ids and some row
    groups. A build that is killed leaves nothing that a later call would take for a whole one.

    Args:
        embeddings: data sets with the latents of origins and of translations, in any order.
        translations: data sets of `schemas.TRANSLATIONS`.
        cache: local directory; needs room for all latents (8 kB each at n = 4,096).
        progress: called with "latents", and how many embeddings of how many were read.

    Raises:
        PairsError: the data sets do not fit together, or make no class.
        DatasetError: a data set is not complete or is damaged.
    """
    latents = _sources(embeddings, "embeddings")
    pictures = _sources(translations, "translations")
    ids = _common_ids(latents)
    digests = [sorted({dataset.digest for dataset in side}) for side in (latents, pictures)]
    digest = datasets.digest_of(_LAYOUT, ids, *digests)
    root = _cache_root(cache)
    folder = root / f"pairs-{digest}"
    with FileLock(root / f".{folder.name}.lock"):  # one builder at a time; a killed one lets go of it
        if not folder.exists():
            plan = _plan(latents, pictures)
            _build(folder, plan, latents, ids, progress)
    return _open(folder, digest)


def _sources(given: Sequence[Dataset], kind: str) -> list[Dataset]:
    """Return each data set once, in an order that does not depend on the given one."""
    if not given:
        raise PairsError(f"give one or more data sets of {kind}")
    by_digest: dict[str, Dataset] = {}
    for dataset in sorted(given, key=lambda dataset: dataset.uri):
        if dataset.commit.dataset != kind:
            raise PairsError(
                f"{dataset.uri} holds {dataset.commit.dataset}; a data set of {kind} is needed there"
            )
        by_digest.setdefault(dataset.digest, dataset)
    return [by_digest[digest] for digest in sorted(by_digest)]


def _common_ids(sources: list[Dataset]) -> dict[str, str]:
    first = sources[0]
    ids = {name: first.ids[name] for name in schemas.LATENT_IDS if name in first.ids}
    for other in sources[1:]:
        for name in schemas.LATENT_IDS:
            if other.ids.get(name) != ids.get(name):
                raise PairsError(
                    f"{other.uri} has {name} {other.ids.get(name)}, {first.uri} has {ids.get(name)}: their "
                    "latents do not compare. Embed origins and translations with the same encoder."
                )
    return ids


def _cache_root(cache: str | os.PathLike[str]) -> Path:
    root = storage.normalize(cache)
    if storage.is_remote(root):
        raise PairsError(f"{root}: latents are memory-mapped, so the cache must be a local directory")
    Path(root).mkdir(parents=True, exist_ok=True)
    return Path(root)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where every latent goes.

    Attributes:
        rows: int64, for every row of the embeddings its row in the cache, or -1.
        origin_ids, sizes: of every class.
    """

    rows: NDArray[np.int64]
    origin_ids: list[str]
    sizes: list[int]
    unpaired: UnpairedRows


def _column_tables(sources: list[Dataset], columns: list[str]) -> pa.Table:
    tables = [table for dataset in sources for table in dataset.tables(columns)]
    return (
        pa.concat_tables(tables)
        if tables
        else pa.table({name: pa.array([], pa.string()) for name in columns})
    )


def _members(translations: pa.Table) -> pa.Table:
    """Return every picture once: `origin_id`, `is_translation`, `image_id`, sorted by these."""
    origins = translations["origin_id"].unique()
    others = translations.filter(pc.invert(pc.is_in(translations["image_id"], value_set=origins)))
    first = others.group_by("image_id").aggregate([("origin_id", "min")])
    columns = ("origin_id", "is_translation", "image_id")
    heads = pa.table([origins, pa.repeat(False, len(origins)), origins], names=columns)
    rest = pa.table(
        [first["origin_id_min"], pa.repeat(True, first.num_rows), first["image_id"]], names=columns
    )
    return pa.concat_tables([heads, rest]).sort_by([(name, "ascending") for name in columns])


def _plan(latents: list[Dataset], pictures: list[Dataset]) -> _Plan:
    """Turn ids into rows: the first pass."""
    translations = _column_tables(pictures, ["image_id", "origin_id"])
    members = _members(translations)
    is_translation = members["is_translation"].to_numpy()
    class_of = np.cumsum(~is_translation) - 1
    embedded = _column_tables(latents, ["image_id"])["image_id"]
    member_of = pc.index_in(embedded, value_set=members["image_id"]).fill_null(-1).to_numpy().astype(np.int64)

    numbers, first = np.unique(member_of, return_index=True)
    first, numbers = first[numbers >= 0], numbers[numbers >= 0]
    present = np.zeros(members.num_rows, np.bool_)
    present[numbers] = True
    with_origin = present[~is_translation][class_of]
    translated = np.bincount(class_of[present & is_translation], minlength=int((~is_translation).sum())) > 0
    kept = present & with_origin & translated[class_of]

    unpaired = UnpairedRows(
        origins_without_latent=int((~is_translation & ~present).sum()),
        origins_without_translation=int((~is_translation & present & ~translated[class_of]).sum()),
        translations_without_latent=int((is_translation & ~present).sum()),
        translations_without_origin=int((is_translation & present & ~with_origin).sum()),
        repeated_translations=translations.num_rows - int(is_translation.sum()),
        repeated_latents=int((member_of >= 0).sum()) - len(numbers),
        unrelated_latents=int((member_of < 0).sum()),
    )
    if not kept.any():
        raise PairsError(
            f"no origin has a latent as well as a translation with one ({unpaired}): embed the folder of "
            "origins and the pictures/ of the translations, and give both data sets"
        )
    rows = np.full(len(member_of), -1, np.int64)
    rows[first] = np.where(kept, np.cumsum(kept) - 1, -1)[numbers]
    sizes = np.bincount(class_of[kept])
    chosen = members["image_id"].filter(pa.array(kept & ~is_translation)).to_pylist()
    return _Plan(rows, chosen, [int(size) for size in sizes if size], unpaired)


def _build(folder: Path, plan: _Plan, sources: list[Dataset], ids: dict[str, str], progress: OnStage) -> None:
    """Write the cache beside its place, then rename it: it is there whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_latents(partial / _LATENTS, plan, sources, progress)
        facts = {
            "ids": ids,
            "origin_ids": plan.origin_ids,
            "sizes": plan.sizes,
            "left_out": plan.unpaired.model_dump(),
        }
        storage.write_bytes(str(partial / _FACTS), json.dumps(facts).encode())
        partial.rename(folder)
    except OSError as error:
        raise PairsError(f"{folder} cannot be written: {error}; choose a cache with more room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _row_groups(sources: list[Dataset]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield the latents by row groups in order, each with the URI of its file."""
    for dataset in sources:
        for record, table in dataset.row_groups(["latent"]):
            yield storage.join(dataset.uri, record.name), table["latent"]


def _write_latents(path: Path, plan: _Plan, sources: list[Dataset], progress: OnStage) -> None:
    """Write the latents by their rows: the second pass.

    Written by position, not through the map: a full disk is then an error instead of the end of the
    process, and written pages do not count as its memory.
    """
    shape: tuple[int, int] | None = None
    start = position = 0
    with path.open("wb") as file:
        for name, column in _row_groups(sources):
            vectors = _checked(schemas.column_to_vectors(column), shape, name)
            if shape is None:
                shape = (sum(plan.sizes), vectors.shape[1])
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                start = file.tell()
            rows = plan.rows[position : position + len(vectors)]
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                if row >= 0:
                    _write_at(file.fileno(), vector.tobytes(), start + row * vector.nbytes)
            position += len(vectors)
            progress("latents", position, len(plan.rows))
        os.fsync(file.fileno())


def _write_at(file: int, data: bytes, start: int) -> None:
    """Write all of the data: an almost full disk takes a part of it without an error."""
    while data:
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written


def _checked(vectors: NDArray[Any], shape: tuple[int, int] | None, name: str) -> NDArray[np.float16]:
    if shape and vectors.shape[1] != shape[1]:
        raise PairsError(f"{name} has latents of {vectors.shape[1]} numbers, other files of {shape[1]}")
    if not np.isfinite(vectors).all():
        raise PairsError(f"{name} holds a latent that is not finite; embed its pictures again")
    return np.ascontiguousarray(vectors, "<f2")


def _open(folder: Path, digest: str) -> Pairs:
    try:
        facts = strict_json.parse_object((folder / _FACTS).read_bytes())
        latents = np.load(folder / _LATENTS, mmap_mode="r", allow_pickle=False)
        offsets = np.concatenate([[0], np.cumsum(facts["sizes"], dtype=np.int64)])
        if len(latents) != offsets[-1]:
            raise ValueError(f"{len(latents)} latents, not {offsets[-1]}")
        unpaired = UnpairedRows(**facts["left_out"])
        return Pairs(latents, facts["origin_ids"], offsets, facts["ids"], digest, unpaired)
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise PairsError(f"{folder} is damaged: {error}; delete it, and it is made again") from error
