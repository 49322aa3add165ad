"""One Prefect server for all files of this folder: a start of one creates its tables for ten seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.conftest import free_port, listening, wait_until
from tests.prefect_server import Prefect


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A server, and no worker."""
    it = Prefect(tmp_path_factory.mktemp("prefect"), free_port())
    try:
        it.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(it.port))
        wait_until(lambda: listening(it.port), 900, "the Prefect server")
        yield it
    finally:
        it.stop()


@pytest.fixture(scope="module")
def prefect_api(prefect_server: Prefect) -> Iterator[str]:
    """Let flows of this process report to the server; yields its address."""
    with temporary_settings({PREFECT_API_URL: prefect_server.api}):
        yield prefect_server.api
        for reporter in (APILogWorker, EventsWorker):
            reporter.drain_all(at_exit=False)
