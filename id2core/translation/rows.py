"""From pictures and prompts to translated pictures and rows of `translations/`: SDEdit and its kin.

A picture depends on its origin's bytes, its prompt, its number, the model and the config alone: its seed is
a hash, and a batch has one fixed shape. So any subset, translated again on the same kind of machine, gives
the same bytes under the same names.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from id2core import defaults
from id2core.encoders import images
from id2core.encoders.images import Limits
from id2core.encoders.pictures import Picture, decode_picture, holding
from id2core.errors import TranslatorError
from id2core.runs import parts, takedowns
from id2core.runs.listing import PICTURES
from id2core.runs.parts import Lineage, OnBatch, Product
from id2core.runs.units import Record
from id2core.store import datasets, schemas, storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
from id2core.translation.config import Format, TranslationConfig
from id2core.translation.prompts import PromptSource

if TYPE_CHECKING:
    from id2core.translation.translators import Translator

TRANSLATIONS = "translations"
# A row of `schemas.TRANSLATIONS`, by column.
_Row = dict[str, Any]
# So many pictures in a row, of different origins, that overflow or have one color stop a run.
MOST_FAILURES = 8
SAVE: dict[Format, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    "png": {"format": "PNG"},
}


def product(config: TranslationConfig) -> Product:
    """Return what a run makes of each origin."""
    return Product(TRANSLATIONS, ("origin_uri", "origin_generation"), config.per_image)


def seed_of(config: TranslationConfig, image_id: str, number: int) -> int:
    """Return the seed of one translation: 63 bits of a hash."""
    return int(datasets.digest_of(config.seed, image_id, number), 16) >> 1


def lineage_ids(config: TranslationConfig, translator: Translator, source: PromptSource) -> dict[str, str]:
    """Return the ids that must agree within a data set of translations."""
    model = translator.model
    settings = model.model_dump(exclude={"name", "source", "revision"})
    return {
        "model": model.name,
        "revision": translator.revision,
        "recipe_id": datasets.digest_of(config.model_dump(), settings, source.place),
    }


@dataclass(frozen=True)
class _Task:
    """One translation to make."""

    origin: Picture
    number: int
    prompt: str
    seed: int


def _tasks(
    origin: Picture,
    data: bytes,
    source: PromptSource,
    config: TranslationConfig,
    refused: Collection[str],
) -> list[_Task] | Reject:
    if origin.image_id in refused:
        return takedowns.REFUSED
    prompts = source.prompts_for(origin.image_id, origin.obj.uri, data, config.per_image)
    if isinstance(prompts, Reject):
        return prompts
    return [
        _Task(origin, number, prompts[number % len(prompts)], seed_of(config, origin.image_id, number))
        for number in range(config.per_image)
    ]


def _flat(
    fetched: Iterable[tuple[Object, list[_Task] | Reject]],
) -> Iterator[tuple[Object, _Task | Reject]]:
    for obj, result in fetched:
        yield from [(obj, result)] if isinstance(result, Reject) else [(obj, task) for task in result]


@dataclass(frozen=True)
class _Writer:
    """Writes pictures below OUT/pictures and makes their rows."""

    out: str
    translator: Translator
    config: TranslationConfig
    lineage: Lineage
    refused: Collection[str]

    def write(self, made: tuple[_Task, Image.Image | None]) -> _Row | Reject:
        """Store one picture; its row of `schemas.TRANSLATIONS`."""
        task, picture = made
        if picture is None:
            return Reject(Reason.NOT_TRANSLATABLE, f"translation {task.number} overflowed")
        if picture.getcolors(maxcolors=1):
            return Reject(Reason.NOT_TRANSLATABLE, f"translation {task.number} has one color only")
        buffer = io.BytesIO()
        picture.save(buffer, **SAVE[self.config.format])
        if hashlib.sha256(buffer.getvalue()).hexdigest() in self.refused:
            return takedowns.REFUSED
        uri = self._uri(task)
        storage.write_bytes(uri, buffer.getvalue())
        return self._row(task, uri, buffer.getvalue(), picture.size)

    def _uri(self, task: _Task) -> str:
        """Return a place for this picture alone: repeated work overwrites a file with the same bytes."""
        image_id = task.origin.image_id
        made_by = datasets.digest_of(task.origin.obj.uri, task.prompt, sorted(self.lineage.ids.items()))
        name = f"{image_id}-{task.number}-{made_by[:8]}.{self.config.format}"
        return storage.join(self.out, PICTURES, image_id[:2], name)

    def _row(self, task: _Task, uri: str, data: bytes, size: tuple[int, int]) -> _Row:
        model, origin = self.translator.model, task.origin
        return {
            "image_id": hashlib.sha256(data).hexdigest(),
            "uri": uri,
            "bytes": len(data),
            "width": size[0],
            "height": size[1],
            "origin_id": origin.image_id,
            "origin_uri": origin.obj.uri,
            "origin_generation": origin.obj.generation,
            "number": task.number,
            "prompt": task.prompt,
            "paradigm": model.paradigm,
            "strength": model.strength,
            "guidance": model.guidance,
            "steps": model.steps,
            "seed": task.seed,
            "dtype": str(self.translator.pipeline.dtype).removeprefix("torch."),
            **self.lineage.ids,
            "run_id": self.lineage.run_id,
            "translated_at": self.lineage.started,
        }


def _make(
    batch: list[_Task], translator: Translator, writer: _Writer, pool: ThreadPoolExecutor
) -> list[_Row | Reject]:
    """Translate and store a batch; a row or a reject for each."""
    pictures = translator.attempt(
        [Image.fromarray(task.origin.decoded.pixels) for task in batch],
        [task.prompt for task in batch],
        [task.seed for task in batch],
    )
    return list(pool.map(writer.write, zip(batch, pictures, strict=True)))


def translate_objects(
    objects: Iterable[Object],
    translator: Translator,
    source: PromptSource,
    config: TranslationConfig,
    lineage: Lineage,
    out: str,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: OnBatch = lambda made, rejected: None,
    seconds: float = defaults.RECORD_SECONDS,
    refused: Collection[str] = frozenset(),
) -> parts.Stream:
    """Translate objects in a stream: reading, decoding and asking for prompts run in threads ahead of it.

    Args:
        objects: the origins; each becomes `config.per_image` rows and files, or one reject.
        translator: the diffusion model.
        source: of the prompts.
        config: translations per origin, seed, file format.
        lineage: ids and times for the rows.
        out: pictures go to `pictures/` below it.
        limits: of file size and pixels.
        progress: called with how many origins were translated and how many rejected since the last call.
        seconds: rows are yielded after so long, however few.
        refused: image_id of pictures that were taken down, as originals or as translations.

    Yields:
        Rows of `schemas.TRANSLATIONS` (None where all were rejected) and of `schemas.REJECTS`.

    Raises:
        TranslatorError: the model fails on one picture after another.
        PromptError: there will be prompts for no image at all.
    """

    def fetch(obj: Object) -> list[_Task] | Reject:
        with holding(obj, limits):
            data = storage.read_object(obj, limits.max_bytes)
            if isinstance(data, Reject):
                return data
            picture = decode_picture(obj, data, translator.model.size, limits)
            return picture if isinstance(picture, Reject) else _tasks(picture, data, source, config, refused)

    step = translator.batch_size
    writer = _Writer(out, translator, config, lineage, refused)
    buffer = _OriginBuffer(translator.model.name, config.per_image, lineage.run_id)
    threads = max(parts.READ_THREADS, source.concurrency)
    since = time.monotonic()
    with ThreadPoolExecutor(parts.READ_THREADS) as pool:
        tasks = _flat(parts.read_ahead(objects, fetch, max(2 * step, threads), threads))
        for batch, bad in parts.batches(tasks, step):
            for obj, reject in bad:
                buffer.reject(obj, reject)
            results = _make(batch, translator, writer, pool) if batch else []
            for task, result in zip(batch, results, strict=True):
                buffer.add(task.origin.obj, task.number, result)
            progress(*buffer.counted())
            late = time.monotonic() - since >= seconds
            if (buffer.rows or buffer.rejected) and (late or len(buffer.rows) >= schemas.ROW_GROUP):
                yield buffer.take()
                since = time.monotonic()
    if buffer.rows or buffer.rejected:
        yield buffer.take()


class _OriginBuffer:
    """Collects rows of whole origins: an origin with a failed translation is a reject, without any row."""

    def __init__(self, model: str, per_image: int, run_id: str) -> None:
        self._model, self._per_image, self._run_id = model, per_image, run_id
        self.rows: list[_Row] = []
        self.rejected: list[dict[str, str]] = []
        self._open: list[_Row] = []
        self._failed: Reject | None = None
        self._in_a_row: list[str] = []
        self._counts = [0, 0]

    def reject(self, obj: Object, reject: Reject) -> None:
        self.rejected.append(parts.reject_row(obj, reject, self._run_id))
        self._counts[1] += 1

    def add(self, obj: Object, number: int, result: _Row | Reject) -> None:
        """Add a result; results come in order, and an origin's last number completes it."""
        if isinstance(result, Reject):
            self._failed = self._failed or result
            self._check_some_work(obj.uri)
        else:
            self._open.append(result)
            self._in_a_row.clear()
        if number < self._per_image - 1:
            return
        if self._failed:
            for row in self._open:
                storage.delete(row["uri"])
            self.reject(obj, self._failed)
        else:
            self.rows += self._open
            self._counts[0] += 1
        self._open, self._failed = [], None

    def _check_some_work(self, uri: str) -> None:
        """Raise TranslatorError where one picture after another fails, of several origins."""
        self._in_a_row.append(uri)
        if len(self._in_a_row) >= MOST_FAILURES and len(set(self._in_a_row)) > 1:
            raise TranslatorError(
                f"{self._model} failed on {len(self._in_a_row)} pictures in a row: its numbers overflow in "
                "this precision, or its weights are broken; set ID2_DTYPE=float32 or bfloat16"
            )

    def counted(self) -> tuple[int, int]:
        """Return how many origins were finished and rejected since the last call."""
        made, rejected = self._counts
        self._counts = [0, 0]
        return made, rejected

    def take(self) -> tuple[pa.RecordBatch | None, list[dict[str, str]]]:
        """Return what was collected, and empty the buffer."""
        batch = pa.RecordBatch.from_pylist(self.rows, schemas.TRANSLATIONS) if self.rows else None
        rejected = self.rejected
        self.rows, self.rejected = [], []
        return batch, rejected


def translate_part(
    out: str,
    objects: list[Object],
    translator: Translator,
    source: PromptSource,
    config: TranslationConfig,
    lineage: Lineage,
    limits: Limits = images.DEFAULT_LIMITS,
    progress: OnBatch = lambda made, rejected: None,
    seconds: float = defaults.RECORD_SECONDS,
    refused: Collection[str] = frozenset(),
) -> list[Record]:
    """Translate one part into `out`: pictures, then its two Parquet files, then its record.

    A slow part does so again after some seconds. What an earlier attempt of the run has recorded is left.
    """
    left = parts.remaining(out, objects, lineage)
    stream = translate_objects(
        left, translator, source, config, lineage, out, limits, progress, seconds, refused
    )
    return parts.write(out, product(config), left, lineage, stream, seconds)
