"""Embed jobs of a few pictures."""

from __future__ import annotations

from typing import Any

from id2core import settings
from id2core.encoders.embed_job import EmbedJob


def embed_job(images: object, out: object, *arguments: Any, **options: Any) -> EmbedJob:
    """Return a job with the batches that every command in these tests has, see `conftest`."""
    return EmbedJob(str(images), str(out), *arguments, batch_size=settings.load().batch_size, **options)
