"""The doctor flow: check the data sets of an out."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import DoctorRequest
from id2.results import DoctorReport


@flow_of(id2.doctor, run_name="check {out}")
def doctor(request: DoctorRequest) -> DoctorReport:
    """Run `id2.doctor`."""
    return id2.doctor.run(request)
