from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from id2core import experiments
from id2core.errors import ExperimentError
from id2core.experiments import registry

TOY = '''
from id2core.experiments.declaration import experiment
from id2core.experiments.results import Skipped

@experiment("toy", "Table 0: a toy", place=5)
def toy(methods):
    """Return nothing but a reason."""
    return Skipped("a toy")
'''


def test_names_and_titles_stand_in_the_order_of_the_page_and_cost_no_import() -> None:
    script = (
        "import sys\nfrom id2core.experiments import registry\n"
        "print(*registry.titles())\nsys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    names = "t3 open rates size t2 t1 t4 existence t5 t6 t7 f7 uploads uploads-open"
    names += " uploads-two hard-negatives f8 t8 t11 manual"
    assert run.stdout.split() == names.split() == list(registry.titles())


def test_every_declaration_names_a_function() -> None:
    for name in registry.titles():
        assert callable(registry.load(name).run)


def test_a_new_experiment_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toys.py").write_text(TOY)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    registry.experiments_by_name.cache_clear()
    try:
        assert next(iter(registry.titles().items())) == ("toy", "Table 0: a toy")
        assert registry.load("toy").run(None).reason == "a toy"  # type: ignore[arg-type, union-attr]
        (tmp_path / "more_toys.py").write_text(TOY)
        importlib.invalidate_caches()
        registry.experiments_by_name.cache_clear()
        with pytest.raises(ValueError, match="one name"):
            registry.titles()
    finally:
        registry.experiments_by_name.cache_clear()


def test_only_known_experiments_are_selected() -> None:
    assert registry.select(["all"]) == list(registry.titles())
    assert registry.select(["f8", "t3"]) == ["f8", "t3"]
    with pytest.raises(ExperimentError, match=r"no experiment t99: choose t3, .* or all"):
        registry.select(["t3", "t99"])
