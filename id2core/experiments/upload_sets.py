"""Uploads as they come: edited copies and edited translations of test photos, and their latents, kept.

An upload is processed like a real one: the picture at its full size is edited, saved as JPEG, decoded as
every upload is (`images.decode`) and encoded. Its latent is kept in the folder of the evaluation set:

    uploads/ENCODER_ID/VIEW-vN/EDIT-vN/NAME.parquet     image_id of the picture before the edit, latent
    uploads/ENCODER_ID/BOXES-vN/EDIT-vN/NAME.parquet    image_id, boxes of the pictures seen inside

so a second run encodes nothing. Test photos are split: what is chosen is chosen on `VALIDATION`, what is
reported is measured on `TESTED`. Each photo has one upload of each kind and edit. An upload without origin is
the same upload, with its origin taken out of the references.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from id2core.encoders import images
from id2core.encoders.base import Encoder
from id2core.encoders.images import Decoded
from id2core.encoders.views import Box
from id2core.errors import ExperimentError
from id2core.experiments.evaluation_sets import (
    CALIBRATION,
    FRESH,
    TEST,
    TRAIN,
    EvaluationSet,
    Queries,
)
from id2core.experiments.upload_edits import EDITS, Edit
from id2core.runs.progress import OnStage, silent
from id2core.store import schemas, storage

COPY = "copy"
VALIDATION, TESTED = "validation", "test"
FOLDER = "uploads"
STAGE = "encode uploads"
_ENCODED_AT_ONCE = 64
_PREPROCESS = b"id2.preprocess_id"
# Roles whose photos appear beside an upload in a collage: none of them is a reference.
_PARTNERS = (FRESH, TRAIN, CALIBRATION)


@dataclass(frozen=True)
class PixelView:
    """One way to look at an upload before it is encoded.

    Attributes:
        name: of files and columns.
        version: raise it when the view changes.
        look: file of an upload, side in pixels → uint8[side,side,3]; None where there is nothing to see.
    """

    name: str
    version: int
    look: Callable[[bytes, int], NDArray[np.uint8] | None]


def _whole(data: bytes, size: int) -> NDArray[np.uint8]:
    decoded = images.decode(data, size)
    if not isinstance(decoded, Decoded):
        raise ExperimentError(f"an upload that an edit made cannot be decoded: {decoded}")
    return decoded.pixels


WHOLE = PixelView("whole", 1, _whole)


@dataclass(frozen=True)
class Finder:
    """Where pictures are seen inside of an upload.

    Attributes:
        name, version: as of a `PixelView`.
        look: file of an upload, side in pixels → boxes.
    """

    name: str
    version: int
    look: Callable[[bytes, int], Sequence[Box]]


@dataclass(frozen=True, eq=False)
class Sources:
    """Pictures of one data set that become uploads, one of each photo.

    Attributes:
        name: of the data set: a role, or a role and a model.
        uris: Q files.
        image_ids: of these files.
        origins: int64[Q], row of the origin among the references, −1 where it is none of them.
        photos: int64[Q], number of the photo, the same in all kinds of a split.
    """

    name: str
    uris: Sequence[str]
    image_ids: Sequence[str]
    origins: NDArray[np.int64]
    photos: NDArray[np.int64]

    def take(self, rows: Sequence[int]) -> Sources:
        """Return some of them."""
        return Sources(
            self.name,
            [self.uris[i] for i in rows],
            [self.image_ids[i] for i in rows],
            self.origins[rows],
            self.photos[rows],
        )


@dataclass(frozen=True, eq=False)
class Uploads:
    """Uploads of one edit, as matchers see them.

    Attributes:
        edit: that all have.
        sources: Q pictures.
        set: that they are from.
    """

    edit: Edit
    sources: Sources
    set: UploadSet

    def latents(self, view: PixelView = WHOLE) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return latents float16[Q,n] under a view, and bool[Q]: whether the view shows anything.

        The latent of an upload where it does not is zero.
        """
        return self.set.latents(self.edit, self.sources, view)

    def take(self, rows: Sequence[int]) -> Uploads:
        """Return some of them."""
        return replace(self, sources=self.sources.take(rows))

    def boxes(self, finder: Finder) -> list[list[Box]]:
        """Return where each of the Q uploads shows other pictures."""
        return self.set.boxes(self.edit, self.sources, finder)

    def files(self) -> Iterator[bytes]:
        """Make the files again that were uploaded, one by one."""
        return self.set.files(self.edit, self.sources)

    @property
    def queries(self) -> Queries:
        """Return them as queries, with the latents of the whole."""
        return Queries(self.latents()[0], self.sources.origins, self.sources.photos)


