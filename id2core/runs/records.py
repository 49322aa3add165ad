"""The `runs/` table: one row for every execution of a flow, also of those that failed or were killed.

    with recorded("/scan", "scan", {"top_k": 10}) as run:
        with run.stage("embed"):
            ...
        run.count(listed=12, embedded=11, rejected=1)

The row exists from the start, with the status `running`. The end of the block completes it. The next run of
the same `--out` marks one that never ended as `killed`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import takewhile
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue, field_validator

from id2core import environment, settings
from id2core.errors import DatasetError, ID2Error
from id2core.runs import leftovers
from id2core.runs.execution import Execution, is_alive, this_process
from id2core.store import datasets, schemas, storage, strict_json
from id2core.store.datasets import Commit, Dataset, FileRecord

RUNS = "runs"
COUNTS = (
    "listed",
    "embedded",
    "rejected",
    "new_references",
    "new_queries",
    "references",
    "queries",
    "matches",
    "match_pairs",
    "review_pairs",
    "first_searched",
    "first_matched",
    "translated",
)
_ERROR_CHARACTERS = 1000
# Another run may replace a row's file between the commit and the file: read the commit again.
_READS = 5


class Status(StrEnum):
    """State of an execution."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    KILLED = "killed"


class _State(BaseModel):
    """What the commit of `runs/` says of a run, beside its row.

    Attributes:
        process: of a run that has not ended: host, process id, when it was created.
        status: of `Status`.
    """

    process: tuple[str, int, float] | None = None
    status: str = ""


