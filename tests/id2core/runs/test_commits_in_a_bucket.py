"""Leases, commits side by side, and their moves, in a bucket: an emulator behind a network that may fail."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.cloud.storage import retry as client_retry

from id2core.errors import RunInProgressError, StorageError
from id2core.runs import leases, planning
from id2core.runs.execution import Execution
from id2core.store import datasets, moves, storage
from id2core.store import gcs as gcs_store
from id2core.store.datasets import Dataset
from tests.fault_proxy import CUT, LOST, PASS, FaultProxy
from tests.id2core.runs.test_sources import SCHEMA, Drawn, make, plan, run

NIGHTS, NAMES = 3, ("one", "two", "three")


@pytest.fixture
def out(gcs: str, tmp_path: Path) -> str:
    return f"gs://{gcs}/{tmp_path.name}/out"


@pytest.fixture
def proxy(request: pytest.FixtureRequest, out: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before the emulator; with a parameter, only requests with it in their path fail."""
    proxy = FaultProxy(os.environ["STORAGE_EMULATOR_HOST"], about=getattr(request, "param", "/o"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client_retry, "DEFAULT_RETRY", client_retry.DEFAULT_RETRY.with_delay(0.01, 0.05))
    gcs_store._client.cache_clear()
    yield proxy
    gcs_store._client.cache_clear()
    proxy.close()


def names(out: str, folder: str) -> set[str]:
    """What a glob sees below a folder: Parquet files alone."""
    return {name for name in moves.names_in(storage.join(out, folder)) if name.endswith(".parquet")}


def check(out: str, uris: set[str]) -> Dataset:
    """Every row stands once, and a glob sees the committed files alone."""
    dataset = Dataset.open(storage.join(out, "copies"))
    assert sorted(dataset.read(SCHEMA)["uri"].to_pylist()) == sorted(uris)
    for name in ("copies", "rejects"):
        committed = Dataset.open(storage.join(out, name)).files
        assert names(out, name) == {file.name for file in committed}
        assert names(out, f"_staging/files/{name}") == set()
    return dataset


def feed(out: str, name: str) -> set[str]:
    """Run some nights of one source, each of which adds, keeps, and drops an object; return what is left."""
    source = Drawn(f"/{name}")
    for night in range(NIGHTS):
        source.objects = {"kept": "1", f"night{night}": "1", f"bad{night}": "1"}
        run(source, out, f"{name}-{night}")
    return {f"/{name}/{object}" for object in source.objects if "bad" not in object}


@pytest.mark.parametrize("faulty", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sources_of_one_corpus_commit_side_by_side(faulty: bool, proxy: FaultProxy, out: str) -> None:
    if faulty:
        faults = list(itertools.product(("GET", "POST", "DELETE"), (503, LOST, CUT, 429)))
        proxy.faults = [(method, fault) for _ in range(2) for method, fault in faults]
    with ThreadPoolExecutor() as threads:
        left = set[str]().union(*threads.map(lambda name: feed(out, name), NAMES))
    assert not proxy.faults
    dataset = check(out, left)
    assert dataset.commit.version == NIGHTS * len(NAMES)
    assert dataset.commit.sources.keys() == {f"/{name}" for name in NAMES}
    numbers = [segment.number for segment in dataset.commit.segments.values()]
    assert sorted(numbers) == list(range(1, NIGHTS * len(NAMES) + 1))


def test_processes_commit_side_by_side(out: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        left = set[str]().union(*pool.starmap(feed, [(out, name) for name in NAMES[:2]]))
    assert check(out, left).commit.version == NIGHTS * 2


@pytest.mark.parametrize("proxy", ["/rewriteTo/"], indirect=True)
def test_what_a_commit_did_not_move_is_moved_by_the_next_run(proxy: FaultProxy, out: str) -> None:
    source = Drawn("/in", objects={"a": "1", "b": "1", "c": "1", "d": "1"})
    run(source, out, 1)
    for number, moved in enumerate(range(3), 2):
        gone = min(source.objects)
        del source.objects[gone]
        source.objects[f"x{number}"] = "1"
        work = plan(source, out, number)
        make(work)
        proxy.faults = [("POST", PASS)] * moved + [("POST", 403)]
        with pytest.raises(StorageError):
            planning.commit(work)
        proxy.faults = []
        assert moves.announcements(out)
        datasets.settle(out)
        left = {f"/in/{name}" for name in source.objects}
        # Rejects are committed first: where their moves failed, the rows are not committed yet.
        if Dataset.open(storage.join(out, "copies")).commit.version < number:
            planning.commit(plan(source, out, number))
        check(out, left)


def test_of_many_runs_of_a_source_one_has_the_lease(out: str) -> None:
    began, refused, ended = threading.Barrier(6), threading.Semaphore(0), threading.Event()

    def hold(number: int) -> bool:
        began.wait()
        try:
            with leases.held(out, "/in", Execution(f"run-{number}", datetime.now(UTC))):
                return ended.wait(600)
        except RunInProgressError:
            refused.release()
            return False

    with ThreadPoolExecutor(6) as threads:
        held = [threads.submit(hold, number) for number in range(6)]
        for _ in range(5):
            refused.acquire()
        ended.set()
        assert sum(future.result() for future in held) == 1
    with (
        leases.held(out, "/in", Execution("run-8", datetime.now(UTC))),
        leases.held(out, "/other", Execution("run-9", datetime.now(UTC))),
    ):
        marks = [o.uri for o in storage.list_objects(storage.join(out, "_staging")) if "/lease-" in o.uri]
    assert len(marks) == 2


def test_a_lease_that_has_expired_goes_to_one_of_two(out: str) -> None:
    with leases.held(out, "/in", Execution("run-1", datetime.now(UTC))):
        [mark] = storage.list_objects(storage.join(out, "_staging"))
        renewed = str(datetime.now(UTC) - timedelta(seconds=leases.EXPIRE_SECONDS + 1))
        process = ["another-machine", 1, 1.0]
        lease = {"run_id": "run-0", "process": process, "renewed": renewed}
        storage.write_bytes(mark.uri, json.dumps(lease).encode())
        began, both = threading.Barrier(2), threading.Barrier(2)

        def take(number: int) -> bool:
            began.wait()
            try:
                with leases.held(out, "/in", Execution(f"run-{number}", datetime.now(UTC))):
                    both.wait()
                    return True
            except RunInProgressError:
                both.wait()
                return False

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(take, (2, 3))) == [False, True]
