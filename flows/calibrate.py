"""The calibrate flow: thresholds of verdicts for stated false-positive rates."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import CalibrateRequest
from id2.results import CalibrateReport


@flow_of(id2.calibrate, run_name="calibrate {out}")
def calibrate(request: CalibrateRequest) -> CalibrateReport:
    """Run `id2.calibrate` with its stages as tasks."""
    return id2.calibrate.run(request)
