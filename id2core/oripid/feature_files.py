"""Feature files: one latent in one `.npy` file, as OriPID's release gives its training latents.

Known from the release's code (github.com/WangWenhao0716/ID2): a folder `sd2_d_multi_feature` inside
another of the same name; names like `T000000_1.npy`; each file read with `np.load`, its last axis 4,096
numbers long, nothing else in it. The release draws `latent_dist.sample()` of Stable Diffusion 2's VAE;
this project's encoders give the posterior's mode, so the two do not belong in one data set. Other
containers (`.npz`, `.pt`, HDF5) are not part of what is known and are rejected.

Files are data: a bad one is a `Reject`, never an exception, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.encoders import embedding
from id2core.errors import OptionError
from id2core.runs import leases, parts, planning
from id2core.runs.execution import Execution
from id2core.runs.parts import Lineage
from id2core.runs.planning import Plan
from id2core.runs.progress import OnStage, silent
from id2core.store import schemas, storage
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
from id2core.transforms.linear import LATENTS_ONLY, Transform

LATENT_SIZE = 4096
STAGE = "features"
_READ_AHEAD = 256
_MOST_HEADER = 1 << 16
_MOST_AXES = 4

_Header = tuple[tuple[int, ...], bool, np.dtype[np.generic], int]


@dataclass(frozen=True)
class FeatureBlock:
    """Up to `block_size` consecutive files; each is a row or a reject.

    Attributes:
        objects: the files of the rows, in the order in which they were given.
        image_ids: SHA-256 of those files' bytes. They name the feature file: the picture is not at hand.
        latents: float16[B,n], one row per object; B may be 0.
        rejected: the other files, and why.
    """

    objects: list[Object]
    image_ids: list[str]
    latents: NDArray[np.float16]
    rejected: list[tuple[Object, Reject]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return file names without folder and ending, such as `T000000_1`."""
        return [o.uri.rsplit("/", 1)[-1].rsplit(".", 1)[0] for o in self.objects]

    def to_batch(self, transform: Transform | None, lineage: Lineage) -> pa.RecordBatch:
        """Return the rows as `schemas.embeddings_schema`; what only the picture could tell is null.

        Without a transform a descriptor is one zero: pyarrow reads no column of null vectors.
        """
        rows, n = len(self.objects), self.latents.shape[1]
        descriptors = transform.apply(self.latents) if transform else np.zeros((rows, 1), np.float32)
        m = descriptors.shape[1]
        columns = {
            "image_id": self.image_ids,
            "uri": [o.uri for o in self.objects],
            "generation": [o.generation for o in self.objects],
            "bytes": [o.bytes for o in self.objects],
            "width": [None] * rows,
            "height": [None] * rows,
            "format": ["NPY"] * rows,
            "latent": schemas.vectors_to_array(self.latents, n),
            "descriptor": schemas.vectors_to_array(descriptors, m),
            **{name: [value] * rows for name, value in lineage.ids.items()},
            "run_id": [lineage.run_id] * rows,
            "embedded_at": [lineage.started] * rows,
            "information": [None] * rows,
            **{name: [None] * rows for name, _ in (*schemas.CREDENTIALS, *schemas.VIEWS)},
        }
        return pa.RecordBatch.from_pydict(columns, schema=schemas.embeddings_schema(n, m))

    def reject_rows(self, run_id: str) -> list[dict[str, str]]:
        """Return the rejected files as rows of `schemas.REJECTS`."""
        return [parts.reject_row(obj, reject, run_id) for obj, reject in self.rejected]


@dataclass(frozen=True)
class _Feature:
    """One file, read: its latent float16[n] and the SHA-256 of its bytes."""

    image_id: str
    latent: NDArray[np.float16]


