"""What every flow shares: which failures are tried again, and the row that a finished run leaves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from prefect.client.schemas.objects import TaskRun
from prefect.states import State

from id2core.encoders.base import EncoderError
from id2core.oripid.readers import ReaderError
from id2core.search.shards import SearchError
from id2core.store import datasets, schemas, storage
from id2core.store.storage import StorageError
from id2core.training.closed_form import ClosedFormError
from id2core.training.pairs import PairsError
from id2core.training.recipe import MetricError
from id2core.transforms.linear import TransformError
from id2core.translation.translators import TranslatorError

# Asking again would not help: the message says what the caller has to change.
PERMANENT = (
    ClosedFormError,
    datasets.DatasetError,
    EncoderError,
    MetricError,
    PairsError,
    ReaderError,
    SearchError,
    StorageError,
    TransformError,
    TranslatorError,
    ValueError,
)


def _worth_retrying(task: Any, run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result()
    except PERMANENT:
        return False
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
