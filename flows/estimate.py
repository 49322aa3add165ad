"""The estimate flow: what a corpus costs."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import EstimateRequest
from id2.results import EstimateReport


@flow_of(id2.estimate, run_name="estimate {references} references, {queries} queries")
def estimate(request: EstimateRequest) -> EstimateReport:
    """Run `id2.estimate`."""
    return id2.estimate.run(request)
