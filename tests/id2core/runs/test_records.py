from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import embed, search
from id2core.errors import DatasetError
from id2core.runs import records
from id2core.runs.execution import Execution
from id2core.runs.records import Run, Status, recorded
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Dataset
from tests.drawing import draw_photos
from tests.embedding import embed_job


def table(out: Path | str) -> pa.Table:
    """What a reader sees who takes every Parquet file of `runs/`."""
    return pa.concat_tables(pq.read_table(path) for path in Path(out, "runs").glob("*.parquet"))


def test_rows_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    row = {"run_id": "0123456789abcdef", "flow": "scan", "listed": 3, "status": "done"}
    row |= dict.fromkeys(("config", "seconds", "versions"), "{}")
    rows = pa.Table.from_pylist([row | {"finished_at": datetime.now(UTC)}])
    rows = rows.replace_schema_metadata({"id2.dataset": "runs", "id2.schema_version": "1"})
    uri = str(tmp_path / "runs")
    file = datasets.write_file(uri, row["run_id"], [rows], rows.schema)
    datasets.write_commit(uri, datasets.Commit("runs", row["run_id"], {}, files=(file,)))
    with recorded(str(tmp_path), "scan", {}):
        pass
    old, new = records.read(str(tmp_path))
    assert (old.listed, old.status, old.started) == (3, "done", None) and new.started


def test_a_row_is_there_from_the_start_and_complete_at_the_end(tmp_path: Path) -> None:
    with recorded(str(tmp_path), "scan", {"top_k": 3, "out": Path("/x")}) as recorder:
        [row] = table(tmp_path).to_pylist()
        assert (row["status"], row["flow"], row["ended"]) == ("running", "scan", None)
        assert row["run_id"] == recorder.execution.run_id
        assert row["started"] == recorder.execution.started
        for _ in range(2):
            with recorder.stage("embed"):
                pass
        recorder.count(listed=4, embedded=3)
        recorder.count(listed=2, rejected=0)
    [row] = table(tmp_path).to_pylist()
    assert row["status"] == "done" and row["error"] is None and row["ended"] >= row["started"]
    assert (row["listed"], row["embedded"], row["rejected"], row["matches"]) == (6, 3, 0, None)
    [run] = records.read(str(tmp_path))
    assert run.config == {"top_k": 3, "out": "/x"} and set(run.seconds) == {"embed"}
    assert "python" in run.versions and run.status is Status.DONE
    assert table(tmp_path).schema == schemas.RUNS


@pytest.mark.parametrize("error", [DatasetError("write to another --out"), KeyboardInterrupt()])
def test_a_run_that_fails_says_why(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), recorded(str(tmp_path), "embed", {}):
        raise error
    [run] = records.read(str(tmp_path))
    assert run.status is Status.FAILED and run.ended
    assert run.error and run.error.startswith(type(error).__name__) and str(error) in run.error


def test_the_error_of_a_run_is_not_hidden_by_a_store_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*arguments: object) -> None:
        raise OSError("the disk was away")

    with pytest.raises(DatasetError, match="first"), recorded(str(tmp_path), "embed", {}):
        monkeypatch.setattr(datasets, "write_file", fault)
        raise DatasetError("first")


def test_only_columns_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column photos"), recorded(str(tmp_path), "embed", {}) as run:
        run.count(photos=3)


CHILD = """
import sys, time
from id2core.runs.records import recorded
with recorded(sys.argv[1], "scan", {}):
    print("started", flush=True)
    time.sleep(3600)
"""


def test_the_next_run_marks_one_that_never_ended_as_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert child.stdout and child.stdout.readline() == b"started\n"
    with recorded(str(tmp_path), "embed", {}):
        first, second = records.read(str(tmp_path))
        assert (first.status, second.status) == ("running", "running")  # both are alive
    child.send_signal(signal.SIGKILL)
    child.wait()
    with recorded(str(tmp_path), "scan", {}) as recorder:
        recorder.count(matches=1)
    runs = records.read(str(tmp_path))
    assert sorted(run.status for run in runs) == ["done", "done", "killed"]
    [killed] = [run for run in runs if run.status is Status.KILLED]
    assert (killed.flow, killed.ended) == ("scan", None)
    assert table(tmp_path).num_rows == 3


def test_a_run_that_was_taken_for_dead_completes_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(str(tmp_path), "scan", {}) as first:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(records.platform, "node", lambda: "another host")
            with recorded(str(tmp_path), "scan", {}):
                pass
        statuses = {run.run_id: run.status for run in records.read(str(tmp_path))}
        assert statuses[first.execution.run_id] is Status.KILLED
    assert [run.status for run in records.read(str(tmp_path))] == ["done", "done"]
    assert table(tmp_path).num_rows == 2


@pytest.mark.parametrize("where", ["local", "gs"])
def test_runs_at_once_on_one_folder_keep_all_rows(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = str(tmp_path) if where == "local" else f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"
    barrier = threading.Barrier(4)

    def work(i: int) -> None:
        barrier.wait()
        with recorded(out, "scan", {"i": i}) as recorder:
            recorder.count(matches=i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    runs = records.read(out)
    assert sorted((run.config["i"], run.matches, run.status) for run in runs) == [
        (i, i, "done") for i in range(4)
    ]
    listed = storage.list_objects(storage.join(out, "runs"))
    assert sum(o.uri.endswith(".parquet") for o in listed) == 4


def test_a_row_of_a_run_is_written_in_place_of_its_earlier_one(tmp_path: Path) -> None:
    execution = Execution.begin()
    for matches in (1, 2):
        run = Run(run_id=execution.run_id, flow="scan", started=execution.started, matches=matches)
        records.write(str(tmp_path), run)
    assert [run.matches for run in records.read(str(tmp_path))] == [2]
    assert records.read(str(tmp_path / "nowhere")) == []


def test_recording_a_run_reads_the_commit_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(str(tmp_path), "scan", {}):
        pass
    reads: list[str] = []
    real = storage.read_marked
    monkeypatch.setattr(storage, "read_marked", lambda uri: (reads.append(uri), real(uri))[1])
    with recorded(str(tmp_path), "scan", {}):
        pass
    assert sum(uri.endswith(datasets.SUCCESS) for uri in reads) == 2


def test_every_row_of_an_execution_joins_its_run(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 3)
    (images / "broken.jpg").write_bytes(b"no picture")
    out = str(tmp_path / "out")
    with recorded(out, "scan", {}) as recorder:
        job = embed_job(str(images), out, encoder=tiny_vae, dtype="float32")
        embedded = embed.run(job, recorder.execution)
        embeddings = Dataset.open(storage.join(out, "embeddings"))
        result = search.run(embeddings, embeddings, storage.join(out, "matches"), recorder.execution, 2)
    matches = Dataset.open(storage.join(out, "matches")).read(schemas.MATCHES)
    joined = matches.join(table(out), "run_id", join_type="inner")
    assert joined.num_rows == matches.num_rows == 6
    rejects = Dataset.open(storage.join(out, "rejects")).read(schemas.REJECTS)
    rows = embeddings.read(schemas.embeddings_schema(1, 1))
    ids = {t["run_id"].unique().to_pylist()[0] for t in (matches, rejects, rows)}
    assert ids == {recorder.execution.run_id, embedded.run_id, result.run_id}
