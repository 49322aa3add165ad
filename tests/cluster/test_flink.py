"""What a cluster makes equals what one process makes, also where a part of it dies in between."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from id2core.store.datasets import Dataset
from tests.cluster.flink import FlinkCluster
from tests.conftest import wait_until
from tests.drawing import draw_photos

pytestmark = pytest.mark.cluster
# What differs between two executions of the same work.
TIMES = {"run_id", "embedded_at", "scanned_at", "translated_at", "scan_date"}
PART = 10
# Parts that a lost machine may have had in work: one for each worker of the cluster, twice.
IN_FLIGHT = 4
OPTIONS = ["--encoder", "pdq", "--transform", "none"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty parts of drawn photos."""
    return draw_photos(tmp_path_factory.mktemp("images") / "originals", 20 * PART)


def embed(images: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    command = ["id2", "embed", "--images", images, "--out", out, *OPTIONS, "--part-size", PART, *more]
    return subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate()
    assert process.returncode == 0, told


def on(cluster: FlinkCluster) -> list[str]:
    return ["--runner", "PortableRunner", "--", *cluster.arguments]


def content(uri: Path) -> list[str]:
    """Every row of a data set but for run ids and times, in one order."""
    rows = (row for table in Dataset.open(str(uri)).tables() for row in table.to_pylist())
    return sorted(repr({k: v for k, v in row.items() if k not in TIMES}) for row in rows)


def records(out: Path) -> int:
    return len(list((out / "_staging/parts").glob("*.json")))


class Written:
    """Counts the records that workers write, also those that replace one of the same name."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "_staging/parts"
        self._seen: set[tuple[str, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            with suppress(FileNotFoundError):
                entries = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".json")]
                self._seen.update((entry.name, entry.inode()) for entry in entries)

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return len(self._seen)


def test_an_embed_that_loses_a_host_repeats_only_what_was_in_flight(
    cluster: FlinkCluster, images: Path, tmp_path: Path
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    finish(embed(images, alone))
    written = Written(out)
    process = embed(images, out, *on(cluster))
    wait_until(lambda: records(out) >= 8 or process.poll() is not None, 600, "the first parts")
    host = cluster.hosts[0]
    cluster.kill(f"tasks-{host.name}")
    time.sleep(10)
    cluster.start_tasks(host)
    finish(process)
    assert content(out / "embeddings") == content(alone / "embeddings")
    assert 20 <= written.stop() <= 20 + IN_FLIGHT