class Run(BaseModel):
    """One row of `runs/`.

    Attributes:
        run_id: the same in every row that the execution wrote.
        flow: `scan`, `embed`, `train` and so on.
        started, ended: in UTC; a killed run has no end, a row of schema version 1 neither.
        status: running, done, failed or killed.
        error: type and message of what stopped it.
        listed: objects that the run listed. Counts are None where the flow does not count such things.
        embedded, rejected, translated: objects of which the run made something, or that it rejected and no
            earlier run had. What it adopted from a killed run counts; what stands from earlier runs does not.
        references, queries: pictures in the corpora at its end.
        matches: pairs that the run stored; of `judge`, pairs that it judged.
        new_references, new_queries: pictures that the run added to each corpus.
        match_pairs, review_pairs: pairs that it stored with that verdict; None without a calibration.
        first_searched, first_matched: uploads that a night compared for the first time, and those of them
            with a match in any channel.
        seconds: per stage.
        config: what was asked for.
        versions: of Python and packages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    flow: str
    started: datetime | None = None
    ended: datetime | None = None
    status: Status = Status.RUNNING
    error: str | None = None
    listed: int | None = None
    embedded: int | None = None
    rejected: int | None = None
    references: int | None = None
    queries: int | None = None
    matches: int | None = None
    translated: int | None = None
    new_references: int | None = None
    new_queries: int | None = None
    match_pairs: int | None = None
    review_pairs: int | None = None
    first_searched: int | None = None
    first_matched: int | None = None
    seconds: dict[str, float] = {}
    config: dict[str, JsonValue] = {}
    versions: dict[str, str] = {}

    @field_validator("seconds", "config", "versions", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """Read a column of JSON."""
        return strict_json.parse(value) if isinstance(value, str) else value

    def to_table(self) -> pa.Table:
        """Return the row as a `schemas.RUNS` table."""
        row = self.model_dump() | {
            name: json.dumps(getattr(self, name), sort_keys=name == "config")
            for name in ("seconds", "config", "versions")
        }
        return pa.Table.from_pylist([row], schemas.RUNS)


@dataclass
class Recorder:
    """The row of `runs/` of a running execution, with its counts and seconds.

    Attributes:
        out: the flow's `--out`; the row is in `runs/` below it.
        execution: gives rows of other tables their run_id and time.
        run: the row so far.
        counts: by column of the row, see `count`.
        seconds: by stage, see `stage`.
        table: `runs/` as it was when the row was completed; None before.
    """

    out: str
    execution: Execution
    run: Run
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    table: Dataset | None = None

    def count(self, **counts: int) -> None:
        """Add to the counts of the row: `listed`, `embedded`, `rejected` and so on, see `COUNTS`."""
        unknown = sorted(set(counts) - set(COUNTS))
        if unknown:
            raise ValueError(f"runs/ has no column {unknown[0]} to count in: choose from {', '.join(COUNTS)}")
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0) + number

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; a stage that runs twice has the sum of both times."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = self.seconds.get(name, 0.0) + time.monotonic() - began
            self.seconds[name] = round(took, 3)

    def end(self, status: Status, error: str | None = None) -> Run:
        """Complete the row and write it."""
        self.run = self.run.model_copy(
            update=self.counts
            | {"seconds": self.seconds, "status": status, "error": error, "ended": datetime.now(UTC)}
        )
        self.table = write(self.out, self.run)
        return self.run


@contextmanager
def recorded(
    out: str, flow: str, config: Mapping[str, object], execution: Execution | None = None
) -> Iterator[Recorder]:
    """Record one execution of a flow: its row is written now and completed when the block ends.

    A block that ends well removes what earlier runs left, see `leftovers`.

    An exception, also KeyboardInterrupt, sets the status `failed` and its message, and is raised on.

    Args:
        out: the flow's `--out`, a folder or bucket prefix.
        flow: its name.
        config: what was asked for; what is no JSON is recorded as text.
        execution: by default one that begins now.

    Raises:
        StorageError: `out` cannot be written.
        OptionError: a setting is out of bounds.
    """
    grace = settings.load().leftover_hours * 3600
    execution = execution or Execution.begin()
    run = Run(
        run_id=execution.run_id,
        flow=flow,
        started=execution.started,
        config=json.loads(json.dumps(config, default=str)),
        versions=environment.versions(),
    )
    leftovers.settle(out)
    runs = Dataset.find_own(storage.join(out, RUNS))
    killed = _mark_killed(runs) if runs else []
    _commit(out, [*killed, run], runs)
    recorder = Recorder(out, execution, run)
    try:
        yield recorder
    except BaseException as error:
        with suppress(ID2Error, OSError):  # what stopped the run is the error to show
            recorder.end(Status.FAILED, f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS])
        raise
    recorder.end(Status.DONE)
    with suppress(ID2Error, OSError):  # the run itself has ended well
        if recorder.table and not _others_run(recorder.table):
            leftovers.sweep(out, time.time() - grace)


def write(out: str, run: Run) -> Dataset:
    """Write the row of a run to `runs/` below `out`, in place of its earlier row; return the table."""
    return _commit(out, [run], Dataset.find_own(storage.join(out, RUNS)))


def unfinished(runs: Sequence[Run], run: Run) -> list[Run]:
    """Return the runs of its flow right before a run that did not end well, the last first."""
    ever = datetime.min.replace(tzinfo=UTC)
    earlier = [other for other in runs if other.flow == run.flow and other.run_id != run.run_id]
    before = [other for other in earlier if (other.started or ever) <= (run.started or ever)]
    return list(takewhile(lambda other: other.status is not Status.DONE, reversed(before)))


def read(out: str) -> list[Run]:
    """Return every run of an `--out`, in the order in which they started; none where there is no table.

    Raises:
        DatasetError: the table is damaged.
    """
    for attempt in range(_READS):
        runs = Dataset.find(storage.join(out, RUNS))
        try:
            rows = runs.read(schemas.RUNS).to_pylist() if runs else []
        except DatasetError:
            if attempt + 1 == _READS:
                raise
            continue
        return sorted((Run.model_validate(row) for row in rows), key=_order)
    raise AssertionError("unreachable")


def _order(run: Run) -> tuple[str, str]:
    """Older rows, without a start, come first."""
    return run.started.isoformat() if run.started else "", run.run_id


def at_work(out: str) -> bool:
    """Return whether an execution may be at work on an `--out`; one elsewhere cannot be asked."""
    runs = Dataset.find(storage.join(out, RUNS))
    return runs is not None and _others_run(runs)


def _others_run(runs: Dataset) -> bool:
    """Return whether another execution may be at work on an `--out`; one elsewhere cannot be asked."""
    states = [runs.commit.counts_of(run_id, _State) for run_id in runs.runs]
    processes = [state.process for state in states if state.process and state.status == Status.RUNNING]
    return any(process[0] != platform.node() or is_alive(process) for process in processes)


def _mark_killed(runs: Dataset) -> list[Run]:
    """Return the rows of runs that never ended and whose process is gone, as killed."""
    states = {run_id: runs.commit.counts_of(run_id, _State) for run_id in runs.runs}
    ended = [
        run_id
        for run_id, state in states.items()
        if state.status == Status.RUNNING and not is_alive(state.process)
    ]
    killed = []
    for run_id in ended:
        with suppress(DatasetError):  # the run ended meanwhile, and its file was replaced
            [row] = runs.of_run(run_id).read(schemas.RUNS).to_pylist()
            killed.append(Run.model_validate(row).model_copy(update={"status": Status.KILLED}))
    return killed


def _commit(out: str, rows: Iterable[Run], last: Dataset | None) -> Dataset:
    """Write rows, each a file of its own, and commit them in place of the same runs' earlier rows."""
    uri = storage.join(out, RUNS)
    files = [(run, datasets.write_file(uri, run.run_id, [run.to_table()], schemas.RUNS)) for run in rows]

    def change(commit: Commit | None) -> Commit:
        changed = commit or Commit(RUNS, files[-1][0].run_id, {})
        for run, file in files:
            changed = _with_row(changed, run, file)
        return changed

    return datasets.update_commit(uri, change, last)


def _with_row(commit: Commit, run: Run, file: FileRecord) -> Commit:
    """Return the commit with the row of a run."""
    earlier = commit.counts_of(run.run_id, _State)
    if run.status is Status.KILLED and earlier.status != Status.RUNNING:
        return commit  # the run has ended by itself since
    if commit.has_merged(run.run_id):
        return commit  # its row was taken for the last long ago
    others = tuple(f for f in commit.files if not f.belongs_to(run.run_id))
    process = this_process() if run.status is Status.RUNNING else None
    state = _State(process=process, status=run.status)
    runs = commit.runs | {run.run_id: state.model_dump(mode="json", exclude_none=True)}
    return replace(commit, run_id=run.run_id, files=(*others, file), runs=runs)
