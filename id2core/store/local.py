"""Local folders as a store."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from id2core.errors import ChangedObjectError, EmptyPlaceError, StorageError
from id2core.store import names
from id2core.store.base import UNSEEN, Entry, Noted, Object, Remark, Store
from id2core.store.rejects import Reason, Reject

if TYPE_CHECKING:
    import pyarrow as pa

# What the name of a file begins with while it is written.
PARTIAL: Final = ".partial-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Names of a folder that are in memory as Python's text.
_CHUNK = 50_000
# Read once: asking for it means setting it, for all threads.
_UMASK = _umask()
# What a disk answers that gives a file no second name there.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


class LocalStore(Store):
    """Files below folders of this machine, or of a disk that is mounted on it."""

    def normalize(self, uri: str) -> str:
        """Return the absolute path, spelled as `names` says."""
        if "\0" in uri:
            raise StorageError(f"{uri!r}: a path holds no NUL")
        # Not `Path.expanduser`, which raises where there is no such user; `abspath` collapses `..`.
        return names.spell(os.path.abspath(os.path.expanduser(path_of(uri))))  # noqa: PTH100, PTH111

    def list(self, uri: str) -> Iterator[Object | Noted]:
        """Yield the files below a folder; links are followed, and a folder is listed once."""
        root = path_of(uri)
        try:
            info = root.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EmptyPlaceError(f"{uri}: no such folder") from error
        if stat.S_ISREG(info.st_mode):
            return iter([_object(root, info)])
        if not stat.S_ISDIR(info.st_mode):
            raise StorageError(f"{uri}: no such folder")
        return _Walk(root).objects()

    def entries(self, uri: str, below: bool = True) -> Iterator[Entry]:
        """Yield every file in a folder with its time of modification."""
        for folder, folders, files in os.walk(path_of(uri)):
            for name in files:
                path = Path(folder, name)
                with suppress(OSError):  # it is gone, or cannot be seen
                    yield Entry(names.spell(str(path)), path.lstat().st_mtime)
            if not below:
                folders.clear()

    def require(self, uri: str) -> None:
        """Raise StorageError unless the path exists."""
        if not path_of(uri).exists():
            raise StorageError(f"{uri}: no such folder")

    def read(self, obj: Object) -> bytes | Reject:
        """Return the bytes of a regular file that did not change since it was listed."""
        path = path_of(obj.uri)
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            return Reject(Reason.UNREADABLE, "not a regular file")
        with path.open("rb") as file:
            # A file that grows meanwhile may be larger than memory.
            data = file.read(obj.bytes + 1)
            now = _generation(os.fstat(file.fileno()))
        if now != obj.generation:
            return Reject(Reason.CHANGED, f"generation {now} when read, {obj.generation} when listed")
        return data

    def read_marked(self, uri: str) -> tuple[bytes, str]:
        """Return a file's bytes and its mark."""
        with _open_regular(uri) as file:
            return file.read(), _mark(os.fstat(file.fileno()))

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file."""
        with _open_regular(uri) as file:
            yield file

    def find(self, uri: str) -> Object:
        """Return a regular file as it would be listed."""
        with _missing_if_no_folder(uri):
            info = path_of(uri).stat()
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(uri)
        return _object(path_of(uri), info)

    @contextmanager
    def open_version(self, obj: Object) -> Iterator[IO[bytes]]:
        """Open a file, which must not change until the block ends."""
        with _open_regular(obj.uri) as file:
            _check_generation(file.fileno(), obj)
            yield file
            _check_generation(file.fileno(), obj)

    def read_range(self, obj: Object, start: int, size: int) -> bytes:
        """Return bytes of a file that did not change since it was listed."""
        handle = _regular_handle(obj.uri)
        try:
            _check_generation(handle, obj)
            data = _read_at(handle, start, size)
            _check_generation(handle, obj)
        finally:
            os.close(handle)
        return data

    def exists(self, uri: str) -> bool:
        """Return whether there is such a file."""
        return path_of(uri).is_file()

    def size(self, uri: str) -> int | None:
        """Return the size of a file."""
        return path_of(uri).stat().st_size

    def contains(self, folder: str, uri: str) -> bool:
        """Return whether a file lies below the folder when links are resolved."""
        # Not `Path.resolve`, which raises RuntimeError at links in a circle: these lead nowhere.
        return Path(os.path.realpath(path_of(uri))).is_relative_to(os.path.realpath(path_of(folder)))

    def staging_folder(self, folder: str) -> Path | None:
        """Return the folder itself: a file is renamed within one disk."""
        path_of(folder).mkdir(parents=True, exist_ok=True)
        return path_of(folder)

    def publish(self, path: Path, uri: str) -> None:
        """Rename a file to its place, once its bytes are on the disk."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o666 & ~_UMASK)
        path_of(uri).parent.mkdir(parents=True, exist_ok=True)
        path.replace(path_of(uri))

    def write_if(self, uri: str, data: bytes, mark: str) -> bool:
        """Write a file under the folder's lock, if its mark is still the same."""
        with _locked(uri):
            if (_mark(path_of(uri).stat()) if path_of(uri).exists() else "") != mark:
                return False
            self._replace(uri, data)
            return True

    def update(self, uri: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a file under the folder's lock: writers wait for each other."""
        with _locked(uri):
            self._replace(uri, change(path_of(uri).read_bytes() if path_of(uri).exists() else None))

    def move(self, uri: str, target: str) -> None:
        """Rename a file; to another disk, which knows no renaming, it is copied first."""
        source, place = path_of(uri), path_of(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._move_across(source, target)

    def _move_across(self, source: Path, target: str) -> None:
        self._copy_bytes(source, target)
        source.unlink()

    def copy(self, uri: str, target: str) -> None:
        """Give a file a second name; where the disk knows no such names, its bytes are copied."""
        source, place = path_of(uri), path_of(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, place)
        except FileExistsError:
            if not source.samefile(place):
                self._copy_bytes(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy_bytes(source, target)

    def _copy_bytes(self, source: Path, target: str) -> None:
        partial = path_of(target).with_name(f"{PARTIAL}{os.getpid()}-{source.name}")
        try:
            shutil.copyfile(source, partial)
            self.publish(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, uri: str) -> None:
        """Remove a file."""
        path_of(uri).unlink()

    def _replace(self, uri: str, data: bytes) -> None:
        partial = path_of(uri).with_name(f"{PARTIAL}{os.getpid()}-{path_of(uri).name}")
        try:
            partial.write_bytes(data)
            self.publish(partial, uri)
        finally:
            partial.unlink(missing_ok=True)


class _Entry(NamedTuple):
    """What a folder has."""

    path: str
    is_link: bool
    is_folder: bool


class _Walk:
    """One listing of a folder.

    What cannot be seen must not look as if it had been deleted. A file or folder of the root that cannot be
    looked at fails the listing, for its owner can mend it. A link proves nothing of its target, and whoever
    uploads may have made it: what cannot be seen through a link is listed as `UNSEEN`, and so is a path that
    is too long for the system.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[tuple[int, int]] = set()
        self._above = {_identity(folder.stat()) for folder in Path(os.path.realpath(root)).parents}
        self._links: list[str] = []

    def objects(self) -> Iterator[Object | Noted]:
        """Yield files, and remarks: folders before links to folders, so that a file has its own path."""
        yield from self._below(os.fspath(self._root), linked=False)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                yield from self._through(link)

    def _through(self, link: str) -> Iterator[Object | Noted]:
        """What lies behind a link to a folder."""
        try:
            identity = _identity(Path(link).stat())
        except OSError:
            yield _unseen(link)
            return
        if identity in self._above:
            yield Noted(names.spell(link), Remark.FOLDER_ABOVE)
        elif identity in self._seen:
            yield Noted(names.spell(link), Remark.SAME_FOLDER)
        else:
            yield Noted(names.spell(link), Remark.LINK)
            yield from self._below(link, linked=True)

    def _below(self, top: str, *, linked: bool) -> Iterator[Object | Noted]:
        """What lies below a folder, in order of URI, without links to folders: these are kept for later."""
        waiting = [iter([_Entry(top, is_link=False, is_folder=True)])]
        while waiting:
            entry = next(waiting[-1], None)
            if entry is None:
                waiting.pop()
            elif not entry.is_folder:
                yield from _file(entry, linked=linked)
            elif entry.is_link:
                self._links.append(entry.path)
            else:
                try:
                    waiting.append(self._inside(entry.path))
                except OSError as error:
                    yield _unseen_or_raise(entry.path, error, linked=linked)

    def _inside(self, folder: str) -> Iterator[_Entry]:
        """Return what is in a folder; nothing where that is listed already."""
        identity = _identity(Path(folder).stat())
        if identity in self._seen:
            return iter(())
        self._seen.add(identity)
        return _entries(folder)


def path_of(uri: str) -> Path:
    """Return the path that a local URI names, by its bytes."""
    return Path(names.native(uri))


def _open_regular(uri: str) -> IO[bytes]:
    return os.fdopen(_regular_handle(uri), "rb")


def _regular_handle(uri: str) -> int:
    """Open a file, and nothing that could wait for ever, such as a FIFO."""
    handle = os.open(names.native(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise IsADirectoryError(uri) if stat.S_ISDIR(mode) else OSError("not a regular file")


def _read_at(handle: int, start: int, size: int) -> bytes:
    """Return bytes of an open file, fewer at its end; one call of the system gives at most 2 GiB."""
    data = os.pread(handle, size, start)
    while len(data) < size and (more := os.pread(handle, size - len(data), start + len(data))):
        data += more
    return data


@contextmanager
def _missing_if_no_folder(uri: str) -> Iterator[None]:
    """Say "not found" also of what lies below a file, or has a name that no file can have."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise FileNotFoundError(uri) from error
        raise


def _check_generation(handle: int, obj: Object) -> None:
    now = _generation(os.fstat(handle))
    if now != obj.generation:
        raise ChangedObjectError(f"{obj.uri}: generation {now} when read, {obj.generation} when listed")


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _entries(folder: str) -> Iterator[_Entry]:
    """Return what is in a folder, in order of URI: there, a folder's name ends in a slash.

    A folder of millions is kept as Arrow text, at a third of the memory of Python's.
    """
    spelled: list[str] = []
    chunks: list[pa.Array] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link, is_folder = _says(entry.is_symlink), _says(entry.is_dir)
            spelled.append(f"{names.spell(entry.name)}{'/' * is_folder}\0{int(is_link)}")
            if len(spelled) == _CHUNK:
                import pyarrow as pa  # only a large folder needs it

                chunks.append(pa.array(spelled))
                spelled = []
    if not chunks:
        return (_entry(folder, text) for text in sorted(spelled))
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.chunked_array([*chunks, pa.array(spelled, pa.string())])
    return _in_order(folder, column.take(pc.array_sort_indices(column)))


def _in_order(folder: str, column: pa.ChunkedArray) -> Iterator[_Entry]:
    for start in range(0, len(column), _CHUNK):
        for text in column.slice(start, _CHUNK).to_pylist():
            yield _entry(folder, text)


def _entry(folder: str, text: str) -> _Entry:
    name, _, is_link = text.rpartition("\0")
    path = f"{folder.rstrip('/')}/{names.native(name.removesuffix('/'))}"
    return _Entry(path, is_link=is_link == "1", is_folder=name.endswith("/"))


def _says(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # `_file` says what is the matter
        return False


def _file(entry: _Entry, *, linked: bool) -> Iterator[Object | Noted]:
    try:
        yield _object(entry.path, Path(entry.path).stat())
    except OSError as error:
        yield _unseen_or_raise(entry.path, error, linked=linked or entry.is_link)
    if entry.is_link:
        yield Noted(names.spell(entry.path), Remark.LINK)


def _unseen_or_raise(path: str, error: OSError, *, linked: bool) -> Object:
    """Return what a listing has of a path that cannot be looked at."""
    if linked or error.errno in (errno.ENOENT, errno.ENAMETOOLONG):  # gone since, or too long for all calls
        return _unseen(path)
    raise StorageError(
        f"{names.spell(path)} cannot be looked at: {error.strerror}. What cannot be seen is not taken for "
        "deleted, and nothing was changed: mend its permissions or its disk"
    ) from error


def _unseen(path: str) -> Object:
    return Object(names.spell(path), UNSEEN, 0)


def _object(path: str | Path, info: os.stat_result) -> Object:
    return Object(names.spell(path), _generation(info), info.st_size)


def _generation(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _mark(info: os.stat_result) -> str:
    """Tell versions of a file apart, also ones of equal size written within a tick of the clock."""
    return f"{info.st_mtime_ns:x}-{info.st_ctime_ns:x}-{info.st_size:x}-{info.st_ino:x}"


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    """Let one process or thread at a time update files of a folder; its holder removes the lock's file."""
    path = path_of(uri).with_name(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_file(path, lock.fileno()):  # its last holder has removed it: others lock a new one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file(path: Path, file: int) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
