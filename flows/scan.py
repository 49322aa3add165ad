"""The scan flow: embed references and uploads, search, judge, report."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import ScanRequest
from id2.results import ScanSummary


@flow_of(id2.scan, run_name="scan {queries}")
def scan(request: ScanRequest) -> ScanSummary:
    """Run `id2.scan` with its stages as tasks."""
    return id2.scan.run(request)
