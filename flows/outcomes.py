"""What a flow leaves for its operator: artifacts in Prefect, and messages to the webhook."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.notifications import Event, Message, notify
from id2core.errors import ID2Error
from id2core.reports import page
from id2core.runs import health, records
from id2core.runs.health import Finding
from id2core.runs.records import COUNTS, Run
from id2core.search.match_rows import MATCHES
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.verdicts.calibration import Verdict

log = logging.getLogger("id2.outcomes")
# Verdicts that somebody looks at.
NEWS = (Verdict.MATCH, Verdict.REVIEW)
# What names an occurrence of an upload and a reference, in whatever channel.
_PAIR = ["query_uri", "query_generation", "reference_id"]
_SCAN_DATE = re.compile(r"scan_date=(\d{4}-\d\d-\d\d)/")
_BROWSE_OBJECT = "https://storage.cloud.google.com/"
_BROWSE_PREFIX = "https://console.cloud.google.com/storage/browser/"


@dataclass(frozen=True)
class Outcome:
    """What a run did, as its data sets say.

    Attributes:
        run: its row of `runs/`.
        new: verdict → pairs that it found.
        findings: what is off.
        links: name → address.
    """

    run: Run
    new: dict[str, int]
    findings: list[Finding]
    links: dict[str, str] = field(default_factory=dict)

    def table(self) -> list[dict[str, object]]:
        """Return the summary as rows of a table."""
        counts = {name: getattr(self.run, name) for name in COUNTS}
        rows = {name: value for name, value in counts.items() if value is not None}
        rows |= {f"new pairs: {verdict}": count for verdict, count in self.new.items()}
        rows |= {f"seconds: {stage}": round(seconds, 1) for stage, seconds in self.run.seconds.items()}
        rows |= {f"off: {finding.measure}": str(finding) for finding in self.findings}
        return [{"what": "run_id", "value": self.run.run_id}] + [
            {"what": name, "value": value} for name, value in rows.items()
        ]


@contextmanager
def reported(flow: str, parameters: dict[str, Any]) -> Iterator[None]:
    """Within, a run of a flow is reported: its failure, or what it did.

    Nothing that goes wrong while it is reported changes how the run ends.

    Args:
        flow: name of the flow.
        parameters: of the run; `out` says where its data sets are.
    """
    out = parameters.get("out")
    before = _runs(out)
    try:
        yield
    except Exception as error:
        notify(_message(Event.FAILURE, flow, f"failed: {type(error).__name__}: {error}"))
        raise
    known = {run.run_id for run in before}
    made = [run for run in _runs(out) if run.run_id not in known and run.flow == flow]
    if out and made:
        _tolerate("report", lambda: _report(flow, read(str(out), made[-1])))


def read(out: str, run: Run) -> Outcome:
    """Return what a run did, and what earlier runs found that were stopped before they could report it.

    Raises:
        DatasetError: a data set is damaged.
    """
    runs = records.read(out)
    place = storage.normalize(out)
    links = {name: link(storage.join(place, name)) for name in (page.HTML, MATCHES) if _is_there(place, name)}
    return Outcome(
        run, new_pairs(place, [run, *records.unfinished(runs, run)]), health.check(runs, run.run_id), links
    )


def new_pairs(out: str, runs: Sequence[Run]) -> dict[str, int]:
    """Return verdict → pairs that runs have stored, for the verdicts that somebody looks at.

    A pair of an upload and a reference that several channels have found counts once, with its strongest
    verdict. Only files of days since the first of these runs are read.

    Raises:
        DatasetError: `matches/` is damaged.
    """
    matches = Dataset.find(storage.join(out, MATCHES))
    if matches is None:
        return {}
    since = min((run.started.astimezone(UTC).date().isoformat() for run in runs if run.started), default="")
    ids = pa.array([run.run_id for run in runs], pa.string())
    levels = pa.array([verdict.value for verdict in NEWS])
    found = []
    for file in matches.files:
        day = _SCAN_DATE.match(file.name)
        if day is None or day[1] >= since:
            table = matches.read_file(file, ["run_id", "verdict", *_PAIR])
            own = table.filter(pc.is_in(table["run_id"].cast(pa.string()), ids))
            level = pc.index_in(own["verdict"].cast(pa.string()), value_set=levels)
            found.append(own.select(_PAIR).append_column("level", level).filter(level.is_valid()))
    if not found:
        return {}
    strongest = pa.concat_tables(found).group_by(_PAIR).aggregate([("level", "min")])["level_min"]
    counts = Counter(strongest.to_pylist())
    return {verdict.value: counts[place] for place, verdict in enumerate(NEWS) if counts[place]}


def link(uri: str) -> str:
    """Return the address at which a browser shows a place; whoever follows it needs access of their own."""
    if not uri.startswith("gs://"):
        return Path(uri).absolute().as_uri()
    browse = _BROWSE_OBJECT if uri.endswith(".html") else _BROWSE_PREFIX
    return browse + quote(uri.removeprefix("gs://"))


def _runs(out: object) -> list[Run]:
    """Return the runs of a place; none where there is none, or where it is no place."""
    with suppress(ID2Error, OSError, ValueError):
        return records.read(str(out)) if out else []
    return []


def _is_there(out: str, name: str) -> bool:
    uri = storage.join(out, name)
    return storage.exists(uri) if name.endswith(".html") else Dataset.find(uri) is not None


def _report(flow: str, outcome: Outcome) -> None:
    _tolerate("artifacts", lambda: _publish(outcome))
    if outcome.new:
        pairs = ", ".join(f"{count} {verdict}" for verdict, count in outcome.new.items())
        notify(_message(Event.MATCHES, flow, f"new pairs: {pairs}", outcome))
    if outcome.findings:
        for finding in outcome.findings:
            log.warning("something is off: %s", finding)
        lines = "\n".join(map(str, outcome.findings))
        notify(_message(Event.OFF, flow, f"something is off:\n{lines}", outcome))


def _publish(outcome: Outcome) -> None:
    """Create the artifacts of a run; Prefect keeps their versions under one key."""
    create_table_artifact(outcome.table(), key="summary", description=f"Run {outcome.run.run_id}")
    for name, address in outcome.links.items():
        create_link_artifact(address, link_text=name, key=name.partition(".")[0])


def _message(event: Event, flow: str, text: str, outcome: Outcome | None = None) -> Message:
    name = str(flow_run.name or flow)
    links = dict(outcome.links) if outcome else {}
    if address := flow_run.ui_url:
        links["run"] = str(address)
    counts = outcome.new if outcome else {}
    return Message(event=event, flow=flow, run=name, text=f"ID² {name}: {text}", counts=counts, links=links)


def _tolerate(what: str, work: Callable[[], None]) -> None:
    """Do what a run can do without."""
    try:
        work()
    except Exception as error:
        log.warning("no %s: %s: %s", what, type(error).__name__, error)
