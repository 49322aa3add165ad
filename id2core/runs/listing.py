"""The listing of a source, streamed to a local file: nothing of it is kept object by object.

with TemporaryDirectory() as folder, Keys() as keys:
    listing = listing.take(source, wanted, keys, Path(folder, "listing"))
    for table in listing.tables():
        ...
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from id2core.errors import printable
from id2core.runs import keys
from id2core.runs.execution import Execution
from id2core.runs.keys import Keys
from id2core.runs.parts import Product
from id2core.runs.units import REJECTS, STAGING
from id2core.sources.base import Item, Source
from id2core.sources.posts import POSTS
from id2core.store import datasets, moves, schemas, storage
from id2core.store.storage import UNSEEN, Noted, Object, Remark

# Objects that are Python's at a time, and objects in a row group of a listing.
BATCH, ROW_GROUP = 2**14, 2**16
# Folder of the log of removed rows, beside the data sets.
REMOVALS = "removals"
# Folder of the pictures that a run makes, where it makes some.
PICTURES = "pictures"
# Folder of answers of a prompt server.
PROMPTS = "_prompts"
# What a listing of images has where somebody planted the sign of a data set, or forgot `dataset:`.
_MARKERS = (datasets.SUCCESS, f"embeddings/{datasets.SUCCESS}")
_T = TypeVar("_T")
# How a source is listed, such as `Source.items`.
Lister = Callable[[Source], Iterable[Item | Noted]]
_log = logging.getLogger("id2")


@dataclass(frozen=True)
class Listing:
    """A listing as it was taken.

    Attributes:
        path: a Parquet file of `schemas.MANIFEST`.
        rows: objects in it. The same object may be there twice.
        digest: names its content.
        bounds: the least and the greatest URI; empty without objects.
        visible: whether an object is not hidden.
    """

    path: Path
    rows: int
    digest: str
    bounds: tuple[str, ...]
    visible: bool

    def tables(self) -> Iterator[pa.Table]:
        """Yield it in tables of at most `ROW_GROUP` objects."""
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def take(
    source: Source,
    wanted: Callable[[Object], bool],
    unseen: Callable[[set[str]], Iterable[Object]],
    index: Keys,
    path: Path,
    lister: Lister = Source.items,
) -> Listing:
    """List a source into a file, and add the keys of its objects to an index, numbered from 0.

    Args:
        source: what is listed; what it leaves out by rule is said aloud.
        wanted: whether an object is listed; what is not, is a result of a run.
        unseen: gives the objects in place of those of which only the URI can be seen.
        index: takes URI and generation of each object as its key.
        path: where the file is written.
        lister: gives the items of the source.
    """
    remarks: Counter[Remark] = Counter()
    taken = _Taken(index, len(source.folder.rstrip("/")) + 1)
    objects = _with_unseen(_wanted(source, lister, wanted, remarks), unseen)
    batches = (taken.add(batch) for batch in _batched(objects, BATCH))
    with schemas.parquet_writer(path, schemas.MANIFEST) as writer:
        for group in _batched(batches, ROW_GROUP // BATCH):
            writer.write_table(pa.Table.from_batches(group))
    if not taken.rows:
        _log.warning("%s is empty: this run adds nothing of it", printable(source.uri))
    if remarks:
        counts = "; ".join(f"{count} {remark}" for remark, count in sorted(remarks.items()))
        _log.warning("%s: %s", printable(source.uri), counts)
    bounds = (taken.least, taken.greatest) if taken.rows else ()
    return Listing(path, taken.rows, taken.digest.hexdigest(), bounds, taken.visible)


def _batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield `size` items at a time; the last list may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass
class _Taken:
    """What is known of the objects so far."""

    index: Keys
    below: int
    rows: int = 0
    least: str = ""
    greatest: str = ""
    visible: bool = False
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, objects: list[Object]) -> pa.RecordBatch:
        uris, generations = [o.uri for o in objects], [o.generation for o in objects]
        texts = keys.encode(uris, generations)
        self.digest.update(b"".join(texts))
        self.index.add(self.index.hash_bytes(texts), self.rows)
        self.least = min(self.least, *uris) if self.rows else min(uris)
        self.greatest = max(self.greatest, *uris)
        self.visible = self.visible or any("/." not in f"/{uri[self.below :]}" for uri in uris)
        self.rows += len(objects)
        columns = [uris, generations, [o.bytes for o in objects]]
        return pa.RecordBatch.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, schemas.MANIFEST, strict=True)],
            schema=schemas.MANIFEST,
        )


def _wanted(
    source: Source, lister: Lister, wanted: Callable[[Object], bool], remarks: Counter[Remark]
) -> Iterator[Object]:
    """Yield the wanted objects of a source, and count its remarks."""
    markers = {storage.join(source.folder, marker): marker for marker in _MARKERS}
    for item in lister(source):
        if isinstance(item, Noted):
            remarks[item.remark] += 1
        elif not wanted(item.obj):
            remarks[Remark.OUTPUT] += 1
        else:
            if marker := markers.get(item.obj.uri):
                markers = {}
                _warn_of_marker(source.folder, marker)
            yield item.obj


def _warn_of_marker(uri: str, marker: str) -> None:
    _log.warning(
        "%s has a file %s, but is read as a folder of images. If id2 embed wrote this folder, "
        "write dataset:%s. Otherwise nothing needs to be done: the file is one row in rejects/",
        *(printable(text) for text in (uri, marker, uri)),
    )


def _with_unseen(
    objects: Iterable[Object], unseen: Callable[[set[str]], Iterable[Object]]
) -> Iterator[Object]:
    """Yield objects that can be seen, and at the end what stands for the others."""
    uris: set[str] = set()
    for obj in objects:
        if obj.generation == UNSEEN:
            uris.add(obj.uri)
        else:
            yield obj
    if uris:
        yield from unseen(uris)


def _inside(uri: str, folder: str) -> bool:
    return uri.startswith(folder.rstrip("/") + "/")


def _parent(uri: str) -> str:
    return uri.rpartition("/")[0]


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """Return a local folder without links: it has many files, and resolving a path is slow."""
    return folder if storage.is_remote(folder) else os.path.realpath(storage.local_path(folder))


@dataclass(frozen=True)
class Outputs:
    """Which files below the images are a run's results: where `out` is decides, never what a name looks like.

    Results that lie below the images are everything below their folder, also where a link leads there. Where
    images and `out` are one folder, they are the run's own folders and the names that files have in them.
    Elsewhere nothing is a result.
    """

    product: Product
    images: str
    results: str
    out: str

    def __contains__(self, uri: str) -> bool:
        folder = f"{_real(_parent(uri))}/"
        if any(_inside(folder, place) for place in self._apart):
            return True
        below = uri[len(self.images.rstrip("/")) + 1 :]
        return self._own_name is not None and bool(self._own_name.fullmatch(below))

    @functools.cached_property
    def _apart(self) -> set[str]:
        """Folders of results that do not hold the images."""
        images = f"{_real(self.images)}/"
        return {place for place in (_real(self.results), _real(self.out)) if not _inside(images, place)}

    @functools.cached_property
    def _own_name(self) -> re.Pattern[str] | None:
        """What files are called that a run writes among the images; None where it writes elsewhere."""
        if _real(self.images) != _real(self.out):
            return None
        digits = "[0-9a-f]"
        temporary = r"\.lock|\.partial-[^/]*"
        name = rf"({Execution.PATTERN}|(part-|merged-|){digits}{{16}})-{digits}{{8}}\.parquet"
        picture = rf"{digits}{{2}}/{digits}{{64}}-\d+-{digits}{{8}}\.[a-z]+"
        return re.compile(
            rf"({self.product.dataset}|{REJECTS}|{REMOVALS}|runs)/({name}|{datasets.SUCCESS}|{temporary})"
            rf"|{POSTS}/({digits}{{16}}-{digits}{{16}}-\d+-{digits}{{8}}\.parquet|{datasets.SUCCESS}|{temporary})"
            rf"|({STAGING}|{moves.SUPERSEDED})/.*|truth\.csv"
            rf"|{PROMPTS}/{digits}{{16}}\.json|{PICTURES}/{picture}"
        )
