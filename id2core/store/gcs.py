"""Buckets of Google Cloud Storage as a store: `gs://bucket/name`."""

from __future__ import annotations

import functools
import mimetypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from id2core.errors import ChangedObjectError, EmptyPlaceError, StorageError
from id2core.store.base import UNSEEN, Entry, Noted, Object, Remark, Store
from id2core.store.rejects import Reason, Reject

SCHEME = "gs://"
# A store that says nothing for so long is asked again.
SILENCE_SECONDS = 60.0
# So long a call is tried again, with pauses that grow and vary.
ATTEMPTS_SECONDS = 120.0
# Fetched at once where headers are read here and there.
CHUNK_BYTES = 1 << 20


class GcsStore(Store):
    """Objects in buckets; anonymous against an emulator (`STORAGE_EMULATOR_HOST`)."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:  # type: ignore[override]
        """What the client raises, and OSError of files that are uploaded."""
        try:
            from google.api_core.exceptions import GoogleAPIError
            from google.auth.exceptions import GoogleAuthError
        except ImportError:
            return (OSError,)
        return OSError, GoogleAPIError, GoogleAuthError, *_broken_bodies()

    @property
    def transient(self) -> tuple[type[Exception], ...]:  # type: ignore[override]
        """What passes: the client has tried again for `ATTEMPTS_SECONDS` before it raises these."""
        try:
            from google.api_core.exceptions import RetryError, ServerError, TooManyRequests
            from requests.exceptions import ConnectionError, Timeout
        except ImportError:
            return ()
        return RetryError, ServerError, TooManyRequests, ConnectionError, Timeout, *_broken_bodies()

    def normalize(self, uri: str) -> str:
        """Return the URI without a trailing slash."""
        bucket, name = _split(uri)
        if not bucket:
            raise StorageError(f"{uri!r} names no bucket; write gs://BUCKET/FOLDER")
        return f"{SCHEME}{bucket}/{name.strip('/')}".rstrip("/")

    def list(self, uri: str) -> Iterator[Object | Noted]:
        """Yield the objects below a prefix that ends at a slash; without any, the one that `uri` names.

        An empty object whose name ends in a slash is a folder marker. An object that bears the prefix's own
        name hides nothing below the prefix.
        """
        bucket, name = _split(uri)
        empty = True
        for blob in _client().list_blobs(bucket, prefix=f"{name}/" if name else "", **_patient()):
            empty = False
            marker = blob.name.endswith("/") and not blob.size
            yield Noted(f"{SCHEME}{bucket}/{blob.name}", Remark.FOLDER_MARKER) if marker else _object(blob)
        namesake = _client().bucket(bucket).get_blob(name, **_patient()) if name else None
        if namesake:
            yield _object(namesake) if empty else Noted(uri, Remark.NAMESAKE)
        elif empty:
            raise EmptyPlaceError(f"{uri}: nothing there")

    def entries(self, uri: str, below: bool = True) -> Iterator[Entry]:
        """Yield the objects below a prefix with the times when they were updated."""
        bucket, name = _split(uri)
        folder = f"{name}/" if name else ""
        delimiter = None if below else "/"
        for blob in _client().list_blobs(bucket, prefix=folder, delimiter=delimiter, **_patient()):
            yield Entry(f"{SCHEME}{bucket}/{blob.name}", blob.updated.timestamp())

    def read(self, obj: Object) -> bytes | Reject:
        """Return the bytes of the generation that was listed."""
        if obj.generation == UNSEEN:  # asked for "", a bucket gives the latest
            if self.exists(obj.uri):
                return Reject(Reason.CHANGED, "it could not be seen when it was listed")
            raise FileNotFoundError(obj.uri)
        try:
            with self._version(obj):
                return _download(_blob(obj.uri, obj.generation))
        except ChangedObjectError:
            return Reject(Reason.CHANGED, f"no longer generation {obj.generation}")

    def read_marked(self, uri: str) -> tuple[bytes, str]:
        """Return an object and its generation."""
        with _not_found(uri):
            blob = _blob(uri)
            data = _download(blob)
            return data, str(blob.generation)

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """Open an object, of which only the ranges that are read are fetched."""
        with _not_found(uri), _blob(uri).open("rb") as file:
            yield file

    def find(self, uri: str) -> Object:
        """Return an object as it would be listed."""
        bucket, name = _split(uri)
        blob = _client().bucket(bucket).get_blob(name, **_patient()) if name else None
        if blob is None:
            raise FileNotFoundError(uri)
        return _object(blob)

    @contextmanager
    def open_version(self, obj: Object) -> Iterator[IO[bytes]]:
        """Open a generation, of which the ranges that are read are fetched, `CHUNK_BYTES` at least."""
        with self._version(obj), _blob(obj.uri, obj.generation).open("rb", chunk_size=CHUNK_BYTES) as file:
            yield file

    def read_range(self, obj: Object, start: int, size: int) -> bytes:
        """Return bytes of a generation by one request."""
        if size == 0:
            return b""
        with self._version(obj):
            blob = _blob(obj.uri, obj.generation)
            return _download(blob, start=start, end=start + size - 1)

    @contextmanager
    def _version(self, obj: Object) -> Iterator[None]:
        """Tell an object that was replaced from one that is gone."""
        try:
            with _not_found(obj.uri):
                yield
        except FileNotFoundError:
            if self.exists(obj.uri):
                raise ChangedObjectError(f"{obj.uri}: no longer generation {obj.generation}") from None
            raise

    def exists(self, uri: str) -> bool:
        """Return whether there is such an object."""
        return bool(_blob(uri).exists(**_patient()))

    def size(self, uri: str) -> int | None:
        """Return the size of an object."""
        bucket, name = _split(uri)
        blob = _client().bucket(bucket).get_blob(name, **_patient())
        return int(blob.size) if blob else None

    def publish(self, path: Path, uri: str) -> None:
        """Upload a file."""
        # A browser shows a report only when the bucket says that it is HTML.
        kind = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        _blob(uri).upload_from_filename(str(path), content_type=kind, **_patient())

    def write_if(self, uri: str, data: bytes, mark: str) -> bool:
        """Upload an object if its generation is still the same."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            _blob(uri).upload_from_string(data, if_generation_match=int(mark or 0), **_patient())
        except (NotFound, PreconditionFailed):
            return self._holds(uri, data)
        return True

    def _holds(self, uri: str, data: bytes) -> bool:
        """Whether an object has these bytes: the answer to a write that succeeded may have been lost."""
        try:
            return self.read_marked(uri)[0] == data
        except FileNotFoundError:
            return False

    def move(self, uri: str, target: str) -> None:
        """Have the bucket copy one generation of an object, then remove that generation."""
        from google.api_core.exceptions import PreconditionFailed

        with _not_found(uri):
            source = _rewritten(uri, target)
            try:
                source.delete(if_generation_match=source.generation, **_patient())
            except PreconditionFailed as error:
                raise FileNotFoundError(uri) from error

    def copy(self, uri: str, target: str) -> None:
        """Have the bucket copy one generation of an object."""
        with _not_found(uri):
            _rewritten(uri, target)

    def delete(self, uri: str) -> None:
        """Remove an object."""
        with _not_found(uri):
            _blob(uri).delete(**_patient())


