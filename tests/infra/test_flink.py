"""infra/flink/, as far as the files say. What they set is tested on a real Flink by `make test-cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from id2core.environment import versions
from tests.cluster.flink import deployed
from tests.commands import call

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/flink"
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"])


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    files = (FOLDER / "kubernetes.yaml", FOLDER / "job.yaml")
    return {m["kind"]: m for file in files for m in yaml.safe_load_all(file.read_text())}


def test_each_task_manager_has_a_worker_pool_of_its_own(services: dict[str, dict[str, Any]]) -> None:
    managers = [service for service in services.values() if service["command"] == ["taskmanager"]]
    pools = [service for service in services.values() if service["command"] == ["--worker_pool"]]
    assert len(managers) == len(pools) == 2
    networks = sorted(pool["network_mode"] for pool in pools)
    assert networks == sorted(manager["network_mode"] for manager in managers)
    assert networks == ["service:host-1", "service:host-2"]  # each outlives what is in it
    assert all(services[network.partition(":")[2]]["command"] == ["infinity"] for network in networks)
    assert all(pool["build"]["target"] == "beam-worker" for pool in pools)
    assert all(pool["volumes"] == services["submit"]["volumes"] for pool in pools)


def test_the_files_of_a_job_are_where_task_managers_read_them(services: dict[str, dict[str, Any]]) -> None:
    assert "--artifacts-dir=/artifacts" in services["job-server"]["command"]
    for name in ("job-server", "task-manager-1", "task-manager-2"):
        assert "artifacts:/artifacts" in services[name]["volumes"], name


def test_ports_are_local_and_whoever_is_waited_for_can_become_ready(
    services: dict[str, dict[str, Any]],
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        for other, wait in service.get("depends_on", {}).items():
            is_server = "healthcheck" in services[other]
            assert wait["condition"] == ("service_healthy" if is_server else "service_completed_successfully")


def test_flink_is_set_up_alike_everywhere(
    services: dict[str, dict[str, Any]], manifests: dict[str, dict[str, Any]]
) -> None:
    spec = manifests["FlinkDeployment"]["spec"]
    own = {"jobmanager.rpc.address": "job-manager"}  # the operator sets its own
    assert deployed() == spec["flinkConfiguration"] | own
    assert spec["image"] == services["job-manager"]["image"] == "flink:1.19.3-java17"
    assert spec["flinkVersion"] == "v1_19"
    [server] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert server["image"] == services["job-server"]["image"]
    assert server["image"] == f"apache/beam_flink1.19_job_server:{versions()['apache-beam']}"


def test_flink_loads_the_classes_of_the_job_server_that_sends_jobs(
    services: dict[str, dict[str, Any]], manifests: dict[str, dict[str, Any]]
) -> None:
    pod = manifests["FlinkDeployment"]["spec"]["podTemplate"]["spec"]
    [copy], [main] = pod["initContainers"], pod["containers"]
    place = {item["name"]: item["value"] for item in main["env"]}["HADOOP_CLASSPATH"]
    assert copy["image"] == services["beam-jar"]["image"] == services["job-server"]["image"]
    assert copy["command"][-1:] == services["beam-jar"]["command"] == [f"cp jars/*.jar {place}"]
    assert copy["volumeMounts"] == main["volumeMounts"]
    assert services["beam-jar"]["volumes"] == ["beam:/beam"]
    for name in ("job-manager", "task-manager-1", "task-manager-2"):
        assert services[name]["environment"]["HADOOP_CLASSPATH"] == place, name
        assert "beam:/beam:ro" in services[name]["volumes"], name


def test_the_pool_is_in_the_pod_of_its_task_manager_with_the_gpu(
    manifests: dict[str, dict[str, Any]],
) -> None:
    pod = manifests["FlinkDeployment"]["spec"]["taskManager"]["podTemplate"]["spec"]
    manager, pool = pod["containers"]
    assert manager["name"] == "flink-main-container"
    assert pool["args"] == ["--worker_pool"] and pool["resources"]["limits"][GPU] == 1
    assert pool["ports"] == [{"containerPort": 50000}]


def test_the_service_leads_to_the_job_server(manifests: dict[str, dict[str, Any]]) -> None:
    service, template = manifests["Service"], manifests["Deployment"]["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    [server] = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    arguments = manifests["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--job_endpoint={service['metadata']['name']}:{ports['jobs']}" in arguments
    name = manifests["FlinkDeployment"]["metadata"]["name"]
    assert f"--flink-master={name}-rest:8081" in server["args"]


def test_the_job_is_a_command_that_the_project_has(manifests: dict[str, dict[str, Any]]) -> None:
    [container] = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    command, *arguments = [*container["command"][1:], *container["args"]]
    own, beam = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    done = call(command, *own, "--images=/nowhere", "--out=/nowhere/out", "--", *beam)
    assert done.returncode == 1 and "/nowhere" in done.stderr, done.stderr
