"""Every experiment of this package, as `declaration.experiment` declares them.

The declarations are read from the sources of the modules: names and titles cost no import. Only an experiment
that runs has its module imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader
from typing import TYPE_CHECKING

from id2core import experiments
from id2core.errors import ExperimentError

if TYPE_CHECKING:
    from id2core.experiments.declaration import Run

ALL = "all"
_DECORATOR = "experiment"


@dataclass(frozen=True)
class Experiment:
    """What a module declares of its experiment.

    Attributes:
        name: such as `t3`.
        title: such as `Table 3: seen and unseen models`.
        place: on the results page.
        module: full name of the module that holds it.
        function: name of the function there.
    """

    name: str
    title: str
    place: int
    module: str
    function: str

    @property
    def run(self) -> Run:
        """Import and return the function that measures it."""
        run: Run = getattr(importlib.import_module(self.module), self.function)
        return run


@functools.cache
def experiments_by_name() -> dict[str, Experiment]:
    """Return all experiments by name, in the order of the results page.

    Raises:
        ValueError: two experiments have one name.
    """
    declared = sorted(_read_all(), key=lambda each: (each.place, each.name))
    by_name = {each.name: each for each in declared}
    if len(by_name) < len(declared):
        raise ValueError(f"two experiments have one name: {[each.name for each in declared]}")
    return by_name


def titles() -> dict[str, str]:
    """Return name → title, in the order of the results page."""
    return {name: each.title for name, each in experiments_by_name().items()}


def select(names: Sequence[str]) -> list[str]:
    """Return the names of experiments; `all` alone means every one.

    Raises:
        ExperimentError: there is no such experiment.
    """
    known = experiments_by_name()
    if list(names) == [ALL]:
        return list(known)
    if unknown := [name for name in names if name not in known]:
        raise ExperimentError(f"no experiment {', '.join(unknown)}: choose {', '.join(known)} or {ALL}")
    return list(names)


def load(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        ExperimentError: there is no such experiment.
    """
    return experiments_by_name()[select([name])[0]]


def _read_all() -> Iterator[Experiment]:
    for module in pkgutil.iter_modules(experiments.__path__, f"{experiments.__name__}."):
        loader = importlib.util.find_spec(module.name).loader  # type: ignore[union-attr]
        assert isinstance(loader, InspectLoader)
        source = loader.get_source(module.name) or ""
        if f"@{_DECORATOR}(" in source:
            yield from _read(module.name, ast.parse(source))


def _read(module: str, tree: ast.Module) -> Iterator[Experiment]:
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in function.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == _DECORATOR:
                name, title, place = map(ast.literal_eval, (*call.args, *(k.value for k in call.keywords)))
                yield Experiment(name, title, place, module, function.name)
