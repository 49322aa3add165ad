"""The translate flow: originals to translations."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import TranslateRequest
from id2.results import StagedJob, SubmittedJob, TranslateSummary


@flow_of(id2.translate, run_name="translate {images} with {model}")
def translate(request: TranslateRequest) -> StagedJob | SubmittedJob | TranslateSummary:
    """Run `id2.translate` with its stages as tasks."""
    return id2.translate.run(request)
