"""Objects in local folders and in buckets: list, read, write whole, nothing in between.

A URI is an absolute local path or `gs://bucket/name`; `STORES` says which store has which scheme. Reading an
image is the data path: its failures are `Reject` values. Everything else is the control path and raises
`StorageError` or `FileNotFoundError`.
"""

from __future__ import annotations

import errno
import functools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from id2core.errors import ChangedObjectError, StorageError, StoreUnavailableError
from id2core.store import members
from id2core.store.base import UNSEEN as UNSEEN
from id2core.store.base import Entry, Store
from id2core.store.base import Noted as Noted
from id2core.store.base import Object as Object
from id2core.store.base import Remark as Remark
from id2core.store.gcs import GcsStore
from id2core.store.local import PARTIAL, LocalStore, path_of
from id2core.store.rejects import Reason, Reject

LOCAL: Final = ""
# Names of files that are being written beside what they replace, and of locks.
_TEMPORARY: Final = (PARTIAL, ".lock")
# Limit of a file that says what a run does, such as `_SUCCESS`, which has 300 bytes a part of 4,096 images.
CONTROL_BYTES: Final = 256 << 20
# Scheme → store. A new one is a module with its `Store` and a row here.
STORES: Final[dict[str, Callable[[], Store]]] = {LOCAL: LocalStore, "gs": GcsStore}


def _scheme(uri: str) -> str:
    if uri.startswith("/"):  # the name of a member of a container may look like a URI
        return LOCAL
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else LOCAL


def _store(uri: str) -> Store:
    scheme = _scheme(uri)
    if scheme not in STORES:
        known = " and ".join(["local paths", *(f"{name}://" for name in STORES if name)])
        raise StorageError(f"{uri!r}: only {known} are supported")
    return _made(STORES[scheme])


@functools.cache
def _made(make: Callable[[], Store]) -> Store:
    """One store per kind and process."""
    return make()


def normalize(uri: str | os.PathLike[str]) -> str:
    """Return the one spelling of a URI: without a trailing slash, a local path absolute."""
    text = os.fspath(uri).removeprefix("file://")
    if not text:
        raise StorageError("a URI is empty: give a path, or . for the current folder")
    return _store(text).normalize(text)


def is_absolute(uri: str) -> bool:
    """Return whether a URI says where an object is, and not only where below some folder."""
    return uri.startswith("/") or _scheme(uri) in STORES.keys() - {LOCAL}


def join(uri: str, *parts: str) -> str:
    """Return `uri` with path parts added."""
    return "/".join([uri.rstrip("/"), *parts])


def is_remote(uri: str) -> bool:
    """Return whether a URI has a scheme: it is no local path."""
    return _scheme(uri) != LOCAL


