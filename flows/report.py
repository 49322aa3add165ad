"""The report flow: write the report of a finished scan again."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import ReportRequest
from id2.results import ScanSummary


@flow_of(id2.report, run_name="report of {out}")
def report(request: ReportRequest) -> ScanSummary:
    """Run `id2.report` with its stages as tasks."""
    return id2.report.run(request)