@dataclass(eq=False)
class UploadSet:
    """Makes and keeps the uploads of an evaluation set.

    Attributes:
        data: with the pictures of its test.
        progress: of encoding.
    """

    data: EvaluationSet
    progress: OnStage = silent
    _kept: dict[tuple[str, ...], dict[str, NDArray[np.float16] | None]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of uploads: copies, then translations by each model."""
        return (COPY, *self.data.models)

    @functools.cached_property
    def edits(self) -> list[Edit]:
        """Return the edits that there are pictures for."""
        return [edit for edit in EDITS.values() if self.partners or edit.name != "collage"]

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """Return encoder_id and preprocess_id of the latents."""
        return self.data.ids

    @functools.cached_property
    def references(self) -> NDArray[np.float16]:
        """Return the latents of the references, float16[R,n]."""
        return self.data.references

    @property
    def latent_size(self) -> int:
        """Return n."""
        return int(self.references.shape[1])

    @functools.cached_property
    def partners(self) -> list[str]:
        """Return files of photos that are no references, for edits that show two pictures."""
        for role in _PARTNERS:
            if self.data.has(role):
                uris = [uri for uri in self.data.uris(role) if Path(uri).is_file()]
                if uris:
                    return sorted(uris)
        return []

    def missing(self) -> str | None:
        """Return why uploads cannot be made; None where they can."""
        if self.network is None:
            return f"the encoder of the latents, {self.ids['encoder_id']}, is missing"
        for kind in self.kinds:
            sources = self.sources(kind, TESTED)
            if not sources.uris:
                return "no test photo is translated by all models"
            if lost := next((uri for uri in sources.uris if not storage.exists(uri)), None):
                return f"pictures of the test are missing, for example {lost}"
        return None

    @functools.cached_property
    def network(self) -> Encoder | None:
        """Return the encoder of the latents, loaded once."""
        return self.data.network()

    def of(self, edit: Edit, kind: str, split: str = TESTED) -> Uploads:
        """Return the uploads of an edit and a kind."""
        return Uploads(edit, self.sources(kind, split), self)

    @functools.lru_cache(maxsize=64)  # noqa: B019 (an upload set lives as long as its process)
    def sources(self, kind: str, split: str) -> Sources:
        """Return the pictures of a kind and a split: of each photo that all models have translated, one."""
        chosen = [origin for origin in self._translated if split_of(origin) == split]
        by_origin = self._by_origin(TEST, kind)
        rows = [by_origin[origin] for origin in chosen]
        reference_rows = {image_id: row for row, image_id in enumerate(self._test_ids)}
        return Sources(
            _name(TEST, kind),
            [uri for _, uri in rows],
            [image_id for image_id, _ in rows],
            np.array([reference_rows[origin] for origin in chosen], np.int64),
            np.arange(len(chosen)),
        )

    def calibration(self, *, edited: bool) -> list[Uploads]:
        """Return uploads without origin to set thresholds by: one of each calibration photo.

        A photo is a copy or a translation by one of the models, in turn where it has all of them.

        Args:
            edited: whether each photo has the next of all edits; else all are untouched.
        """
        if not self.data.has(CALIBRATION):
            return []
        by_kind = {kind: self._by_origin(CALIBRATION, kind) for kind in self.kinds if self._has(kind)}
        edits = self.edits if edited else self.edits[:1]
        parts: dict[tuple[int, str], list[tuple[int, str, str]]] = {}
        counts = dict.fromkeys(reversed(by_kind), 0)
        for number, origin in enumerate(sorted(by_kind[COPY])):
            kind = min((k for k in counts if origin in by_kind[k]), key=counts.__getitem__)
            counts[kind] += 1
            parts.setdefault((number % len(edits), kind), []).append((number, *by_kind[kind][origin]))
        return [
            Uploads(
                edits[place],
                Sources(
                    _name(CALIBRATION, kind),
                    [uri for _, _, uri in rows],
                    [image_id for _, image_id, _ in rows],
                    np.full(len(rows), -1),
                    np.array([number for number, _, _ in rows]),
                ),
                self,
            )
            for (place, kind), rows in sorted(parts.items())
        ]

    def _has(self, kind: str) -> bool:
        return kind == COPY or self.data.has(_name(CALIBRATION, kind))

    @functools.cached_property
    def _test_ids(self) -> list[str]:
        return self.data.read(TEST)[1]

    @functools.cached_property
    def _translated(self) -> list[str]:
        """Return the image_ids of test photos that all models have translated, sorted."""
        origins = [set(self._by_origin(TEST, kind)) for kind in self.kinds]
        return sorted(set.intersection(*origins))

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def _by_origin(self, role: str, kind: str) -> dict[str, tuple[str, str]]:
        """Return image_id of a photo → image_id and URI of its picture of a kind, the first by id."""
        name = _name(role, kind)
        _, ids = self.data.read(name)
        origins = ids if kind == COPY else self.data.origins(name, ids).to_pylist()
        rows = sorted(zip(origins, ids, self.data.uris(name), strict=True), reverse=True)
        return {origin: (image_id, uri) for origin, image_id, uri in rows}

    def files(self, edit: Edit, sources: Sources) -> Iterator[bytes]:
        """Make the files of uploads, one by one."""
        for uri, image_id in zip(sources.uris, sources.image_ids, strict=True):
            yield self._file(edit, uri, image_id)

    def _file(self, edit: Edit, uri: str, image_id: str) -> bytes:
        draw = edit.generator(image_id, "partner")
        picture = _opened(uri)
        partner = _opened(self.partners[draw.integers(len(self.partners))]) if self.partners else picture
        return edit.upload(picture, image_id, partner)

    def latents(
        self, edit: Edit, sources: Sources, view: PixelView = WHOLE
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the latents of uploads float16[Q,n], and whether the view shows anything, bool[Q].

        What is not kept is made, encoded, and kept.
        """
        key = (f"{view.name}-v{view.version}", f"{edit.name}-v{edit.version}", sources.name)
        if key not in self._kept:
            self._kept[key] = self._read(key)
        kept = self._kept[key]
        rows = [i for i, image_id in enumerate(sources.image_ids) if image_id not in kept]
        if rows:
            kept.update(self._encode(edit, sources.take(rows), view))
            self._write(key, kept)
        nothing = np.zeros(self.latent_size, np.float16)
        found = [kept[image_id] for image_id in sources.image_ids]
        return (
            np.stack([nothing if latent is None else latent for latent in found]),
            np.array([latent is not None for latent in found]),
        )

    def boxes(self, edit: Edit, sources: Sources, finder: Finder) -> list[list[Box]]:
        """Return where each of Q uploads shows other pictures. What is not kept is looked for, and kept."""
        path = self._path((f"{finder.name}-v{finder.version}", f"{edit.name}-v{edit.version}", sources.name))
        kept: dict[str, list[list[float]]] = {}
        if path.exists():
            table = pq.read_table(path)
            kept = dict(zip(table["image_id"].to_pylist(), table["boxes"].to_pylist(), strict=True))
        rows = [i for i, image_id in enumerate(sources.image_ids) if image_id not in kept]
        if rows:
            new = sources.take(rows)
            side = self._encoder().preprocess.size
            for image_id, data in zip(new.image_ids, self.files(edit, new), strict=True):
                kept[image_id] = [list(astuple(box)) for box in finder.look(data, side)]
            boxes = pa.array(list(kept.values()), pa.list_(pa.list_(pa.float32())))
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.replacing(str(path)) as part:
                pq.write_table(pa.table({"image_id": list(kept), "boxes": boxes}), part)
        return [[Box(*sides) for sides in kept[image_id]] for image_id in sources.image_ids]

    def _path(self, key: Iterable[str]) -> Path:
        view, edit, name = key
        return self.data.root / FOLDER / self.ids["encoder_id"] / view / edit / f"{name}.parquet"

    def _read(self, key: tuple[str, ...]) -> dict[str, NDArray[np.float16] | None]:
        path = self._path(key)
        if not path.exists():
            return {}
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(_PREPROCESS) != self.ids["preprocess_id"].encode():
            return {}
        latents = schemas.column_to_vectors(table["latent"])
        seen = table["seen"].to_pylist()
        ids = table["image_id"].to_pylist()
        return {i: row if shown else None for i, row, shown in zip(ids, latents, seen, strict=True)}

    def _write(self, key: tuple[str, ...], kept: dict[str, NDArray[np.float16] | None]) -> None:
        size = self.latent_size
        latents = np.stack([np.zeros(size, np.float16) if x is None else x for x in kept.values()])
        table = pa.table(
            {
                "image_id": list(kept),
                "seen": [x is not None for x in kept.values()],
                "latent": schemas.vectors_to_array(latents, size),
            }
        ).replace_schema_metadata({_PREPROCESS: self.ids["preprocess_id"].encode()})
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.replacing(str(path)) as part, schemas.parquet_writer(part, table.schema) as writer:
            writer.write_table(table)

    def _encoder(self) -> Encoder:
        if self.network is None:
            raise ExperimentError(f"{self.missing()}: uploads cannot be encoded")
        return self.network

    def _encode(
        self, edit: Edit, sources: Sources, view: PixelView
    ) -> Iterator[tuple[str, NDArray[np.float16] | None]]:
        network = self._encoder()
        side = network.preprocess.size

        def look(i: int) -> NDArray[np.uint8] | None:
            return view.look(self._file(edit, sources.uris[i], sources.image_ids[i]), side)

        count = len(sources.uris)
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, count, _ENCODED_AT_ONCE):
                rows = range(start, min(start + _ENCODED_AT_ONCE, count))
                pixels = list(pool.map(look, rows))
                shown = [p for p in pixels if p is not None]
                latents: Iterator[NDArray[np.float16]] = iter(
                    network.encode(np.stack(shown)) if shown else []
                )
                for i, p in zip(rows, pixels, strict=True):
                    yield sources.image_ids[i], None if p is None else next(latents)
                self.progress(f"{STAGE}, {edit.name}, {sources.name}", rows.stop, count)


def split_of(image_id: str) -> str:
    """Return the split of a test photo, by its image_id: half of them each, the same on every machine."""
    odd = hashlib.sha256(f"uploads {image_id}".encode()).digest()[0] % 2
    return TESTED if odd else VALIDATION


def _name(role: str, kind: str) -> str:
    return role if kind == COPY else f"{role}-{kind}"


def _opened(uri: str) -> Image.Image:
    with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
        return image.convert("RGB")
