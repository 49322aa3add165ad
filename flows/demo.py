"""The demo flow: scan the bundled pictures."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import DemoRequest
from id2.results import DemoSummary


@flow_of(id2.demo, run_name="demo in {out}")
def demo(request: DemoRequest) -> DemoSummary:
    """Run `id2.demo` with its stages as tasks."""
    return id2.demo.run(request)
