"""The index flow: a compressed index of references."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import IndexRequest
from id2.results import IndexReport


@flow_of(id2.index, run_name="index {out}")
def index(request: IndexRequest) -> IndexReport:
    """Run `id2.index` with its stages as tasks."""
    return id2.index.run(request)
