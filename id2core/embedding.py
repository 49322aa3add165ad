"""One part of an embed run: from some thousand objects to rows of `embeddings/` and `rejects/`.

A finished part leaves its Parquet files and, last, a record in `_staging/`. `planning` cuts a run into
parts, skips finished ones when it is started again, and commits.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core import datasets, images, storage, tables
from id2core.datasets import FileRecord
from id2core.encoders import Encoder, EncoderError
from id2core.images import Decoded, Limits
from id2core.rejects import Reason, Reject
from id2core.storage import Object
from id2core.transform import Transform

EMBEDDINGS, REJECTS = "embeddings", "rejects"
STAGING, PARTS = "_staging", "parts"
DECODE_THREADS = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Lineage:
    """What every row of a part says of how it was made."""

    encoder_id: str
    transform_id: str
    preprocess_id: str
    run_id: str
    embedded_at: datetime

    @property
    def ids(self) -> dict[str, str]:
        """The ids that must agree within a data set."""
        return {k: getattr(self, k) for k in tables.IDS}


@dataclass(frozen=True)
class PartRecord:
    """What a finished part left behind."""

    key: str
    run_id: str
    ids: dict[str, str]
    embeddings: FileRecord | None
    rejects: FileRecord | None

    @property
    def counts(self) -> tuple[int, int]:
        """How many objects the part embedded and rejected."""
        files = (self.embeddings, self.rejects)
        return tuple(f.rows if f else 0 for f in files)  # type: ignore[return-value]

    def to_json(self) -> bytes:
        """The record as it is staged."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(data: bytes) -> PartRecord:
        """The inverse of `to_json`."""
        raw = json.loads(data)
        files = {k: FileRecord(**raw[k]) if raw[k] else None for k in (EMBEDDINGS, REJECTS)}
        return PartRecord(raw["key"], raw["run_id"], raw["ids"], **files)


@dataclass(frozen=True)
class _Picture:
    """One object, read and decoded."""

    obj: Object
    image_id: str
    decoded: Decoded


def _fetch(obj: Object, size: int, limits: Limits) -> tuple[Object, _Picture | Reject]:
    """Read, hash and decode one object: what the threads beside the encoder do."""
    data = storage.read_object(obj, limits.max_bytes)
    if isinstance(data, Reject):
        return obj, data
    decoded = images.decode(data, size, limits)
    if isinstance(decoded, Reject):
        return obj, decoded
    return obj, _Picture(obj, hashlib.sha256(data).hexdigest(), decoded)


def _in_order(
    pool: ThreadPoolExecutor, objects: Iterable[Object], size: int, limits: Limits, ahead: int
) -> Iterator[tuple[Object, _Picture | Reject]]:
    """What became of the objects, in their order, at most `ahead` of them in memory."""
    source = iter(objects)
    waiting = deque(pool.submit(_fetch, obj, size, limits) for obj in islice(source, ahead))
    while waiting:
        fetched = waiting.popleft().result()
        waiting.extend(pool.submit(_fetch, obj, size, limits) for obj in islice(source, 1))
        yield fetched


def _batches(
    fetched: Iterable[tuple[Object, _Picture | Reject]], size: int
) -> Iterator[tuple[list[_Picture], list[tuple[Object, Reject]]]]:
    """Gather `size` pictures at a time, with the rejects met on the way."""
    good: list[_Picture] = []
    bad: list[tuple[Object, Reject]] = []
    for obj, result in fetched:
        if isinstance(result, Reject):
            bad.append((obj, result))
        else:
            good.append(result)
        if len(good) == size:
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad


def _encode(
    pictures: list[_Picture], encoder: Encoder
) -> tuple[list[_Picture], NDArray[np.float16], list[tuple[Object, Reject]]]:
    """Latents of a batch; a picture whose latent overflows is a reject, a batch of them an error."""
    latents = encoder.encode(np.stack([p.decoded.pixels for p in pictures]))
    finite = np.asarray(np.isfinite(latents).all(axis=1))
    if finite.all():
        return pictures, latents, []
    if not finite.any() and len(pictures) > 1:
        raise EncoderError(
            f"{encoder.encoder_id} in {encoder.dtype} gives no finite latents; set ID2_DTYPE=float32"
        )
    reject = Reject(Reason.NOT_ENCODABLE, f"the latent is not finite in {encoder.dtype}")
    bad = [(p.obj, reject) for p, ok in zip(pictures, finite, strict=True) if not ok]
    return [p for p, ok in zip(pictures, finite, strict=True) if ok], latents[finite], bad


def _facts(picture: _Picture) -> dict[str, Any]:
    """The columns of a row that tell of the file."""
    obj, decoded = picture.obj, picture.decoded
    return {
        "image_id": picture.image_id,
        "uri": obj.uri,
        "generation": obj.generation,
        "bytes": obj.bytes,
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
    }