def decode(data: bytes, latent_size: int = LATENT_SIZE) -> NDArray[np.float16] | Reject:
    """Return the latent in the bytes of one `.npy` file. Never raises, never unpickles.

    Args:
        data: the whole file: floats of any width and byte order, `latent_size` of them, in any shape of
            up to 4 axes ([n], [1,n], or channels first [c,h,w], which flattens as the method does).
        latent_size: n; 4,096 in the release.

    Returns:
        float16[n], or a Reject: EMPTY, TRUNCATED, UNSUPPORTED (not an `.npy` file of floats; pickled
        objects), CORRUPT (broken header, bytes left over, infinities or NaN), NOT_ENCODABLE (another
        number of values, or values beyond float16).
    """
    header = _header(data)
    if isinstance(header, Reject):
        return header
    shape, fortran, dtype, start = header
    if dtype.kind != "f":
        return Reject(Reason.UNSUPPORTED, f"holds {dtype}; only floats are read, and nothing is unpickled")
    if len(shape) > _MOST_AXES or min(shape, default=1) < 1 or math.prod(shape) != latent_size:
        return Reject(Reason.NOT_ENCODABLE, f"shape {shape}; a latent has {latent_size} numbers"[:500])
    missing = start + latent_size * dtype.itemsize - len(data)
    if missing > 0:
        return Reject(Reason.TRUNCATED, f"{missing} bytes are missing")
    if missing < 0:
        return Reject(Reason.CORRUPT, f"{-missing} bytes after the array")
    values = np.frombuffer(data, dtype, latent_size, start)
    return _to_float16(values.reshape(shape, order="F" if fortran else "C").reshape(-1))


def _header(data: bytes) -> _Header | Reject:
    """Return shape, whether in Fortran's order, type, and the offset of the numbers."""
    if not data:
        return Reject(Reason.EMPTY)
    if not data.startswith(np.lib.format.MAGIC_PREFIX):
        return Reject(Reason.UNSUPPORTED, "not an .npy file")
    file = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the parser raises many kinds; the file keeps its row
        return Reject(Reason.CORRUPT, f"broken .npy header: {type(error).__name__}: {error}"[:500])
    return shape, fortran, dtype, file.tell()


def _to_float16(values: NDArray[np.generic]) -> NDArray[np.float16] | Reject:
    if not np.isfinite(values).all():
        return Reject(Reason.CORRUPT, "holds infinities or NaN")
    with np.errstate(over="ignore"):
        latent = values.astype(np.float16)
    if not np.isfinite(latent).all():
        return Reject(Reason.NOT_ENCODABLE, "holds numbers beyond float16's 65,504")
    return latent


def read_blocks(
    objects: Iterable[Object], latent_size: int = LATENT_SIZE, block_size: int = schemas.ROW_GROUP
) -> Iterator[FeatureBlock]:
    """Read feature files in threads, in the order given.

    Memory holds one block and 256 files read ahead (8 kB a file of 4,096 numbers), for any number of
    files. `objects` is drawn from as reading goes on, so it may be a generator; the whole
    `storage.list_objects` of the release (2.1 million files) costs about 0.4 kB a file.

    Args:
        objects: the files, local or `gs://`.
        latent_size: n. A file with another number of values, or too large to be one, is a reject.
        block_size: files in one block, good and bad together.

    Raises:
        ValueError: a size is not above 0.
    """
    if min(latent_size, block_size) < 1:
        raise OptionError("latent_size and block_size must be above 0")

    def fetch(obj: Object) -> _Feature | Reject:
        return _fetch(obj, latent_size)

    def blocks() -> Iterator[FeatureBlock]:
        outcomes = parts.read_ahead(objects, fetch, _READ_AHEAD)
        while taken := list(islice(outcomes, block_size)):
            yield _block(taken, latent_size)
            del taken  # not to be kept while the next block fills

    return blocks()


def _fetch(obj: Object, latent_size: int) -> _Feature | Reject:
    # Larger than doubles with the largest header: no such latent, so it is not even read.
    data = storage.read_object(obj, 8 * latent_size + _MOST_HEADER)
    if isinstance(data, Reject):
        return data
    latent = decode(data, latent_size)
    return latent if isinstance(latent, Reject) else _Feature(hashlib.sha256(data).hexdigest(), latent)


