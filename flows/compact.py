"""The compact flow: merge small files of data sets."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import CompactRequest
from id2.results import CompactReport


@flow_of(id2.compact, run_name="compact {out}")
def compact(request: CompactRequest) -> CompactReport:
    """Run `id2.compact` with its stages as tasks."""
    return id2.compact.run(request)
