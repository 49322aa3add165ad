"""What a store of objects is: the interface behind `storage`, and the objects in it."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

from id2core.errors import ChangedObjectError, StorageError
from id2core.store.rejects import Reject

# Attempts at an update that other writers were faster with.
_ATTEMPTS = 20
# Generation of what is listed but cannot be looked at, such as a link whose target is gone.
UNSEEN: Final = ""


class Mode(StrEnum):
    """Whether rows follow the listing of a source."""

    MIRROR = "mirror"  # an object that is no longer listed loses its rows
    APPEND = "append"  # rows stay when the listing forgets their object


@dataclass(frozen=True, order=True)
class Object:
    """One version of one object.

    Attributes:
        uri: where it is.
        generation: which version; the bucket's own, or of a local file its time of modification and size;
            `UNSEEN` where that cannot be known. A store's own generations hold no `#`: what has one is a
            member of a container, see `members`.
        bytes: its size; of a row of a Parquet file the mean of its row group, until it is read.
    """

    uri: str
    generation: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """A file as it lies in a store, whatever it is.

    Attributes:
        uri: where it is.
        modified: when it was last written by the store's clock, in seconds since 1970.
    """

    uri: str
    modified: float


class Remark(StrEnum):
    """What a listing does besides yielding objects; it is counted and said aloud."""

    LINK = "links were followed"
    SAME_FOLDER = "links to folders that are listed by another path were not followed"
    FOLDER_ABOVE = "links to a folder above the listed one were not followed"
    FOLDER_MARKER = "empty objects whose name ends in / are folder markers and were left out"
    NAMESAKE = "objects that bear the name of the listed prefix are not below it and were left out"
    NO_SHARD = "files beside shards have another suffix and were left out"
    OUTPUT = "files below --out are results and were left out"


@dataclass(frozen=True)
class Noted:
    """A remark on one place of a listing."""

    uri: str
    remark: Remark


class Store(ABC):
    """One kind of place that holds objects.

    URIs arrive normalized. What a method raises and `errors` names becomes a StorageError in `storage`.
    A store that only gives images implements the abstract methods and leaves the others: it cannot be
    written to.
    """

    # What the store's client raises where the store, and not this program, is at fault.
    errors: tuple[type[Exception], ...] = (OSError,)
    # Those of them that may be gone at the next try.
    transient: tuple[type[Exception], ...] = ()

    @abstractmethod
    def normalize(self, uri: str) -> str:
        """Return the one spelling of a URI; raise StorageError where it is none."""

    @abstractmethod
    def list(self, uri: str) -> Iterator[Object | Noted]:
        """Yield every object below a folder, or the one that `uri` names, hidden ones too.

        What is not listed by rule is `Noted`. Raises StorageError when there is nothing, or something
        cannot be seen.
        """

    @abstractmethod
    def read(self, obj: Object) -> bytes | Reject:
        """Return the bytes of exactly that version, or why not; raise FileNotFoundError where it is gone."""

    @abstractmethod
    def read_marked(self, uri: str) -> tuple[bytes, str]:
        """Return an object and the mark of its version; raise FileNotFoundError where there is none."""

    @abstractmethod
    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """Open an object as a seekable file; raise FileNotFoundError where there is none."""

    @abstractmethod
    def exists(self, uri: str) -> bool:
        """Return whether an object of exactly this name exists."""

    def find(self, uri: str) -> Object:
        """Return the object of exactly this name; raise FileNotFoundError where there is none."""
        for item in self.list(uri):
            if isinstance(item, Object) and item.uri == uri:
                return item
        raise FileNotFoundError(uri)

    @contextmanager
    def open_version(self, obj: Object) -> Iterator[IO[bytes]]:
        """Open exactly the version that was listed as a seekable file.

        A store that can read ranges overrides this: here the object is read whole.

        Raises:
            FileNotFoundError: it is gone.
            ChangedObjectError: it is another version by now.
        """
        data = self.read(obj)
        if isinstance(data, Reject):
            raise ChangedObjectError(f"{obj.uri}: {data.detail}")
        yield io.BytesIO(data)

    def read_range(self, obj: Object, start: int, size: int) -> bytes:
        """Return bytes of the version that was listed, fewer where it ends before; see `open_version`."""
        with self.open_version(obj) as file:
            file.seek(start)
            return file.read(size)

    def entries(self, uri: str, below: bool = True) -> Iterator[Entry]:
        """Yield every file in a folder, hidden ones too; nothing where there is no such folder.

        Args:
            uri: the folder.
            below: also what is in folders below it; links are not followed.
        """
        return iter(())

    def size(self, uri: str) -> int | None:
        """Return the size of an object in bytes, None where the store does not tell before reading."""
        return None

    def contains(self, folder: str, uri: str) -> bool:
        """Return whether an object whose URI is below `folder` really lies there."""
        return True

    def require(self, uri: str) -> None:
        """Raise StorageError unless `uri` is a folder or holds an object."""
        next(self.list(uri), None)

    def staging_folder(self, folder: str) -> Path | None:
        """Return where files for `folder` are made before `publish`; None for the usual place."""
        return None

    def publish(self, path: Path, uri: str) -> None:
        """Make a finished local file the object `uri`, whole."""
        raise self._read_only(uri)

    def write_if(self, uri: str, data: bytes, mark: str) -> bool:
        """Write an object if its version is still `mark` ("": none); return whether it was written."""
        raise self._read_only(uri)

    def update(self, uri: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace an object by a function of its bytes, losing no other writer's change."""
        for _ in range(_ATTEMPTS):
            try:
                data, mark = self.read_marked(uri)
            except FileNotFoundError:
                written = self.write_if(uri, change(None), "")
            else:
                written = self.write_if(uri, change(data), mark)
            if written:
                return
        raise StorageError(f"{uri}: other runs keep writing it")

    def move(self, uri: str, target: str) -> None:
        """Give an object another place, whole, over what is there; no byte passes through this machine.

        Raises FileNotFoundError where there is none, or another process moved it meanwhile.
        """
        raise self._read_only(target)

    def copy(self, uri: str, target: str) -> None:
        """Put an object at another place too, whole, over what is there; no byte passes through this machine.

        Raises FileNotFoundError where there is none.
        """
        raise self._read_only(target)

    def delete(self, uri: str) -> None:
        """Remove an object; raise FileNotFoundError where there is none."""
        raise self._read_only(uri)

    def _read_only(self, uri: str) -> StorageError:
        return StorageError(f"{uri}: this place can only be read; choose a local folder or a bucket")
