"""A bucket behind a network that fails: what passes is tried again, what does not is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.cloud.storage import retry as client_retry

from id2core.errors import StorageError, StoreUnavailableError
from id2core.store import gcs as gcs_store
from id2core.store import storage
from id2core.store.rejects import Reason, Reject
from tests.fault_proxy import CUT, LOST, SILENT, FaultProxy

DATA = bytes(range(256)) * 64


@pytest.fixture
def proxy(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    # The client also asks for the bucket itself, whenever it likes.
    proxy = FaultProxy(os.environ["STORAGE_EMULATOR_HOST"], about="/o")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(gcs_store, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(gcs_store, "ATTEMPTS_SECONDS", 20.0)
    monkeypatch.setattr(client_retry, "DEFAULT_RETRY", client_retry.DEFAULT_RETRY.with_delay(0.01, 0.05))
    gcs_store._client.cache_clear()
    yield proxy
    gcs_store._client.cache_clear()
    proxy.close()


@pytest.fixture
def uri(gcs: str, tmp_path: Path) -> str:
    return f"gs://{gcs}/{tmp_path.name}/x.bin"


@pytest.mark.parametrize("fault", [CUT, 429, 500, 503, LOST, SILENT])
def test_a_read_that_fails_is_tried_again(fault: str | int, proxy: FaultProxy, uri: str) -> None:
    storage.write_bytes(uri, DATA)
    [listed] = storage.list_objects(uri)
    for read in (lambda: storage.read_bytes(uri), lambda: storage.read_object(listed, 1 << 20)):
        proxy.faults = [("GET", fault)] * 2
        assert read() == DATA
        assert not proxy.faults
    proxy.faults = [("GET", fault)]
    assert storage.list_objects(uri.rpartition("/")[0]) == [listed]


@pytest.mark.parametrize("fault", [429, 503, LOST, SILENT])
def test_a_write_whose_answer_is_lost_has_been_written(fault: str | int, proxy: FaultProxy, uri: str) -> None:
    proxy.faults = [("POST", fault)]
    storage.write_bytes(uri, DATA)
    assert storage.read_bytes(uri) == DATA
    mark = storage.read_marked(uri)[1]
    proxy.faults = [("POST", fault)]
    assert storage.write_if(uri, b"next", mark) and storage.read_bytes(uri) == b"next"
    assert not storage.write_if(uri, b"too late", mark)


def test_what_never_passes_is_named_and_worth_another_try(
    proxy: FaultProxy, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(uri, DATA)
    [listed] = storage.list_objects(uri)
    monkeypatch.setattr(gcs_store, "ATTEMPTS_SECONDS", 0.3)
    for fault in (CUT, 503):
        proxy.faults = [("GET", fault)] * 1000
        with pytest.raises(StoreUnavailableError, match=r"x\.bin") as caught:
            storage.read_bytes(uri)
        assert caught.value.transient
        reject = storage.read_object(listed, 1 << 20)
        assert isinstance(reject, Reject) and reject.reason is Reason.UNREADABLE


def test_what_is_forbidden_is_not_tried_again(proxy: FaultProxy, uri: str) -> None:
    seen = proxy.seen
    proxy.faults = [("GET", 403)]
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(uri)
    assert not caught.value.transient and proxy.seen == seen + 1