def _rewritten(uri: str, target: str) -> Any:
    """Have the bucket copy an object; return the blob of the generation that was copied."""
    source, token = _blob(uri), None
    source.reload(**_patient())
    while True:  # a large object is copied in several calls
        token, _, _ = _blob(target).rewrite(
            source, token=token, if_source_generation_match=source.generation, **_patient()
        )
        if token is None:
            return source


def _retry() -> Any:
    """Try again, with jitter, what may pass: 408, 429, 5xx, broken connections and broken bodies."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    passes = DEFAULT_RETRY._predicate
    return DEFAULT_RETRY.with_predicate(
        lambda error: passes(error) or isinstance(error, _broken_bodies())
    ).with_timeout(ATTEMPTS_SECONDS)


def _patient() -> dict[str, Any]:
    """Arguments of every call: how long it waits, and what it tries again."""
    return {"timeout": SILENCE_SECONDS, "retry": _retry()}


def _broken_bodies() -> tuple[type[Exception], ...]:
    """What the client raises where a body is not the one that the store's checksum is of."""
    try:
        from google.cloud.storage.exceptions import DataCorruption
    except ImportError:
        return ()
    return (DataCorruption,)


def _download(blob: Any, start: int | None = None, end: int | None = None) -> bytes:
    """Return an object, whole: its length and its checksum are the store's. Or a range, end included."""
    part: dict[str, Any] = {} if end is None else {"start": start, "end": end, "checksum": None}
    download = functools.partial(blob.download_as_bytes, timeout=SILENCE_SECONDS, retry=None, **part)
    data = bytes(_retry()(download)())
    if part:
        return data
    if blob.size is not None and blob.content_encoding is None and len(data) != blob.size:
        from google.cloud.storage.exceptions import DataCorruption

        raise DataCorruption(None, f"{len(data)} bytes of {blob.size} arrived")
    return data


@functools.cache
def _client() -> Any:
    """One client per process."""
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    except ImportError as error:
        raise StorageError("gs:// needs the extra `gcs`: pip install 'id2[gcs]'") from error
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    return storage.Client()


def _split(uri: str) -> tuple[str, str]:
    """Return bucket and object name of a `gs://` URI."""
    bucket, _, name = uri.removeprefix(SCHEME).partition("/")
    return bucket, name


def _object(blob: Any) -> Object:
    return Object(f"{SCHEME}{blob.bucket.name}/{blob.name}", str(blob.generation), int(blob.size))


def _blob(uri: str, generation: str | None = None) -> Any:
    bucket, name = _split(uri)
    return _client().bucket(bucket).blob(name, generation=int(generation) if generation else None)


@contextmanager
def _not_found(uri: str) -> Iterator[None]:
    """Give a bucket's "not found" the name that it has for a file."""
    _client()  # says what to install
    from google.api_core.exceptions import NotFound

    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(uri) from error
