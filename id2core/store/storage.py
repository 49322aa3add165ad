"""Objects in local folders and in `gs://` buckets: list, read, write whole, nothing in between.

A URI is an absolute local path or `gs://bucket/name`. Reading an image is the data path: its failures
are `Reject` values. Everything else is the control path and raises `StorageError` or `FileNotFoundError`.
"""

from __future__ import annotations

import fcntl
import functools
import mimetypes
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from id2core.errors import StorageError
from id2core.store.rejects import Reason, Reject


@dataclass(frozen=True, order=True)
class Object:
    """One version of one object: its URI, its generation, its size in bytes.

    The generation is the bucket's own; of a local file, its time of modification and its size.
    """

    uri: str
    generation: str
    bytes: int


def normalize(uri: str | os.PathLike[str]) -> str:
    """The one spelling of a URI: `gs://bucket/name` without a trailing slash, or an absolute path."""
    text = os.fspath(uri)
    if text.startswith("gs://"):
        bucket, name = _split(text)
        if not bucket:
            raise StorageError(f"{text!r} names no bucket; write gs://BUCKET/FOLDER")
        return f"gs://{bucket}/{name.strip('/')}".rstrip("/")
    if "://" in text and not text.startswith("file://"):
        raise StorageError(f"{text!r}: only local paths and gs:// are supported")
    return os.path.abspath(Path(text.removeprefix("file://")).expanduser())  # noqa: PTH100 (collapses ..)


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts added."""
    return "/".join([uri.rstrip("/"), *parts])


def is_remote(uri: str) -> bool:
    """True for `gs://`."""
    return uri.startswith("gs://")


@functools.cache
def _client() -> Any:
    """One client per process; anonymous against an emulator (`STORAGE_EMULATOR_HOST`)."""
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    except ImportError as error:
        raise StorageError("gs:// needs the extra `gcs`: pip install 'id2[gcs]'") from error
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    return storage.Client()


def _split(uri: str) -> tuple[str, str]:
    """Bucket and name of a `gs://` URI."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return bucket, name


def _blob(uri: str, generation: str | None = None) -> Any:
    bucket, name = _split(uri)
    return _client().bucket(bucket).blob(name, generation=int(generation) if generation else None)


def _live_blob(uri: str) -> Any:
    """The object as it stands now, with its generation and size; None when there is none."""
    bucket, name = _split(uri)
    return _client().bucket(bucket).get_blob(name) if name else None


def list_objects(uri: str) -> list[Object]:
    """Every object below a folder or bucket prefix (or the one object that `uri` names), sorted by URI.

    Hidden files and folders (`.name`) are left out. Local links to files are followed, links to folders
    are not.

    Raises:
        StorageError: no such folder or bucket, nothing below a prefix, or a folder that cannot be read:
            what is not seen must not look as if it had been deleted.
    """
    with _control_path(uri):
        return sorted(_list_remote(uri) if is_remote(uri) else _list_local(uri))


def require(uri: str) -> None:
    """Raise StorageError unless `uri` is a folder or holds an object: a cheap look before long work."""
    with _control_path(uri):
        if is_remote(uri):
            next(_list_remote(uri), None)
        elif not Path(uri).exists():
            raise StorageError(f"{uri}: no such folder")


