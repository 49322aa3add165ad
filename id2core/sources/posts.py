"""What a platform sends along with its images: the data set `posts/`, joined by URI and generation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import printable
from id2core.sources.base import Item, Source
from id2core.store import datasets, schemas, storage
from id2core.store.base import Noted, Object
from id2core.store.datasets import Dataset, FileRecord

POSTS: Final = "posts"
# URI and generation of an object.
Key = tuple[str, str]
# Column → names that platforms have for it, the strongest first.
KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "post_id": ("post_id", "post"),
    "uploader": ("uploader", "user_id", "user", "author"),
    "posted_at": ("posted_at", "time", "timestamp", "created_at"),
}
EXTRA_BYTES: Final = 8 << 10
# Stands in `extra` where fields were left out, with how many.
LEFT_OUT: Final = "id2_left_out"
_TEXT_CHARACTERS: Final = 1024
# Fields that may go to `extra`: more do not fit, and each costs time.
_MAX_FIELDS: Final = 1000
# Seconds since 1970 above this are milliseconds.
_MILLISECONDS_FROM: Final = 1e11
# Rows in memory, by what they take.
_FILE_BYTES: Final = 64 << 20
_ROW_BYTES: Final = 300
_log = logging.getLogger("id2")


def row(obj: Object, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of `schemas.POSTS` that the fields of an object make, less `source` and `run_id`."""
    return {"uri": obj.uri, "generation": obj.generation, **columns_of(fields)}


