"""A source of images as somebody would add it: a module with a `Store`, and a row in `storage.STORES`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO

from id2core.errors import StorageError
from id2core.store.base import Object, Store
from id2core.store.rejects import Reject

OBJECTS: dict[str, bytes] = {}


class ToyStore(Store):
    """Objects in memory, `toy://name`."""

    def normalize(self, uri: str) -> str:
        return uri.rstrip("/")

    def list(self, uri: str) -> Iterator[Object]:
        below = [name for name in OBJECTS if name.startswith(f"{uri}/")]
        if not below:
            raise StorageError(f"{uri}: nothing there")
        yield from (Object(name, "1", len(OBJECTS[name])) for name in below)

    def read(self, obj: Object) -> bytes | Reject:
        return self.read_marked(obj.uri)[0]

    def read_marked(self, uri: str) -> tuple[bytes, str]:
        if uri not in OBJECTS:
            raise FileNotFoundError(uri)
        return OBJECTS[uri], "1"

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return io.BytesIO(self.read_marked(uri)[0])

    def exists(self, uri: str) -> bool:
        return uri in OBJECTS