@contextmanager
def _control_path(uri: str) -> Iterator[Store]:
    """Turn what a store's client raises into StorageError; what is not found stays not found."""
    store = _store(uri)
    try:
        yield store
    except (FileNotFoundError, StorageError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(uri) from error
    except store.errors as error:
        kind = StoreUnavailableError if isinstance(error, store.transient) else StorageError
        raise kind(f"{uri}: {type(error).__name__}: {error}"[:1000]) from error


# What a place says that takes no more bytes.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def _writing(uri: str) -> Iterator[Store]:
    """As `_control_path`, where something is written: a folder that is gone is a fault of the place, too."""
    try:
        with _control_path(uri) as store:
            yield store
    except FileNotFoundError as error:
        raise StorageError(
            f"{uri} cannot be written: its folder cannot be made, or is gone. Is a disk missing?"
        ) from error


@dataclass(frozen=True)
class Listing:
    """What lies below a folder or prefix.

    Attributes:
        objects: every object, by URI.
        remarks: how often the listing did what is to be said aloud.
    """

    objects: list[Object]
    remarks: Counter[Remark] = field(default_factory=Counter)


def survey(uri: str) -> Listing:
    """List every object below a folder or bucket prefix (or the one object that `uri` names).

    Hidden files (`.name`) are listed like others. Local links are followed, but for links to a folder above;
    a folder that several paths lead to is listed once.

    Raises:
        StorageError: no such folder or bucket, nothing below a prefix, or something that cannot be looked
            at: what is not seen must not look as if it had been deleted.
    """
    remarks: Counter[Remark] = Counter()
    objects = []
    for item in walk(uri):
        if isinstance(item, Object):
            objects.append(item)
        else:
            remarks[item.remark] += 1
    return Listing(sorted(objects), remarks)


def walk(uri: str) -> Iterator[Object | Noted]:
    """Yield what `survey` returns one by one: objects as the store lists them, and remarks between them.

    Local folders and buckets list in order of URI. What lies behind links to folders comes last.

    Raises:
        StorageError: as `survey`, and at whatever object.
    """
    with _control_path(uri) as store:
        yield from store.list(uri)


def find(uri: str) -> Object:
    """Return the object of exactly this name. Raises FileNotFoundError, or StorageError."""
    with _control_path(uri) as store:
        return store.find(uri)


def list_objects(uri: str) -> list[Object]:
    """List the objects of a folder that this program fills, less files that are still being written.

    See `survey` for what is listed and raised.
    """
    return [obj for obj in survey(uri).objects if not is_temporary(obj.uri)]


def is_temporary(uri: str) -> bool:
    """Return whether the name is one that a file has while this program writes it."""
    return uri.rsplit("/", 1)[-1].startswith(_TEMPORARY)


def entries(uri: str, below: bool = True) -> list[Entry]:
    """List every file in a folder of results with its time of modification, hidden ones too.

    Args:
        uri: the folder; one that is not there has no files.
        below: also what is in folders below it.

    Raises:
        StorageError: it cannot be read.
    """
    with _control_path(uri) as store:
        return list(store.entries(uri, below))


def is_empty(uri: str) -> bool:
    """Return whether a folder or prefix holds no object; listing ends at the first one.

    Raises:
        StorageError: there is nothing of that name, or it cannot be read.
    """
    with _control_path(uri) as store:
        return not any(isinstance(item, Object) for item in store.list(uri))


def local_path(uri: str) -> Path:
    """Return the path of a local URI, whose name may be any bytes."""
    return path_of(uri)


def require(uri: str) -> None:
    """Raise StorageError unless `uri` is a folder or holds an object: a cheap look before long work."""
    with _control_path(uri) as store:
        store.require(uri)


def read_object(obj: Object, max_bytes: int) -> bytes | Reject:
    """Return the bytes of exactly the version listed, or why they cannot be had. Never raises.

    Args:
        obj: an object, or a member of one, see `members`.
        max_bytes: larger ones are rejected.
    """
    if obj.bytes > max_bytes:
        return Reject(Reason.TOO_LARGE_FILE, f"{obj.bytes} bytes; the limit is {max_bytes}")
    try:
        member = members.parse(obj)
        if member is None:
            return _store(obj.uri).read(obj)
        return member.refusal or members.read(_store(member.shard.uri), member, max_bytes)
    except FileNotFoundError:
        return Reject(Reason.VANISHED, "listed, but gone when it was read")
    except ChangedObjectError as error:
        return Reject(Reason.CHANGED, str(error)[:500])
    except Exception as error:  # whatever a file system or client throws, the object keeps its row
        return Reject(Reason.UNREADABLE, f"{type(error).__name__}: {error}"[:500])


def exists(uri: str) -> bool:
    """Return whether an object of exactly this name exists."""
    return _store(uri).exists(uri)


def contains(folder: str, uri: str) -> bool:
    """Return whether an object whose URI is below `folder` really lies there, and is no link out of it."""
    return _store(uri).contains(folder, uri)


def read_bytes(uri: str) -> bytes:
    """Read a whole object, however large; see `read_marked` for what it raises."""
    with _control_path(uri) as store:
        return store.read_marked(uri)[0]


def read_marked(uri: str, max_bytes: int = CONTROL_BYTES) -> tuple[bytes, str]:
    """Read a small object whole, and the mark of the version that was read, for `write_if`.

    Raises FileNotFoundError when there is none, StorageError when it cannot be read or is too large.
    """
    with _control_path(uri) as store:
        size = store.size(uri)
        if size is not None and size > max_bytes:
            raise StorageError(f"{uri} has {size} bytes; a file of its kind has {max_bytes} at most")
        return store.read_marked(uri)


@contextmanager
def open_input(uri: str) -> Iterator[IO[bytes]]:
    """Open an object as a seekable binary file; of a remote one only the ranges read are fetched.

    Raises FileNotFoundError when there is none, StorageError when it cannot be read.
    """
    with _control_path(uri) as store, store.open(uri) as file:
        yield file


@contextmanager
def open_version(obj: Object) -> Iterator[IO[bytes]]:
    """Open exactly the version that was listed as a seekable binary file.

    Raises FileNotFoundError when it is gone, ChangedObjectError when it was replaced, and StorageError.
    """
    with _control_path(obj.uri) as store, store.open_version(obj) as file:
        yield file


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object: readers see the old bytes or the new, never a part."""
    with replacing(uri) as path:
        path.write_bytes(data)


def write_if(uri: str, data: bytes, mark: str) -> bool:
    """Write a whole object if nobody wrote it since it was read; return whether it was written.

    Args:
        uri: the object.
        data: its new content.
        mark: what `read_marked` returned, or "" for an object that was not there.
    """
    with _writing(uri) as store:
        return store.write_if(uri, data, mark)


def update(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace an object by a function of its bytes (None: there is none), losing no other writer's change.

    `change` may be called more than once. Raises StorageError when others keep writing.
    """
    with _writing(uri) as store:
        store.update(uri, change)


@contextmanager
def replacing(uri: str) -> Iterator[Path]:
    """Give a local temporary file that becomes the object `uri` when the block ends without an error."""
    with temporary(uri.rsplit("/", 1)[0]) as path:
        yield path
        publish(path, uri)


@contextmanager
def temporary(folder: str) -> Iterator[Path]:
    """Give a local temporary file from which `publish` makes an object in `folder`; it is gone afterwards.

    Raises StorageError where it cannot be made, and where the block finds the disk full.
    """
    with _writing(folder) as store:
        handle, name = tempfile.mkstemp(dir=store.staging_folder(folder), prefix=PARTIAL)
        os.close(handle)
    try:
        yield Path(name)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageError(f"{folder} cannot be written: {os.strerror(error.errno)}") from error
    finally:
        with suppress(OSError):  # what stopped the writing is the error to show
            Path(name).unlink(missing_ok=True)


def publish(path: Path, uri: str) -> None:
    """Make a finished temporary file the object `uri`, whole: by upload, or by renaming it."""
    with _writing(uri) as store:
        store.publish(path, uri)


def move(uri: str, target: str) -> None:
    """Give an object another place in the same store: readers see it at one of the two, and always whole.

    A bucket may show it at both for a moment.

    Raises:
        FileNotFoundError: there is none, or another process has moved or replaced it meanwhile.
        StorageError: the store refuses.
    """
    with _control_path(uri) as store:
        store.move(uri, target)


def copy(uri: str, target: str) -> None:
    """Put an object that nobody will change at another place in the same store too; safe to repeat.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the store refuses.
    """
    with _control_path(uri) as store:
        store.copy(uri, target)


def delete(uri: str) -> None:
    """Remove an object; one that is gone already is no error."""
    with suppress(FileNotFoundError), _control_path(uri) as store:
        store.delete(uri)
