"""infra/compose.yaml, as far as the file says; and `make up` without containers, for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import up
from tests.conftest import free_port, wait_until

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra/compose.yaml").read_text(encoding="utf-8")
CONDITIONS = {"service_healthy", "service_completed_successfully"}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(TEXT)["services"])


def test_images_are_pinned_or_built_here(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        built = service.get("build")
        assert built or re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", service["image"]), name
        if built:
            dockerfile = (ROOT / "infra" / built["context"] / "Dockerfile").read_text()
            assert f" AS {built['target']}\n" in dockerfile


def test_whoever_is_waited_for_can_become_ready(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] in CONDITIONS, name
            assert wait["condition"] != "service_healthy" or "healthcheck" in services[other], other
    running = [name for name, service in services.items() if service.get("restart") != "no"]
    assert all("healthcheck" in services[name] for name in running)


def test_passwords_are_not_in_the_file_and_ports_are_local(services: dict[str, dict[str, Any]]) -> None:
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${ID2_POSTGRES_PASSWORD:?")
    url = services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert re.search(r"://prefect:\$\{ID2_POSTGRES_PASSWORD:\?\}@postgres:", url)
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert "/infra/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_volumes_are_declared_and_mounted_files_exist(services: dict[str, dict[str, Any]]) -> None:
    declared = set(yaml.safe_load(TEXT)["volumes"])
    for service in services.values():
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert (ROOT / "infra" / source).exists() if source.startswith(".") else source in declared


def test_the_setup_service_serves_the_deployment_and_the_pool(services: dict[str, dict[str, Any]]) -> None:
    deployments = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    names = {f"{d['entrypoint'].rpartition(':')[2]}/{d['name']}" for d in deployments}
    pools = {d["work_pool"]["name"] for d in deployments}
    assert up.NIGHTLY in names and pools == {up.POOL, up.GPU_POOL}
    assert services["setup"]["command"][:3] == ["python", "infra/up.py", "deploy"]
    assert up.POOL in services["worker"]["command"]
    assert (up.DEMO / "references").is_dir() and (up.DEMO / "uploads").is_dir()


@pytest.mark.slow
def test_one_command_runs_a_night_that_the_server_knows(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "ID2_"))}
    arguments = ["--out", str(out), "--home", str(tmp_path / "prefect"), "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "infra/up.py"), *arguments], env=own, stdout=log, stderr=log
        )
    try:
        ended = lambda: process.poll() is not None or (out / "report.html").exists()  # noqa: E731
        wait_until(ended, 900, "the night's report")
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(600)
