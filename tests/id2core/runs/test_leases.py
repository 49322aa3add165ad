from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from id2core.errors import RunInProgressError
from id2core.runs import execution, leases
from id2core.runs.execution import Execution

RUN, OTHER = Execution("run-1", datetime.now(UTC)), Execution("run-2", datetime.now(UTC))


def lease_file(out: Path) -> Path:
    [path] = (out / "_staging").glob("lease-*.json")
    return path


def write(out: Path, **change: Any) -> None:
    """Leave a lease of another run."""
    with leases.held(str(out), "/in", RUN):
        path = lease_file(out)
        content = json.loads(path.read_text()) | change
    path.write_text(json.dumps(content))


def test_a_second_run_of_a_source_is_refused_by_name_and_one_of_another_source_is_not(tmp_path: Path) -> None:
    out = str(tmp_path)
    with leases.held(out, "/in", RUN):
        with (
            pytest.raises(RunInProgressError, match=f"run-1 .* is adding /in to {out}"),
            leases.held(out, "/in", OTHER),
        ):
            pass
        with leases.held(out, "/other", OTHER):
            pass
        assert lease_file(tmp_path)
    assert list((tmp_path / "_staging").iterdir()) == []
    with leases.held(out, "/in", OTHER):
        pass


def test_the_lease_of_a_process_that_is_gone_counts_no_more(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    write(tmp_path, process=[platform.node(), child.pid, 1.0])
    with leases.held(str(tmp_path), "/in", OTHER):
        pass


@pytest.mark.parametrize(
    ("age", "counts"), [(0, True), (170, True), (190, False), (-170, True), (-190, False)]
)
def test_the_lease_of_another_machine_counts_for_three_minutes(
    age: int, counts: bool, tmp_path: Path
) -> None:
    renewed = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    write(tmp_path, process=["another-machine", 1, 1.0], renewed=renewed)
    if counts:
        with (
            pytest.raises(RunInProgressError, match="another-machine"),
            leases.held(str(tmp_path), "/in", OTHER),
        ):
            pass
    else:
        with leases.held(str(tmp_path), "/in", OTHER):
            pass


def test_a_lease_is_renewed_and_one_that_was_taken_over_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    with leases.held(str(tmp_path), "/in", RUN):
        leases.begin_work(str(tmp_path), "/in")
        path = lease_file(tmp_path)
        first = path.read_text()
        while path.read_text() == first:
            pass
        assert json.loads(path.read_text())["is_at_work"]
        taken = {"run_id": "run-2", "process": execution.this_process(), "renewed": str(datetime.now(UTC))}
        monkeypatch.setattr(leases, "RENEW_SECONDS", 60)
        path.write_text(json.dumps(taken))
    assert json.loads(path.read_text())["run_id"] == "run-2"


def test_a_lease_that_is_damaged_is_none(tmp_path: Path) -> None:
    write(tmp_path, run_id=7)
    with leases.held(str(tmp_path), "/in", OTHER):
        pass


def test_a_later_run_takes_over_once_it_is_at_work(tmp_path: Path) -> None:
    out = str(tmp_path)
    early, late = (Execution(f"{second}-run", datetime.now(UTC)) for second in (1, 2))

    def seen_by(run: Execution) -> str | None:
        return leases.taken_over(out, "/in", run.run_id)

    def end_beside_another(error: type[Exception] | None = None) -> None:
        (tmp_path / "_staging/manifest").touch()
        with suppress(OSError), leases.held(out, "/in", late):
            assert seen_by(early) is None
            leases.begin_work(out, "/in")
            assert (seen_by(early), seen_by(late)) == (late.run_id, None)
            assert leases.taken_over(out, "/other", early.run_id) is None
            if error:
                raise error

    (tmp_path / "_staging").mkdir()
    end_beside_another(OSError)
    assert seen_by(early) is None  # its work is left to whoever comes
    end_beside_another()
    assert seen_by(early) == late.run_id
    (tmp_path / "_staging/manifest").unlink()
    with leases.held(out, "/in", late):
        pass
    assert seen_by(early) is None and list((tmp_path / "_staging").iterdir()) == []
