from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.utils.subprocess_server import JavaJarServer

from tests.cluster import hosts
from tests.cluster.flink import FlinkCluster
from tests.cluster.spark import SparkEngine
from tests.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
# Where `make test-cluster` puts Flink and Spark.
LIBRARIES = ROOT / ".venv-flink/lib/python3.11/site-packages"
JAVA = "java (Debian: openjdk-17-jre-headless)"


def _job_server() -> Path | None:
    """Return the jar of Beam's job server: that of FLINK_JOB_SERVER, else the one that Beam downloads."""
    if named := os.environ.get("FLINK_JOB_SERVER"):
        return Path(named).absolute() if Path(named).is_file() else None
    try:
        url = JavaJarServer.path_to_beam_jar(":runners:flink:1.19:job-server:shadowJar")
        return Path(JavaJarServer.local_jar(url))
    except Exception:
        return None


def _missing_for_flink() -> str:
    """Return what Flink needs and is not here; empty for nothing."""
    if os.geteuid():
        return "root, for network namespaces"
    if not shutil.which("java"):
        return JAVA
    if not shutil.which("ip"):
        return "ip (Debian: iproute2)"
    if refusal := hosts.refusal():
        return f"the right to make network namespaces (CAP_NET_ADMIN and CAP_SYS_ADMIN): {refusal}"
    if not (LIBRARIES / "pyflink").is_dir():
        return "Flink: run make test-cluster"
    return "" if _job_server() else "Beam's job server for Flink 1.19: FLINK_JOB_SERVER names its jar"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A Flink of two hosts. Where a part is missing, the tests say so and are skipped; in CI they fail."""
    if missing := _missing_for_flink():
        text = f"no cluster can be started here, because this is missing: {missing}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    jar = _job_server()
    assert jar
    with FlinkCluster.started(tmp_path_factory.mktemp("flink"), LIBRARIES / "pyflink", jar) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkEngine]:
    """A Spark of one process. SPARK_JOB_SERVER asks for it, so what else is missing is a failure."""
    named = os.environ.get("SPARK_JOB_SERVER")
    if not named:
        pytest.skip("no Spark can be started here: SPARK_JOB_SERVER names no list of Beam's jars for it")
    jars = LIBRARIES / "pyspark/jars"
    for what, is_there in ((JAVA, shutil.which("java")), ("Spark: run make test-cluster", jars.is_dir())):
        assert is_there, f"no Spark can be started here, because this is missing: {what}"
    with SparkEngine.started(tmp_path_factory.mktemp("spark"), jars, Path(named).absolute()) as spark:
        yield spark


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Starts commands as processes of their own, and in milliseconds."""
    with ForkServer({"ID2_CALIBRATION": "none"}) as server:
        yield server
