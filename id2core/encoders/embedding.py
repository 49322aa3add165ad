"""From pictures to rows of `embeddings/`: decoding in threads beside the encoder, memory flat."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import defaults
from id2core.encoders import images
from id2core.encoders.images import Limits
from id2core.encoders.pictures import Picture, read_picture, reading_threads
from id2core.runs import parts, takedowns
from id2core.runs.parts import Lineage, OnBatch, Product
from id2core.runs.units import Record
from id2core.store import schemas
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
from id2core.transforms.linear import Transform

if TYPE_CHECKING:
    import torch

    from id2core.encoders.base import Encoder  # imports torch

EMBEDDINGS = "embeddings"
PRODUCT = Product(EMBEDDINGS)


class _Projection:
    """W beside an encoder: on its GPU where it has one, so that the cores are left to the decoders.

    OpenBLAS's idle threads spin for a while after each call and take the cores from the threads that decode:
    with an H100 and 16 cores a stream of pictures ran at a third of its speed. Both give the same bits, as
    `Transform.apply` rounds nowhere.
    """

    def __init__(self, transform: Transform, encoder: Encoder) -> None:
        self._transform, self._device = transform, encoder.device
        self._weights: torch.Tensor | None = None

    def __call__(self, latents: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return the descriptors of latents."""
        if self._device.type != "cuda":
            return self._transform.apply(latents)
        return self._transform.apply(latents, self._on_gpu)

    def _on_gpu(self, x: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        import torch

        if self._weights is None:
            self._weights = torch.from_numpy(weights).to(self._device)
        product: NDArray[np.float64] = (torch.from_numpy(x).to(self._device) @ self._weights).cpu().numpy()
        return product


def _encode(
    pictures: list[Picture], encoder: Encoder
) -> tuple[list[Picture], NDArray[np.float16], list[tuple[Object, Reject]]]:
    """Latents of a batch; a picture whose latent overflows is a reject."""
    latents = encoder.encode(np.stack([p.decoded.pixels for p in pictures]))
    finite = np.asarray(np.isfinite(latents).all(axis=1))
    if finite.all():
        return pictures, latents, []
    reject = Reject(Reason.NOT_ENCODABLE, f"the latent is not finite in {encoder.dtype}")
    bad = [(p.obj, reject) for p, ok in zip(pictures, finite, strict=True) if not ok]
    return [p for p, ok in zip(pictures, finite, strict=True) if ok], latents[finite], bad


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


class _RowGroup:
    """Rows of one row group. Their numbers go into two blocks that are allocated once.

    Kept batch by batch instead, they would lie between the encoder's large temporaries and the heap
    would grow by 1.5 MB an image.
    """

    def __init__(self, step: int, lineage: Lineage) -> None:
        self._step, self._lineage = step, lineage
        self._rows: list[dict[str, Any]] = []
        self._most = 0
        self._latents = np.empty((0, 0), np.float16)
        self._descriptors = np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        """Whether a row group has no room for `step` rows more."""
        return bool(self._rows) and len(self._rows) + self._step > self._most

    def add(
        self, rows: list[Picture], latents: NDArray[np.float16], descriptors: NDArray[np.float32]
    ) -> None:
        if not self._rows:
            self._most = max(schemas.row_group_of(_schema(latents, descriptors)), self._step)
            self._latents = np.empty((self._most, latents.shape[1]), np.float16)
            self._descriptors = np.empty((self._most, descriptors.shape[1]), np.float32)
        added = slice(len(self._rows), len(self._rows) + len(rows))
        self._latents[added], self._descriptors[added] = latents, descriptors
        self._rows += [_facts(picture) for picture in rows]

    def take(self) -> pa.RecordBatch:
        """Return all rows so far, and empty the group."""
        rows, self._rows = self._rows, []
        latents, descriptors = self._latents[: len(rows)], self._descriptors[: len(rows)]
        columns: dict[str, Any] = {
            **{name: [row[name] for row in rows] for name in rows[0]},
            "latent": schemas.vectors_to_array(latents, latents.shape[1]),
            "descriptor": schemas.vectors_to_array(descriptors, descriptors.shape[1]),
            **{k: [v] * len(rows) for k, v in self._lineage.ids.items()},
            "run_id": [self._lineage.run_id] * len(rows),
            "embedded_at": [self._lineage.started] * len(rows),
            **{name: [None] * len(rows) for name, _ in schemas.VIEWS},
        }
        return pa.RecordBatch.from_pydict(columns, schema=_schema(latents, descriptors))


def _schema(latents: NDArray[np.float16], descriptors: NDArray[np.float32]) -> pa.Schema:
    return schemas.embeddings_schema(latents.shape[1], descriptors.shape[1])


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

    Yields:
        About the rows of a row group, or what was made in `seconds`, of `schemas.embeddings_schema` (None
        where all were rejected), and the rows of `schemas.REJECTS` since the last yield.
    """
    step = encoder.batch_size
    group = _RowGroup(step, lineage)
    rejected: list[dict[str, str]] = []
    project = _Projection(transform, encoder)
    since = time.monotonic()

    def fetch(obj: Object) -> Picture | Reject:
        picture = read_picture(obj, encoder.preprocess.size, limits, trust)
        if isinstance(picture, Reject):
            return picture
        if picture.image_id in refused:
            return takedowns.REFUSED
        return replace(picture, information=encoder.information(picture.decoded.pixels))

    fetched = parts.read_ahead(objects, fetch, 4 * step, reading_threads(objects))
    for pictures, bad in parts.batches(fetched, step):
        good: list[Picture] = []
        if pictures:
            good, latents, overflowed = _encode(pictures, encoder)
            group.add(good, latents, project(latents))
            bad += overflowed
        rejected += [parts.reject_row(obj, reject, lineage.run_id) for obj, reject in bad]
        progress(len(good), len(bad))
        if group.is_full or time.monotonic() - since >= seconds:
            yield (group.take() if len(group) else None), rejected
            rejected, since = [], time.monotonic()
    if len(group) or rejected:
        yield (group.take() if len(group) else None), rejected


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
) -> list[Record]:
    """Embed one part into `out`: its two files, then its record, and again after some seconds.

    What an earlier attempt of the run has recorded is left. A second call gives the same rows.
    """
    left = parts.remaining(out, objects, lineage)
    stream = embed_objects(left, encoder, transform, lineage, limits, progress, seconds, refused, trust)
    return parts.write(out, PRODUCT, left, lineage, stream, seconds)
