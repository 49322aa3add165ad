"""What every flow shares: which failures are tried again, and the row that a finished run leaves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from prefect.client.schemas.objects import TaskRun
from prefect.states import State

from id2core.errors import ID2Error
from id2core.store import datasets, schemas, storage


def _worth_retrying(task: Any, run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result()
    except ID2Error as error:
        return error.transient
    except Exception:
        return True
    return False


RETRY: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": _worth_retrying,
    "cache_policy": None,  # the data sets themselves know what is done
}


def record_run(out: str, flow: str, run: dict[str, Any], counts: dict[str, int]) -> None:
    """Add the row of a finished run to OUT/runs; a repeated run replaces its own.

    Args:
        out: the flow's `--out`.
        flow: its name.
        run: run_id, config, seconds per stage, versions.
        counts: columns of `tables.RUNS` that count something; those not given are 0.
    """
    row = {
        "run_id": run["run_id"],
        "flow": flow,
        "config": json.dumps(run["config"], sort_keys=True),
        **dict.fromkeys(("listed", "embedded", "rejected", "matches", "translated"), 0),
        **counts,
        "seconds": json.dumps(run["seconds"]),
        "versions": json.dumps(run["versions"]),
        "status": "done",
        "finished_at": datetime.now(UTC),
    }
    uri = storage.join(out, "runs")
    table = pa.Table.from_pylist([row], schemas.RUNS)
    record = datasets.write_file(uri, run["run_id"], [table], schemas.RUNS)
    datasets.add_files(uri, "runs", run["run_id"], [record], {})
