"""From pictures to rows of `embeddings/`: decoding in threads beside the encoder, memory flat."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import defaults
from id2core.encoders import images, views
from id2core.encoders.images import Inset, Limits
from id2core.encoders.information import BLANK
from id2core.encoders.pictures import Picture, read_picture, reading_threads
from id2core.runs import parts, takedowns
from id2core.runs.parts import Lineage, OnBatch, Product
from id2core.runs.units import Record
from id2core.store import schemas
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

if TYPE_CHECKING:
    import torch

    from id2core.encoders.base import Encoder  # imports torch

EMBEDDINGS = "embeddings"
PRODUCT = Product(EMBEDDINGS)


class _Products:
    """Products with matrices beside an encoder: on its GPU where it has one, so that decoders have the cores.

    OpenBLAS's idle threads spin for a while after each call and take the cores from the threads that decode:
    with an H100 and 16 cores a stream of pictures ran at a third of its speed. Both give the same bits, as
    `Transform.apply` rounds nowhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._matrix: torch.Tensor | None = None

    def __call__(self, x: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return x · matrix, which is the same matrix in each call."""
        if self._device.type != "cuda":
            return np.asarray(x @ matrix)
        import torch

        if self._matrix is None:
            self._matrix = torch.from_numpy(matrix).to(self._device)
        product: NDArray[np.float64] = (torch.from_numpy(x).to(self._device) @ self._matrix).cpu().numpy()
        return product


@dataclass(frozen=True)
class _Batch:
    """Pictures with their numbers.

    Attributes:
        pictures: those that have a row, B.
        columns: names of columns of numbers → their values, [B,size].
        counts: how many insets each picture has; None where nobody looked.
        facts: of the insets, as `schemas.inset_columns` takes them.
        insets: their latents, float16[I,n].
    """

    pictures: list[Picture]
    columns: dict[str, NDArray[Any]]
    counts: list[int] | None
    facts: list[dict[str, Any]]
    insets: NDArray[np.float16]


class _Maker:
    """Makes the numbers of rows, by an encoder and a transform."""

    def __init__(self, encoder: Encoder, transform: Transform, *, look: bool) -> None:
        self._encoder, self._transform, self._look = encoder, transform, look
        self._by_w, self._by_crops = _Products(encoder.device), _Products(encoder.device)

    def __call__(self, pictures: list[Picture]) -> tuple[_Batch, list[tuple[Object, Reject]]]:
        """Return the rows of a batch; a picture whose latent overflows is a reject.

        Pictures and their insets are encoded together. An inset whose latent overflows is left out.
        """
        parts = [list((picture.insets or {}).items()) for picture in pictures]
        looks = [p.decoded.pixels for p in pictures] + [inset.pixels for own in parts for _, inset in own]
        latents = self._encoder.encode(np.stack(looks))
        finite = np.asarray(np.isfinite(latents).all(axis=1))
        is_good = finite[: len(pictures)]
        owners = np.repeat(np.arange(len(pictures)), [len(own) for own in parts])
        kept = np.flatnonzero(finite[len(pictures) :] & is_good[owners])
        named = [one for own in parts for one in own]
        batch = _Batch(
            [p for p, ok in zip(pictures, is_good, strict=True) if ok],
            self._columns(latents[: len(pictures)][is_good]),
            np.bincount(owners[kept], minlength=len(pictures))[is_good].tolist() if self._look else None,
            [_inset_facts(*named[i]) for i in kept],
            latents[len(pictures) :][kept],
        )
        reject = Reject(Reason.NOT_ENCODABLE, f"the latent is not finite in {self._encoder.dtype}")
        return batch, [(p.obj, reject) for p, ok in zip(pictures, is_good, strict=True) if not ok]

    def _columns(self, latents: NDArray[np.float16]) -> dict[str, NDArray[Any]]:
        descriptors = self._transform.apply(latents, self._by_w)
        columns: dict[str, NDArray[Any]] = {"latent": latents, "descriptor": descriptors}
        if self._rows:
            columns["crops"], columns["detail"] = self._rows(latents, self._by_crops)
        return columns

    @functools.cached_property
    def _rows(self) -> ReferenceRows | None:
        return ReferenceRows.of(self._transform, self._encoder.latent_size) if self._look else None


def _facts(picture: Picture) -> dict[str, Any]:
    """The columns of a row that describe the file."""
    obj, decoded, said = picture.obj, picture.decoded, picture.credentials
    return {
        "image_id": picture.image_id,
        "uri": obj.uri,
        "generation": obj.generation,
        "bytes": obj.bytes,
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
        "information": picture.information,
        "c2pa_state": said and said.state,
        "generator": said and said.generator,
        "digital_source_type": said and said.digital_source_type,
    }


def _inset_facts(name: str, inset: Inset) -> dict[str, Any]:
    """What columns say of an inset besides its latent."""
    return {"view": name, **asdict(inset.box), "information": inset.information}


class _RowGroup:
    """Rows of one row group. Their numbers go into blocks that are allocated once.

    Kept batch by batch instead, they would lie between the encoder's large temporaries and the heap
    would grow by 1.5 MB an image. There is room for as many insets as rows: a group of more is a smaller one.
    """

    def __init__(self, step: int, lineage: Lineage) -> None:
        self._step, self._lineage = step, lineage
        self._rows: list[dict[str, Any]] = []
        self._counts: list[int] = []
        self._facts: list[dict[str, Any]] = []
        self._most = 0
        self._columns: dict[str, NDArray[Any]] = {}
        self._insets = np.empty((0, 0), np.float16)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        """Whether a row group has no room for the rows and insets of a batch more."""
        return bool(self._rows) and max(len(self._rows), len(self._facts)) + self._step > self._most

    def add(self, batch: _Batch) -> None:
        if not batch.pictures:
            return
        if not self._rows:
            self._allocate(batch)
        for name, values in batch.columns.items():
            self._columns[name][len(self._rows) : len(self._rows) + len(values)] = values
        self._insets[len(self._facts) : len(self._facts) + len(batch.insets)] = batch.insets
        self._rows += [_facts(picture) for picture in batch.pictures]
        self._facts += batch.facts
        self._counts += batch.counts or ()

    def _allocate(self, batch: _Batch) -> None:
        self._most = max(schemas.row_group_of(_schema(batch.columns)), self._step)
        self._columns = {
            name: np.empty((self._most, values.shape[1]), values.dtype)
            for name, values in batch.columns.items()
        }
        self._insets = np.empty((self._most, batch.insets.shape[1]), np.float16)

    def take(self) -> pa.RecordBatch:
        """Return all rows so far, and empty the group."""
        rows, counts, facts = self._rows, self._counts, self._facts
        self._rows, self._counts, self._facts = [], [], []
        numbers = {name: values[: len(rows)] for name, values in self._columns.items()}
        columns: dict[str, Any] = {
            **{name: [row[name] for row in rows] for name in rows[0]},
            **{name: _array(values) for name, values in numbers.items()},
            **{k: [v] * len(rows) for k, v in self._lineage.ids.items()},
            "run_id": [self._lineage.run_id] * len(rows),
            "embedded_at": [self._lineage.started] * len(rows),
        }
        if counts:
            columns |= schemas.inset_columns(counts, facts, self._insets[: len(facts)])
            columns["finder"] = [views.FINDER] * len(rows)
        schema = _schema(numbers)
        nulls = {f.name: pa.nulls(len(rows), f.type) for f in schema if f.name not in columns}
        return pa.RecordBatch.from_pydict(columns | nulls, schema=schema)


def _array(values: NDArray[Any]) -> pa.Array:
    """Return a column of numbers: vectors of floats, or byte strings."""
    if values.itemsize == 1:
        return schemas.octets_to_array(values)
    return schemas.vectors_to_array(values, values.shape[1])


def _schema(columns: Mapping[str, NDArray[Any]]) -> pa.Schema:
    return schemas.embeddings_schema(columns["latent"].shape[1], columns["descriptor"].shape[1])


def embed_objects(
    objects: Sequence[Object],
    encoder: Encoder,
    transform: Transform,
    lineage: Lineage,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: OnBatch = lambda embedded, rejected: None,
    seconds: float = defaults.RECORD_SECONDS,
    refused: Collection[str] = frozenset(),
    trust: str | None = None,
    views: str = defaults.AUTO,
) -> parts.Stream:
    """Embed objects in a stream: decoding runs in threads beside the encoder, memory stays flat.

    Args:
        objects: what to embed; each ends in one embeddings row or one reject.
        encoder: its `batch_size` sets how many pictures are encoded at once.
        transform: W or the identity.
        lineage: ids and times for the rows.
        limits: of file size and pixels.
        progress: called after each batch with how many objects it embedded and rejected.
        seconds: rows are yielded after so long, however few.
        refused: image_id of pictures that were taken down; each ends in a reject.
        trust: certificates in PEM, to read Content Credentials by; None not to look for any.
        views: `auto` to look for pictures inside of pictures, and to keep crops and detail; or `none`.

    Yields:
        About the rows of a row group, or what was made in `seconds`, of `schemas.embeddings_schema` (None
        where all were rejected), and the rows of `schemas.REJECTS` since the last yield.
    """
    step = encoder.batch_size
    group = _RowGroup(step, lineage)
    rejected: list[dict[str, str]] = []
    look = views != defaults.NONE
    make = _Maker(encoder, transform, look=look)
    since = time.monotonic()

    def fetch(obj: Object) -> Picture | Reject:
        picture = read_picture(obj, encoder.preprocess.size, limits, trust, look=look)
        if isinstance(picture, Reject):
            return picture
        if picture.image_id in refused:
            return takedowns.REFUSED
        return _measured(picture, encoder)

    fetched = parts.read_ahead(objects, fetch, 4 * step, reading_threads(objects))
    for pictures, bad in parts.batches(fetched, step, lambda picture: picture.looks):
        made = 0
        if pictures:
            batch, overflowed = make(pictures)
            group.add(batch)
            made = len(batch.pictures)
            bad += overflowed
        rejected += [parts.reject_row(obj, reject, lineage.run_id) for obj, reject in bad]
        progress(made, len(bad))
        if group.is_full or time.monotonic() - since >= seconds:
            yield (group.take() if len(group) else None), rejected
            rejected, since = [], time.monotonic()
    if len(group) or rejected:
        yield (group.take() if len(group) else None), rejected


def _measured(picture: Picture, encoder: Encoder) -> Picture:
    """Return a picture with how much it shows, and without blank insets, which would match each other."""
    measured = {
        name: replace(inset, information=encoder.information(inset.pixels))
        for name, inset in (picture.insets or {}).items()
    }
    shown = {name: one for name, one in measured.items() if (one.information or 0) >= BLANK}
    insets = None if picture.insets is None else shown
    return replace(picture, information=encoder.information(picture.decoded.pixels), insets=insets)


def embed_part(
    out: str,
    objects: list[Object],
    encoder: Encoder,
    transform: Transform,
    lineage: Lineage,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: OnBatch = lambda embedded, rejected: None,
    seconds: float = defaults.RECORD_SECONDS,
    refused: Collection[str] = frozenset(),
    trust: str | None = None,
    views: str = defaults.AUTO,
) -> list[Record]:
    """Embed one part into `out`: its two files, then its record, and again after some seconds.

    What an earlier attempt of the run has recorded is left. A second call gives the same rows.
    """
    left = parts.remaining(out, objects, lineage)
    stream = embed_objects(
        left, encoder, transform, lineage, limits, progress, seconds, refused, trust, views
    )
    return parts.write(out, PRODUCT, left, lineage, stream, seconds)
