"""The finetune flow: a whole vision backbone, trained on pictures."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import FinetuneRequest
from id2.results import FinetuneReport


@flow_of(id2.finetune, run_name="finetune {out}")
def finetune(request: FinetuneRequest) -> FinetuneReport:
    """Run `id2.finetune` with its stages as tasks."""
    return id2.finetune.run(request)
