"""Local folders as a store."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from id2core.errors import StorageError
from id2core.store.base import Entry, Object, Store
from id2core.store.rejects import Reason, Reject


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once: asking for it means setting it, for all threads.
_UMASK = _umask()


class LocalStore(Store):
    """Files below folders of this machine, or of a disk that is mounted on it."""

    def normalize(self, uri: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 (collapses ..)

    def list(self, uri: str) -> Iterator[Object]:
        """Yield the files below a folder; links are followed, and a folder is listed once."""
        root = Path(uri)
        if root.is_file():
            yield _object(root)
            return
        if not root.is_dir():
            raise StorageError(f"{uri}: no such folder")
        seen: set[tuple[int, int]] = set()
        waiting = [root]
        # Folders before links to folders: what lies below the root is named by its own path.
        while waiting:
            links: list[Path] = []
            for folder in waiting:
                yield from _below(folder, seen, links)
            waiting = sorted(links)

    def entries(self, uri: str, below: bool = True) -> Iterator[Entry]:
        """Yield every file in a folder with its time of modification."""
        for folder, folders, names in os.walk(uri):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):  # it is gone, or cannot be seen
                    yield Entry(str(path), path.lstat().st_mtime)
            if not below:
                folders.clear()

    def require(self, uri: str) -> None:
        """Raise StorageError unless the path exists."""
        if not Path(uri).exists():
            raise StorageError(f"{uri}: no such folder")

    def read(self, obj: Object) -> bytes | Reject:
        """Return the bytes of a regular file that did not change since it was listed."""
        path = Path(obj.uri)
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
        with Path(uri).open("rb") as file:
            return file.read(), _mark(os.fstat(file.fileno()))

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file."""
        with Path(uri).open("rb") as file:
            yield file

    def exists(self, uri: str) -> bool:
        """Return whether there is such a file."""
        return Path(uri).is_file()

    def staging_folder(self, folder: str) -> Path | None:
        """Return the folder itself: a file is renamed within one disk."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)

    def publish(self, path: Path, uri: str) -> None:
        """Rename a file to its place, once its bytes are on the disk."""
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o666 & ~_UMASK)
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        path.replace(uri)

    def write_if(self, uri: str, data: bytes, mark: str) -> bool:
        """Write a file under the folder's lock, if its mark is still the same."""
        with _locked(uri):
            if (_mark(Path(uri).stat()) if Path(uri).exists() else "") != mark:
                return False
            self._replace(uri, data)
            return True

    def update(self, uri: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a file under the folder's lock: writers wait for each other."""
        with _locked(uri):
            self._replace(uri, change(Path(uri).read_bytes() if Path(uri).exists() else None))

    def delete(self, uri: str) -> None:
        """Remove a file."""
        Path(uri).unlink()

    def _replace(self, uri: str, data: bytes) -> None:
        partial = Path(uri).with_name(f".partial-{os.getpid()}-{Path(uri).name}")
        try:
            partial.write_bytes(data)
            self.publish(partial, uri)
        finally:
            partial.unlink(missing_ok=True)


def _below(root: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Object]:
    """The files below a folder that was not seen yet; links to folders are gathered in `links`."""
    for folder, folders, names in os.walk(root, onerror=_raise):
        info = Path(folder).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if (path := Path(folder, name)).is_symlink()]
        for name in names:
            if not name.startswith("."):
                yield _object(Path(folder, name))


def _raise(error: OSError) -> None:
    raise error


def _object(path: Path) -> Object:
    """Names that are not UTF-8 are listed escaped: they cannot be stored in a table as they are."""
    uri = os.fsencode(path).decode(errors="backslashreplace")
    try:
        info = path.stat()
    except OSError:
        return Object(uri, "", 0)
    return Object(uri, _generation(info), info.st_size)


def _generation(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _mark(info: os.stat_result) -> str:
    """Tell versions of a file apart, also ones of equal size written within a tick of the clock."""
    return f"{info.st_mtime_ns:x}-{info.st_ctime_ns:x}-{info.st_size:x}-{info.st_ino:x}"


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    """Let one process or thread at a time update files of a folder; its holder removes the lock's file."""
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    path = Path(uri).with_name(".lock")
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
