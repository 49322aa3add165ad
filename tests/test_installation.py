"""`pip install 'id2[cpu]'` alone is enough for every command but those that name an extra."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COMMANDS = [
    "calibrate",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "experiment",
    "finetune",
    "import-oripid",
    "report",
    "scan",
    "train",
    "translate",
]
# Every module of another package is missing: as after an install without it.
WITHOUT_EXTRAS = """
import importlib.abc, pkgutil, importlib, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from typer.testing import CliRunner
from flows.cli import app
for words in COMMANDS:
    result = CliRunner().invoke(app, [*words.split(), "--help"])
    assert result.exit_code == 0, (words, result.output, result.exception)
import id2.jobs
for module in pkgutil.iter_modules(id2.jobs.__path__):
    importlib.import_module(f"id2.jobs.{module.name}")
"""
# None of these is needed to say what a command does.
HEAVY = ("torch", "apache_beam", "prefect", "diffusers", "transformers", "faiss", "scipy")
LIGHT = """
import sys
from typer.testing import CliRunner
from flows.cli import app
for words in COMMANDS:
    assert CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0, words
assert not set(HEAVY) & set(sys.modules), set(HEAVY) & set(sys.modules)
"""


def closure(name: str, extras: set[str]) -> set[str]:
    """The packages that an install of one brings along, itself among them."""
    known: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), frozenset(extras))]
    while waiting:
        package = waiting.pop()
        if package in known:
            continue
        known.add(package)
        try:
            lines = metadata.requires(package[0]) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        for requirement in map(Requirement, lines):
            wanted = [{"extra": extra} for extra in (*package[1], "")]
            if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {package for package, _ in known}


def run(code: str, **names: object) -> None:
    header = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    process = subprocess.run([sys.executable, "-c", f"{header}\n{code}"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.fixture(scope="module")
def missing() -> list[str]:
    """The top-level modules that only extras bring."""
    there = closure("id2", {"cpu"})
    assert "faiss-cpu" in there and "torch" in there and "tenacity" not in there
    modules = metadata.packages_distributions().items()
    return sorted(
        module for module, packages in modules if not {canonicalize_name(p) for p in packages} & there
    )


def test_every_command_and_job_loads_with_the_cpu_extra_alone(missing: list[str]) -> None:
    assert "matplotlib" in missing
    run(WITHOUT_EXTRAS, MISSING=missing, COMMANDS=COMMANDS)


def test_help_loads_neither_torch_nor_beam_nor_prefect() -> None:
    run(LIGHT, HEAVY=HEAVY, COMMANDS=[*COMMANDS, "experiment run", "experiment data"])
