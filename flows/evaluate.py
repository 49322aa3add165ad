"""The evaluate flow: how good one or more transforms are."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import EvaluateRequest
from id2.results import EvaluateReport


@flow_of(id2.evaluate, run_name="evaluate {queries}")
def evaluate(request: EvaluateRequest) -> EvaluateReport:
    """Run `id2.evaluate` with its stages as tasks."""
    return id2.evaluate.run(request)