def columns_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of `schemas.POSTS` that follow from fields.

    A field whose name is known, and whose value fits its column, goes there. The others become JSON in
    `extra`, in the order of their names. What does not fit into `EXTRA_BYTES` is left out and counted there.
    """
    rest = {str(name): value for name, value in fields.items()}
    post_id, uploader = (_take(rest, KNOWN[column], _text) for column in ("post_id", "uploader"))
    posted_at = _take(rest, KNOWN["posted_at"], _time)
    return {
        "post_id": post_id,
        "uploader": uploader,
        "posted_at": posted_at,
        "extra": _extra(rest) if rest else None,
    }


def _take(fields: dict[str, Any], names: tuple[str, ...], parse: Any) -> Any:
    """Remove and return the first field of such a name whose value fits."""
    for name in names:
        if (value := parse(fields.get(name))) is not None:
            del fields[name]
            return value
    return None


def _text(value: Any) -> str | None:
    fits = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value) if fits else ""
    return text if 0 < len(text) <= _TEXT_CHARACTERS else None


def _time(value: Any) -> datetime | None:
    """Return a moment: ISO 8601, UTC where it names no zone, or seconds or milliseconds since 1970."""
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if abs(value) > _MILLISECONDS_FROM else value
            return datetime.fromtimestamp(seconds, UTC)
    return None


def _extra(fields: dict[str, Any]) -> str:
    """Return fields as one JSON object of bounded size."""
    kept: list[str] = []
    room = EXTRA_BYTES - len(LEFT_OUT) - 20
    for name in sorted(fields)[:_MAX_FIELDS]:
        pair = f"{_json(name)}: {_json(fields[name])}"
        size = len(pair.encode()) + 2
        if name != LEFT_OUT and size <= room:
            kept.append(pair)
            room -= size
    if len(kept) < len(fields):
        kept.append(f'"{LEFT_OUT}": {len(fields) - len(kept)}')
    return "{" + ", ".join(kept) + "}"


def _json(value: Any) -> str:
    if isinstance(value, float) and value - value != 0:  # JSON has no NaN and no infinity
        value = str(value)
    text = value.isoformat() if isinstance(value, date) else value
    return json.dumps(text, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


class PostsWriter:
    """Writes the posts of one source in one run, as its objects are listed.

    Rows that the data set has from earlier runs of the source are not written again. It is read when the
    first fields come: most folders have none.

        writer = PostsWriter("/scan/queries", source.uri, run_id)
        for item in writer.through(source.items()):
            ...
        writer.commit()
    """

    def __init__(
        self, out: str, source: str, run_id: str, withheld: Callable[[], Collection[Key]] = frozenset
    ) -> None:
        """Begin a run.

        Args:
            out: parent of the data set.
            source: URI of the source; a night's own for a dated one.
            run_id: the execution.
            withheld: gives the objects that get no row, when the first fields come.
        """
        self._read_withheld = withheld
        self._withheld: Collection[Key] = frozenset()
        self._uri = storage.join(out, POSTS)
        self._source, self._run_id = source, run_id
        # The source's part of the name tells which files may hold the same objects.
        self._tail = f"-{datasets.digest_of(source)}-"
        self._plan_id = datasets.digest_of(source, run_id)
        self._last: Dataset | None = None
        self._held: NDArray[np.uint64] | None = None
        # Many pictures may share the fields of one post.
        self._fields: Mapping[str, Any] | None = None
        self._columns: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._size = self._cut = self._written = 0
        self._files: list[FileRecord] = []

    def through(self, items: Iterator[Item | Noted]) -> Iterator[Item | Noted]:
        """Yield items as they are, and write the rows of those that have fields."""
        for item in items:
            if isinstance(item, Item) and item.fields:
                self.add(item)
            yield item

    def add(self, item: Item) -> None:
        """Write the row of one item, unless it is there."""
        if self._held is None:
            self._withheld = self._read_withheld()
            self._last = Dataset.find_own(self._uri)
            self._held = self._held_keys(self._last)
        if (item.obj.uri, item.obj.generation) in self._withheld:
            return
        if self._is_held(self._held, item.obj):
            return
        if item.fields is not self._fields:
            self._fields, self._columns = item.fields, columns_of(item.fields or {})
        own = {"uri": item.obj.uri, "generation": item.obj.generation}
        self._cut += f'"{LEFT_OUT}"' in (self._columns["extra"] or "")
        self._rows.append({**own, **self._columns, "source": self._source, "run_id": self._run_id})
        texts = (*own.values(), *self._columns.values())
        self._size += _ROW_BYTES + sum(len(text) for text in texts if isinstance(text, str))
        if self._size >= _FILE_BYTES:
            self._write()

    def commit(self) -> Dataset | None:
        """Add what was written to the data set; return it as it is now, None where no fields came.

        Called again, it changes nothing.
        """
        self._write()
        if self._cut:
            _log.warning(
                "%s: %d posts have more than %d bytes of fields; what is above was left out",
                printable(self._source),
                self._cut,
                EXTRA_BYTES,
            )
            self._cut = 0
        if not self._files:
            return self._last
        counts = {"posts": self._written}
        self._last = datasets.add_files(
            self._uri, POSTS, self._run_id, self._plan_id, self._files, counts, self._last
        )
        return self._last

    def _write(self) -> None:
        if not self._rows:
            return
        rows, self._rows, self._size = self._rows, [], 0
        table = pa.Table.from_pylist(rows, schemas.POSTS)
        self._written += len(rows)
        key = f"{self._plan_id}{self._tail}{len(self._files):05d}"
        written = datasets.write_file(self._uri, key, [table], schemas.POSTS, 1 << 16)
        self._files.append(replace(written, segments=(self._run_id,), source=self._source))

    def _held_keys(self, last: Dataset | None) -> NDArray[np.uint64]:
        """Return the keys of rows that other runs of this source wrote, sorted."""
        files = last.files if last else ()
        own = [f for f in files if f.source == self._source or self._tail in f.name]
        others = [f for f in own if not f.belongs_to(self._plan_id)]
        keys = [
            _key(uri, generation)
            for table in datasets.read_each(self._uri, others, ["uri", "generation"])
            for uri, generation in zip(*(column.to_pylist() for column in table.columns), strict=True)
        ]
        return np.sort(np.array(keys, np.uint64))

    @staticmethod
    def _is_held(held: NDArray[np.uint64], obj: Object) -> bool:
        key = np.uint64(_key(obj.uri, obj.generation))
        at = int(np.searchsorted(held, key))
        return at < len(held) and bool(held[at] == key)


class PostsRecorder:
    """Writes the posts of a source while it is listed: of a dated one, each night's for itself.

    Args:
        out: parent of the data set.
        run_id: the execution.
        withheld: gives the objects that get no row, when the first fields come.
    """

    def __init__(self, out: str, run_id: str, withheld: Callable[[], Collection[Key]] = frozenset) -> None:
        self._out, self._run_id, self._withheld = out, run_id, withheld
        self._writers: list[PostsWriter] = []

    def items(self, source: Source) -> Iterator[Item | Noted]:
        """Yield what `Source.items` yields."""
        for part in source.parts:
            writer = PostsWriter(self._out, part.uri, self._run_id, self._withheld)
            self._writers.append(writer)
            yield from writer.through(part.items())

    def commit(self) -> None:
        """Add what was written to the data set. Called again, it changes nothing."""
        for writer in self._writers:
            writer.commit()


def _key(uri: str, generation: str) -> int:
    return int(datasets.digest_of(uri, generation), 16)