@contextmanager
def _control_path(uri: str) -> Iterator[None]:
    """Turn what file systems and clients raise into StorageError; what is not found stays not found."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(uri) from error
    except _store_errors() as error:
        raise StorageError(f"{uri}: {type(error).__name__}: {error}") from error


@functools.cache
def _store_errors() -> tuple[type[Exception], ...]:
    try:
        from google.api_core.exceptions import ClientError
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        return (OSError,)
    return OSError, ClientError, GoogleAuthError


def _list_remote(uri: str) -> Iterator[Object]:
    bucket, name = _split(uri)
    folder = f"{name}/" if name else ""
    found = False
    one = _live_blob(uri)
    for blob in [one] if one else _client().list_blobs(bucket, prefix=folder):
        found = True
        hidden = any(part.startswith(".") for part in blob.name.removeprefix(folder).split("/"))
        if not hidden and not blob.name.endswith("/"):
            yield Object(f"gs://{bucket}/{blob.name}", str(blob.generation), int(blob.size))
    if not found:
        raise StorageError(f"{uri}: nothing there")


def _list_local(uri: str) -> Iterator[Object]:
    root = Path(uri)
    if root.is_file():
        yield _local_object(root)
        return
    if not root.is_dir():
        raise StorageError(f"{uri}: no such folder")
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield _local_object(Path(folder, name))


def _raise(error: OSError) -> None:
    raise error


def _local_object(path: Path) -> Object:
    """Names that are not UTF-8 are listed escaped: they cannot be stored in a table as they are."""
    uri = os.fsencode(path).decode(errors="backslashreplace")
    try:
        info = path.stat()
    except OSError:
        return Object(uri, "", 0)
    return Object(uri, _local_generation(info), info.st_size)


def _local_generation(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def read_object(obj: Object, max_bytes: int) -> bytes | Reject:
    """The bytes of exactly the version listed, or why they cannot be had. Never raises."""
    if obj.bytes > max_bytes:
        return Reject(Reason.TOO_LARGE_FILE, f"{obj.bytes} bytes; the limit is {max_bytes}")
    try:
        return _read_remote(obj) if is_remote(obj.uri) else _read_local(obj)
    except FileNotFoundError:
        return Reject(Reason.VANISHED, "listed, but gone when it was read")
    except Exception as error:  # whatever a file system or client throws, the object keeps its row
        return Reject(Reason.UNREADABLE, f"{type(error).__name__}: {error}"[:500])


def _read_local(obj: Object) -> bytes | Reject:
    path = Path(obj.uri)
    if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
        return Reject(Reason.UNREADABLE, "not a regular file")
    with path.open("rb") as file:
        data = file.read()
        now = _local_generation(os.fstat(file.fileno()))
    if now != obj.generation:
        return Reject(Reason.CHANGED, f"generation {now} when read, {obj.generation} when listed")
    return data


def _read_remote(obj: Object) -> bytes | Reject:
    try:
        with _not_found(obj.uri):
            return bytes(_blob(obj.uri, obj.generation).download_as_bytes(timeout=60))
    except FileNotFoundError:
        if exists(obj.uri):
            return Reject(Reason.CHANGED, f"no longer generation {obj.generation}")
        raise


def exists(uri: str) -> bool:
    """True when an object of exactly this name exists."""
    return bool(_blob(uri).exists()) if is_remote(uri) else Path(uri).is_file()


def read_bytes(uri: str) -> bytes:
    """A whole object. Raises FileNotFoundError when there is none, StorageError when it cannot be read."""
    with _control_path(uri), _not_found(uri):
        return bytes(_blob(uri).download_as_bytes(timeout=60)) if is_remote(uri) else Path(uri).read_bytes()


@contextmanager
def open_input(uri: str) -> Iterator[IO[bytes]]:
    """An object as a seekable binary file; of a remote one only the ranges read are fetched.

    Raises FileNotFoundError when there is none, StorageError when it cannot be read.
    """
    source = _blob(uri) if is_remote(uri) else Path(uri)
    with _control_path(uri), _not_found(uri), source.open("rb") as file:
        yield file


@contextmanager
def _not_found(uri: str) -> Iterator[None]:
    """Give a bucket's "not found" the name that it has for a file."""
    if not is_remote(uri):
        yield
        return
    from google.api_core.exceptions import NotFound

    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(uri) from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object: readers see the old bytes or the new, never a part."""
    with replacing(uri) as path:
        path.write_bytes(data)


def update(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace an object by a function of its bytes (None: there is none), losing no other writer's change.

    `change` may be called more than once. Raises StorageError when others keep writing.
    """
    if is_remote(uri):
        _update_remote(uri, change)
        return
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    with Path(uri).with_name(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_bytes(uri, change(Path(uri).read_bytes() if Path(uri).exists() else None))


def _update_remote(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    for _ in range(20):
        try:
            seen = _live_blob(uri)
            old = seen.download_as_bytes() if seen else None
            _blob(uri).upload_from_string(change(old), if_generation_match=seen.generation if seen else 0)
            return
        except (NotFound, PreconditionFailed):  # another writer was faster: read again
            continue
    raise StorageError(f"{uri}: other runs keep writing it")


@contextmanager
def replacing(uri: str) -> Iterator[Path]:
    """A local temporary file that becomes the object `uri` when the block ends without an error."""
    with temporary(uri.rsplit("/", 1)[0]) as path:
        yield path
        publish(path, uri)


@contextmanager
def temporary(folder: str) -> Iterator[Path]:
    """A local temporary file from which `publish` can make an object in `folder`; gone afterwards."""
    with _control_path(folder):
        if not is_remote(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=None if is_remote(folder) else folder, prefix=".partial-")
        os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def publish(path: Path, uri: str) -> None:
    """Make a finished temporary file the object `uri`, whole: by upload, or by renaming it."""
    with _control_path(uri):
        if is_remote(uri):
            # A browser shows a report only when the bucket says that it is HTML.
            kind = mimetypes.guess_type(uri)[0] or "application/octet-stream"
            _blob(uri).upload_from_filename(str(path), content_type=kind)
            return
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o666 & ~_UMASK)
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        path.replace(uri)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once: asking for it means setting it, for all threads.
_UMASK = _umask()


def delete(uri: str) -> None:
    """Remove an object; one that is gone already is no error."""
    with suppress(FileNotFoundError), _not_found(uri):
        _blob(uri).delete() if is_remote(uri) else Path(uri).unlink()
