"""The reproject flow: descriptors of another W, beside those in use, and the switch to them."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import ReprojectRequest
from id2.results import ReprojectReport


@flow_of(id2.reproject, run_name="reproject {out}")
def reproject(request: ReprojectRequest) -> ReprojectReport:
    """Run `id2.reproject` with its stages as tasks."""
    return id2.reproject.run(request)
