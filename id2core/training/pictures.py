"""Pictures of originals and their translations, found by name and content where the folders have moved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from id2core.errors import FinetuneError
from id2core.runs.listing import PICTURES
from id2core.runs.progress import OnStage, silent
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.training.finetune import Labeled

_READERS = 32
STAGE = "originals"


class _Row(NamedTuple):
    """A translation: where its picture is now and whether it exists, and what it was made from."""

    picture: str
    exists: bool
    origin_id: str
    origin_uri: str


@dataclass
class TrainingPictures:
    """What a backbone is trained on.

    Attributes:
        origins: id of an origin → its picture, for origins that have a translation.
        translations: picture → id of its origin.
        missing_origins: URIs of origins, as the data sets have them, that are not below the originals.
        missing_translations: translations whose picture is gone although the origin exists.
    """

    origins: dict[str, str] = field(default_factory=dict)
    translations: dict[str, str] = field(default_factory=dict)
    missing_origins: set[str] = field(default_factory=set)
    missing_translations: set[str] = field(default_factory=set)

    @property
    def labeled(self) -> list[Labeled]:
        """Return each picture with its class, sorted: the order of parts does not matter."""
        origins = [(uri, origin) for origin, uri in self.origins.items()]
        return sorted([*origins, *self.translations.items()])


def find_pictures(
    originals: str, translations: Iterable[Dataset], progress: OnStage = silent
) -> TrainingPictures:
    """Find the pictures of originals and translations.

    An original is the file that has the name and the SHA-256 that the data sets give.

    Args:
        originals: folder of the pictures that were translated.
        translations: data sets of `id2 translate`, with the pictures beside them.
        progress: called with "originals", files hashed and files in all.

    Raises:
        FinetuneError: none of the origins, or none of the translations, exists.
        StorageError, DatasetError: a folder or data set cannot be read.
    """
    root = storage.normalize(originals)
    rows = [row for dataset in translations for row in _rows(dataset)]
    by_hash = _pictures_by_hash(root, {_name(row.origin_uri) for row in rows}, progress)
    pictures = TrainingPictures()
    for row in rows:
        if row.origin_id not in by_hash:
            pictures.missing_origins.add(row.origin_uri)
        elif not row.exists:
            pictures.missing_translations.add(row.picture)
        else:
            pictures.origins[row.origin_id] = by_hash[row.origin_id]
            pictures.translations[row.picture] = row.origin_id
    if not pictures.translations:
        raise FinetuneError(_nothing_found(pictures, root))
    return pictures


def _nothing_found(pictures: TrainingPictures, root: str) -> str:
    if lost := pictures.missing_translations:
        return (
            f"none of the {len(lost)} translations exists, not even {min(lost)}: put the data set beside "
            f"its {PICTURES}/"
        )
    missing = pictures.missing_origins
    example = f", such as {min(missing)}" if missing else ""
    return (
        f"none of the {len(missing)} origins is below {root}, unchanged{example}: give the folder that was "
        "translated"
    )


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _pictures_by_hash(root: str, names: set[str], progress: OnStage) -> dict[str, str]:
    """Return SHA-256 → picture of all files with one of the names; of equal ones the first."""
    named = [obj.uri for obj in storage.list_objects(root) if _name(obj.uri) in names]
    by_hash: dict[str, str] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for count, (uri, digest) in enumerate(zip(named, pool.map(_sha256, named), strict=True), 1):
            by_hash.setdefault(digest, uri)
            progress(STAGE, count, len(named))
    return by_hash


def _sha256(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _rows(dataset: Dataset) -> list[_Row]:
    """Return the translations of a data set."""
    folder = storage.join(dataset.uri.rpartition("/")[0], PICTURES)
    columns: list[list[str]] = [[], [], []]
    for table in dataset.tables(["uri", "origin_id", "origin_uri"]):
        for column, values in zip(columns, table.to_pydict().values(), strict=True):
            column += values
    pictures = [_place_now(folder, written) for written in columns[0]]
    existing = _existing(folder, pictures)
    rows = zip(pictures, columns[1], columns[2], strict=True)
    return [_Row(picture, picture in existing, *origin) for picture, *origin in rows]


def _place_now(folder: str, written: str) -> str:
    """Return where a picture is now: those of `id2 translate` stay beside their data set."""
    _, made_here, name = written.rpartition(f"/{PICTURES}/")
    return storage.join(folder, name) if made_here else written


def _existing(folder: str, pictures: list[str]) -> set[str]:
    """Return the pictures that exist, and others in the folder, which is listed once."""
    elsewhere = [picture for picture in pictures if not picture.startswith(f"{folder}/")]
    existing: set[str] = set()
    if len(elsewhere) < len(pictures):
        existing.update(obj.uri for obj in storage.list_objects(folder))
    with ThreadPoolExecutor(_READERS) as pool:
        exists = pool.map(storage.exists, elsewhere)
        existing.update(uri for uri, there in zip(elsewhere, exists, strict=True) if there)
    return existing
