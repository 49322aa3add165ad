"""The import flow: OriPID's published features become the data sets that training takes."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import ImportOripidRequest
from id2.results import ImportSummary


@flow_of(id2.import_oripid, run_name="import {features}")
def import_oripid(request: ImportOripidRequest) -> ImportSummary:
    """Run `id2.import_oripid` with its stages as tasks."""
    return id2.import_oripid.run(request)
