"""The reference pages of docs/ are what the definitions of options and results give."""

import json

import pytest
import typer
from typer.core import TyperGroup

from factory import option_tables
from flows.cli import app
from id2.options import options_of

REGENERATE = "run `make docs`"


def commands(group: TyperGroup, prefix: str = "") -> set[str]:
    names = set()
    for name, command in group.commands.items():
        names |= commands(command, f"{prefix}{name} ") if isinstance(command, TyperGroup) else {prefix + name}
    return names


def test_options_are_up_to_date() -> None:
    committed = (option_tables.DOCS / "options.md").read_text(encoding="utf-8")
    assert committed == option_tables.options_page(), REGENERATE


def test_every_command_with_options_has_a_section() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    documented = {option_tables.command_name(function) for function in option_tables.functions()}
    assert documented == commands(group) - {"experiment list"}


@pytest.mark.parametrize("function", option_tables.functions(), ids=lambda function: function.name)
def test_every_option_has_a_meaning(function) -> None:  # type: ignore[no-untyped-def]
    for name, field in options_of(function.request):
        assert field.description, f"{function.name}: {name}"


def test_schemas_are_up_to_date() -> None:
    schemas = option_tables.result_schemas()
    folder = option_tables.DOCS / "schemas"
    assert {path.stem for path in folder.iterdir()} == set(schemas), REGENERATE
    for name, text in schemas.items():
        assert (folder / f"{name}.json").read_text(encoding="utf-8") == text, REGENERATE
        assert json.loads(text)["title"] == name
