"""The embed flow: images to embeddings."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import EmbedRequest
from id2.results import EmbedSummary, StagedJob, SubmittedJob


@flow_of(id2.embed, run_name="embed {images}")
def embed(request: EmbedRequest) -> EmbedSummary | StagedJob | SubmittedJob:
    """Run `id2.embed` with its stages as tasks."""
    return id2.embed.run(request)
