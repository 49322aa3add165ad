"""The takedown flow: remove pictures and refuse them."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import TakedownRequest
from id2.results import TakedownReport


@flow_of(id2.takedown, run_name="takedown in {out}")
def takedown(request: TakedownRequest) -> TakedownReport:
    """Run `id2.takedown` with its stages as tasks."""
    return id2.takedown.run(request)