def _block(outcomes: list[tuple[Object, _Feature | Reject]], latent_size: int) -> FeatureBlock:
    good = [(obj, result) for obj, result in outcomes if isinstance(result, _Feature)]
    latents = np.empty((len(good), latent_size), np.float16)
    for row, (_, feature) in zip(latents, good, strict=True):
        row[:] = feature.latent
    bad = [(obj, result) for obj, result in outcomes if isinstance(result, Reject)]
    return FeatureBlock([obj for obj, _ in good], [f.image_id for _, f in good], latents, bad)


def import_features(
    folder: str,
    out: str,
    encoder_id: str,
    transform: Transform | None = None,
    latent_size: int = LATENT_SIZE,
    *,
    execution: Execution,
    check: Callable[[Plan], None] = lambda plan: None,
    progress: OnStage = silent,
    allow_shrink: bool = False,
) -> Plan:
    """Make `OUT/embeddings` and `OUT/rejects` of a folder of feature files: latents to train W from.

    Interrupted and started again it goes on where it was; committed, it only lists. Class and index of a
    row are in its `uri`: `readers.OripidLayout.label`.

    Args:
        folder: folder or bucket prefix; every object below it becomes a row or a reject.
        out: parent of the two data sets.
        encoder_id: names what made the latents. The release drew `latent_dist.sample()`: say so in the id
            (`sd2-sample`), and never reuse the id of one of this project's encoders, which take the mode.
        transform: for descriptors (the identity: 16 kB a row of 4,096 numbers). By default there are
            none, and the data set's transform_id is `transform.LATENTS_ONLY`: training reads latents only.
        latent_size: n; part of the data set's preprocess_id, so that one data set has one n.
        execution: gives new rows their run_id and time.
        check: sees the plan, raises where it should not be carried out.
        progress: called with "features", and how many files of how many.
        allow_shrink: as `planning.make` takes it.

    Returns:
        The plan that was carried out; the data sets' counts are in their `_SUCCESS`.

    Raises:
        TransformError: the transform does not take these latents.
        DatasetError: `out` holds rows of another folder, encoder, transform or latent size.
        StorageError: no such folder.
        RunInProgressError: another run imports the same folder.
    """
    if transform:
        transform.output_size(latent_size)
        transform.check_encoder(encoder_id)
    ids = {
        "encoder_id": encoder_id,
        "transform_id": transform.transform_id if transform else LATENTS_ONLY,
        "preprocess_id": f"npy-{latent_size}",
    }
    source, target = storage.normalize(folder), storage.normalize(out)
    with leases.held(target, source, execution):
        plan = planning.make(
            embedding.PRODUCT,
            source,
            target,
            ids,
            {"kind": "features"},
            execution,
            allow_shrink=allow_shrink,
        )
        check(plan)
        _import_parts(plan, latent_size, transform, progress)
        planning.commit(plan)
    return plan


def _import_parts(plan: Plan, latent_size: int, transform: Transform | None, progress: OnStage) -> None:
    completed = 0
    for index in range(plan.parts):
        objects = planning.read_part(plan, index)
        stream = _rows(read_blocks(objects, latent_size), transform, plan.lineage)
        counted = _counted(stream, completed, plan.objects, progress)
        parts.write(plan.out, plan.product, objects, plan.lineage, counted)
        completed += len(objects)


def _rows(blocks: Iterator[FeatureBlock], transform: Transform | None, lineage: Lineage) -> parts.Stream:
    for block in blocks:
        batch = block.to_batch(transform, lineage) if block.objects else None
        yield batch, block.reject_rows(lineage.run_id)


def _counted(stream: parts.Stream, completed: int, total: int, progress: OnStage) -> parts.Stream:
    """Pass the stream on and report how many files are completed; `completed` were before it."""
    for batch, rejected in stream:
        completed += (batch.num_rows if batch else 0) + len(rejected)
        progress(STAGE, completed, total)
        yield batch, rejected