class _RowGroup:
    """Rows of one row group. Their numbers go into two blocks that are allocated once.

    Kept batch by batch instead, they would lie between the encoder's large temporaries and the heap
    would grow by 1.5 MB an image.
    """

    def __init__(self, capacity: int, lineage: Lineage) -> None:
        self._capacity, self._lineage = capacity, lineage
        self._rows: list[dict[str, Any]] = []
        self._latents = np.empty((0, 0), np.float16)
        self._descriptors = np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, rows: list[_Picture], latents: NDArray[np.float16], descriptors: NDArray[np.float32]
    ) -> None:
        if not self._rows:
            self._latents = np.empty((self._capacity, latents.shape[1]), np.float16)
            self._descriptors = np.empty((self._capacity, descriptors.shape[1]), np.float32)
        here = slice(len(self._rows), len(self._rows) + len(rows))
        self._latents[here], self._descriptors[here] = latents, descriptors
        self._rows += [_facts(picture) for picture in rows]

    def take(self) -> pa.RecordBatch:
        """All rows so far; the group is empty afterwards."""
        rows, self._rows = self._rows, []
        latents, descriptors = self._latents[: len(rows)], self._descriptors[: len(rows)]
        columns: dict[str, Any] = {
            **{name: [row[name] for row in rows] for name in rows[0]},
            "latent": tables.vectors_to_array(latents, latents.shape[1]),
            "descriptor": tables.vectors_to_array(descriptors, descriptors.shape[1]),
            **{k: [v] * len(rows) for k, v in self._lineage.ids.items()},
            "run_id": [self._lineage.run_id] * len(rows),
            "embedded_at": [self._lineage.embedded_at] * len(rows),
        }
        schema = tables.embeddings_schema(latents.shape[1], descriptors.shape[1])
        return pa.RecordBatch.from_pydict(columns, schema=schema)


def embed_objects(
    objects: Iterable[Object],
    encoder: Encoder,
    transform: Transform,
    lineage: Lineage,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: Progress = lambda embedded, rejected: None,
) -> Iterator[tuple[pa.RecordBatch | None, list[dict[str, str]]]]:
    """Embed objects in a stream: decoding runs in threads beside the encoder, memory stays flat.

    Args:
        objects: what to embed; each ends in one embeddings row or one reject.
        encoder: its `batch_size` sets how many pictures are encoded at once.
        transform: W or the identity.
        lineage: ids and times for the rows.
        limits: of file size and pixels.
        progress: called after each batch with how many objects it embedded and rejected.

    Yields:
        At most `tables.ROW_GROUP` rows of `tables.embeddings_schema` (None where all were rejected), and
        the rows of `tables.REJECTS` since the last yield.
    """
    step = encoder.batch_size
    group = _RowGroup(tables.ROW_GROUP + step, lineage)
    rejected: list[dict[str, str]] = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        fetched = _in_order(pool, objects, encoder.preprocess.size, limits, ahead=4 * step)
        for pictures, bad in _batches(fetched, step):
            if pictures:
                good, latents, overflowed = _encode(pictures, encoder)
                group.add(good, latents, transform.apply(latents))
                bad += overflowed
            rejected += [_reject_row(obj, reject, lineage.run_id) for obj, reject in bad]
            progress(len(pictures), len(bad))
            if len(group) >= tables.ROW_GROUP:
                yield group.take(), rejected
                rejected = []
    if len(group) or rejected:
        yield (group.take() if len(group) else None), rejected


def _reject_row(obj: Object, reject: Reject, run_id: str) -> dict[str, str]:
    return {
        "uri": obj.uri,
        "generation": obj.generation,
        "reason": str(reject.reason),
        "detail": reject.detail.encode(errors="replace").decode(),
        "run_id": run_id,
    }


def part_key(objects: list[Object], ids: dict[str, str]) -> str:
    """A name for a part: what is embedded, and with what."""
    return datasets.digest_of([(o.uri, o.generation) for o in objects], sorted(ids.items()))


def record_uri(out: str, key: str) -> str:
    """Where the record of a finished part is staged."""
    return storage.join(out, STAGING, PARTS, f"{key}.json")


def embed_part(
    out: str,
    objects: list[Object],
    encoder: Encoder,
    transform: Transform,
    lineage: Lineage,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: Progress = lambda embedded, rejected: None,
) -> PartRecord:
    """Embed one part into `out`: its two files, then its record. Repeated, it gives the same bytes."""
    key = part_key(objects, lineage.ids)
    rejected: list[dict[str, str]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch, bad in embed_objects(objects, encoder, transform, lineage, limits, progress):
            rejected.extend(bad)
            if batch is not None:
                yield batch
            del batch  # or it would stay in memory while the next row group fills

    stream = batches()
    first = next(stream, None)
    name = f"part-{key}"
    embeddings = rejects = None
    if first is not None:
        schema, row_groups = first.schema, chain([first], stream)
        del first
        embeddings = datasets.write_file(storage.join(out, EMBEDDINGS), name, row_groups, schema)
    if rejected:
        table = pa.Table.from_pylist(rejected, tables.REJECTS)
        tables.check_reasons(table)
        rejects = datasets.write_file(storage.join(out, REJECTS), name, [table], tables.REJECTS)
    record = PartRecord(key, lineage.run_id, lineage.ids, embeddings, rejects)
    storage.write_bytes(record_uri(out, key), record.to_json())
    return record
