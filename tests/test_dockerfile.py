"""What a build would only find out late, or never: the Dockerfile against the lock file and the tree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {"base", "wheel", "beam-worker", "prefect-worker"}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)$")

Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """Instructions of each stage, the FROM line first; lines that go on are joined, comments left out."""
    lines = [x for x in (ROOT / "Dockerfile").read_text().splitlines() if not x.startswith("#")]
    by_stage: dict[str, list[Instruction]] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            name = rest.split(" AS ")[1]
        by_stage.setdefault(name, []).append((word, rest))
    return by_stage


def argument_lists(stage: str, word: str) -> list[list[str]]:
    return [json.loads(rest) for name, rest in stages()[stage] if name == word]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    pins = [PIN.match(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
    assert all(pins), "the Dockerfile picks packages by lines of name==version"
    return {pin[1]: pin[2] for pin in pins if pin}


def test_beams_launcher_is_of_the_locked_version_and_of_the_same_python(lock: dict[str, str]) -> None:
    [image] = [rest for word, rest in stages()["base"] if word == "FROM"]
    python = re.match(r"python:(3\.\d+)-slim", image)
    assert python
    [launcher] = [rest for word, rest in stages()["beam-worker"] if "--from=apache/" in rest]
    assert launcher.split() == [
        f"--from=apache/beam_python{python[1]}_sdk:{lock['apache-beam']}",
        "/opt/apache/beam",
        "/opt/apache/beam",
    ]
    assert argument_lists("beam-worker", "ENTRYPOINT") == [["/opt/apache/beam/boot"]]


def test_each_image_takes_torch_and_one_faiss_from_the_lock(lock: dict[str, str]) -> None:
    assert {"torch", "faiss-cpu"} <= set(lock) and "faiss-gpu" not in lock
    commands = {stage: " ".join(rest for _, rest in stages()[stage]) for stage in STAGES}
    assert "grep -vE '^(torch|faiss-cpu)=='" in commands["base"]
    assert "s/^faiss-cpu==/faiss-gpu==/p" in commands["beam-worker"]
    assert "grep -E '^(torch|faiss-cpu)=='" in commands["prefect-worker"]
    assert "/whl/cu12" in commands["beam-worker"], "faiss-gpu is built for CUDA 12"
    assert all("pip check" in commands[stage] for stage in ("beam-worker", "prefect-worker"))


def test_the_prefect_worker_serves_the_pool_of_the_deployments_and_is_not_root() -> None:
    [command] = argument_lists("prefect-worker", "CMD")
    assert command == ["prefect", "worker", "start", "--pool", "id2", "--type", "process"]
    pools = re.findall(r"work_pool:\n +name: (.+)", (ROOT / "infra/prefect.yaml").read_text())
    assert pools == ["id2"] * 6 + ["id2-gpu", "id2"]
    assert [rest for word, rest in stages()["prefect-worker"] if word == "USER"] == ["1000"]


def test_what_is_copied_exists_and_passes_the_dockerignore() -> None:
    assert set(stages()) == STAGES
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    sources = {
        source
        for instructions in stages().values()
        for word, rest in instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert sources == let_through
    assert all((ROOT / source).exists() for source in sources)
