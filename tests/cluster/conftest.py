from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import flink
from tests.cluster.flink import FlinkCluster
from tests.cluster.processes import JAVA, PACKAGES
from tests.cluster.spark import SparkEngine
from tests.fork_server import ForkServer


@pytest.fixture(scope="session")
def jar() -> Path:
    """Beam's job server for Flink. If a part of a cluster is missing, skip; with CI=true, fail."""
    jar, lack = flink.missing()
    if jar is None:
        text = f"no cluster can be started here, because this is missing: {lack}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return jar


@pytest.fixture(scope="session")
def cluster(jar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A Flink of two hosts."""
    with FlinkCluster.started(tmp_path_factory.mktemp("flink"), flink.libraries(), jar) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkEngine]:
    """A Spark of one process. SPARK_JOB_SERVER asks for it, so what else is missing is a failure."""
    named = os.environ.get("SPARK_JOB_SERVER")
    if not named:
        pytest.skip("no Spark can be started here: SPARK_JOB_SERVER names no list of Beam's jars for it")
    jars = PACKAGES / "pyspark/jars"
    for what, is_there in ((JAVA, shutil.which("java")), ("Spark: run make test-cluster", jars.is_dir())):
        assert is_there, f"no Spark can be started here, because this is missing: {what}"
    with SparkEngine.started(tmp_path_factory.mktemp("spark"), jars, Path(named).absolute()) as spark:
        yield spark


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Starts commands as processes of their own, and in milliseconds."""
    with ForkServer({"ID2_CALIBRATION": "none"}) as server:
        yield server
