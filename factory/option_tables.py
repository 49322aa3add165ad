"""Write the reference pages of docs/ from the definitions of options and results: `make docs`."""

from __future__ import annotations

import importlib
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import id2
from id2.options import flag_of, note, options_of
from id2core.options import valid_values
from id2core.runs.records import Run
from id2core.settings import Settings
from id2core.verdicts.calibration import Calibration

DOCS = Path(__file__).parent.parent / "docs"
# Functions whose command has another name.
COMMANDS = {"experiment": "experiment run", "experiment-data": "experiment data"}
# Beam's own options have no flag: they follow after two dashes.
AFTER_DASHES = "beam_arguments"
INTRODUCTION = """\
# Options

`make docs` writes this page from `id2/requests.py` and `id2core/settings.py`. Do not edit it by hand.

An option has one definition and three spellings. `--top-k` on the command line is `top_k` in Python
(`id2.scan(top_k=5, …)`) and `--param top_k=5` of a Prefect deployment. Every command except
`id2 experiment list` also takes `--json`, which prints the result as one JSON object on stdout.
[schemas/](schemas) has the JSON schema of each result.
"""
SETTINGS = """\
## Environment variables

Set a default once, as an environment variable or in a file of them that `ID2_ENV_FILE` names. A `.env` in the
working directory is not read unless it is named there. A flag, a flow parameter, or an argument in Python
overrides a default. `id2 doctor` prints the values in force.
"""


def options_page() -> str:
    """Return docs/options.md: the settings, then the options of each command."""
    sections = [INTRODUCTION, SETTINGS + "\n" + _table("variable", _setting_rows())]
    for function in functions():
        request = function.request
        text = " ".join((request.__doc__ or "").split())
        rows = (_option_row(name, field) for name, field in options_of(request))
        sections.append(f"## id2 {command_name(function)}\n\n{text}\n\n{_table('option', rows)}")
    return "\n".join(sections)


def result_schemas() -> dict[str, str]:
    """Return the JSON schema of each result of a function of `id2`, and of what is stored, by model."""
    models = {name: _model(name, function) for function in functions() for name in function.results}
    models |= {model.__name__: model for model in (Calibration, Run)}
    return {
        name: json.dumps(model.model_json_schema(mode="serialization"), indent=2, ensure_ascii=False) + "\n"
        for name, model in sorted(models.items())
    }


def _model(name: str, function: id2.Function[..., Any]) -> type[BaseModel]:
    """Return a result's model, from `id2.results` or from the module of the work that gives it."""
    from id2 import results

    place = results if hasattr(results, name) else importlib.import_module(f"id2.jobs.{function.__name__}")
    model: type[BaseModel] = getattr(place, name)
    return model


def pages() -> dict[str, str]:
    """Return the text of every page by its path below docs/."""
    schemas = {f"schemas/{name}.json": text for name, text in result_schemas().items()}
    return {"options.md": options_page()} | schemas


def functions() -> list[id2.Function[..., Any]]:
    """Return the functions of `id2` that have a command."""
    return [value for value in vars(id2).values() if isinstance(value, id2.Function)]


def command_name(function: id2.Function[..., Any]) -> str:
    """Return the command of a function, such as `experiment data`."""
    return COMMANDS.get(function.name, function.name)


def _table(first: str, rows: Iterator[tuple[str, ...]]) -> str:
    lines = [(first, "default", "values", "meaning", "example"), ("---",) * 5, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _setting_rows() -> Iterator[tuple[str, ...]]:
    for name, field in Settings.model_fields.items():
        variable = f"ID2_{name.upper()}"
        example = f"`{variable}={field.examples[0]}`" if field.examples else ""
        yield f"`{variable}`", f"`{field.default}`", _values(field), field.description or "", example


def _option_row(name: str, field: FieldInfo) -> tuple[str, ...]:
    flag = "" if note(field, "positional") else flag_of(name)
    label = flag or name.upper()
    if not field.is_required() and field.default is True:
        label = f"{flag}/--no-{flag[2:]}"
    example = _example(field.examples[0], flag) if field.examples else ""
    if name == AFTER_DASHES and field.examples:
        label, example = "-- …", "-- " + " ".join(field.examples[0])
    source = Settings.model_fields[note(field, "setting")] if note(field, "setting") else field
    shown = f"`{example}`" if example else ""
    return f"`{label}`", _default(field), _values(source), field.description or "", shown


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if unset := note(field, "unset"):
        return str(unset)
    return "–" if default in (None, [], "") else f"`{default}`"


def _values(field: FieldInfo) -> str:
    """Return bounds or choices; an option that takes several says so."""
    if typing.get_origin(field.annotation) is list:
        return "one or more" if field.is_required() else "any number"
    # On a command line nothing spells None: leave the option out.
    return valid_values(field).removesuffix(", or None")


def _example(example: Any, flag: str) -> str:
    values = example if isinstance(example, list) else [example]
    return " ".join(f"{flag} {value}".strip() for value in values)


def write(docs: Path = DOCS) -> None:
    """Write every page below docs/."""
    for name, text in pages().items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
