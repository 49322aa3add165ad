"""Plain folders and bucket prefixes: every object below them is an image."""

from __future__ import annotations

from collections.abc import Iterator

from id2core.sources.base import Item, Source
from id2core.store import storage
from id2core.store.base import Noted


class FolderSource(Source):
    """A folder, a `gs://` prefix, or one object."""

    def _items(self) -> Iterator[Item | Noted]:
        for item in storage.walk(self.place):
            yield item if isinstance(item, Noted) else Item(item)
