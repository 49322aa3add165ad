"""The nightly flow: embed what is new, search what no night has searched, judge, report."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import NightlyRequest
from id2.results import NightlySummary


@flow_of(id2.nightly, run_name="night of {out}")
def nightly(request: NightlyRequest) -> NightlySummary:
    """Run `id2.nightly` with its stages as tasks."""
    return id2.nightly.run(request)
