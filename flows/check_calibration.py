"""The check-calibration flow: does the calibration still hold? It fails where it does not."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import CheckCalibrationRequest
from id2.results import CalibrationCheck


@flow_of(id2.check_calibration, run_name="check the calibration in {out}")
def check_calibration(request: CheckCalibrationRequest) -> CalibrationCheck:
    """Run `id2.check_calibration` with its stages as tasks."""
    return id2.check_calibration.run(request)
