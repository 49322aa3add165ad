from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.flink import FlinkCluster

ROOT = Path(__file__).parents[2]
# Where `make test-cluster` puts Flink.
LIBRARIES = ROOT / ".venv-flink/lib/python3.11/site-packages/pyflink"


def _missing() -> str:
    """Return what a cluster needs and is not here; empty for nothing."""
    jar = os.environ.get("FLINK_JOB_SERVER", "")
    for what, is_there in (
        ("root, for network namespaces", os.geteuid() == 0),
        ("java (openjdk-17-jre-headless)", shutil.which("java")),
        ("ip (iproute2)", shutil.which("ip")),
        ("Flink: run make test-cluster", LIBRARIES.is_dir()),
        ("Beam's job server: FLINK_JOB_SERVER names its jar", jar and Path(jar).is_file()),
    ):
        if not is_there:
            return what
    return ""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A Flink of two hosts. Where a part is missing, the tests say so and are skipped; in CI they fail."""
    if missing := _missing():
        text = f"no cluster can be started here, because this is missing: {missing}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    folder = tmp_path_factory.mktemp("flink")
    with FlinkCluster.started(folder, LIBRARIES, Path(os.environ["FLINK_JOB_SERVER"])) as cluster:
        yield cluster
