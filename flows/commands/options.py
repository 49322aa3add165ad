"""Commands made of functions of `id2`: each option becomes a flag, with the same help and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.markup import escape

import id2
from flows.commands import console
from id2.options import BeamRequest, Request, flag_of, note, options_of
from id2core.errors import ID2Error
from id2core.settings import Settings

R = TypeVar("R", bound=Request)
T = TypeVar("T", bound=BaseModel)
# Handed over after `--`.
_AFTER_DASHES = "beam_arguments"
# Sources of a value that a user gave.
_GIVEN = ("COMMANDLINE", "ENVIRONMENT", "PROMPT")
_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")],
)


def command(
    app: typer.Typer,
    function: id2.Function[Any, Any],
    flow: str,
    *,
    name: str = "",
    epilog: str = "",
) -> Callable[[Callable[[T, R], None]], None]:
    """Add a command for a function of `id2`; what is decorated prints the result for a person.

    Args:
        app: where the command is added.
        function: its options become flags, its docstring the help.
        flow: `module:name` of the flow that runs instead where PREFECT_API_URL is set.
        name: of the command, where it is not that of the function.
        epilog: examples, at the end of the help.
    """

    def decorate(show: Callable[[T, R], None]) -> None:
        def run(context: typer.Context, as_json: bool, **values: Any) -> None:
            request = _request(function.request, context, values)
            result = console.run(lambda: _execute(function, request, flow))
            if result is None:  # one of torchrun's further processes
                return
            if as_json:
                console.print_json(result)
            else:
                show(result, request)  # type: ignore[arg-type]

        flags = [
            _parameter(name, field) for name, field in options_of(function.request) if name != _AFTER_DASHES
        ]
        run.__signature__ = inspect.Signature([_CONTEXT, *flags, _JSON])  # type: ignore[attr-defined]
        extra = {"allow_extra_args": True} if issubclass(function.request, BeamRequest) else {}
        text = inspect.cleandoc(function.request.__doc__ or "")
        usage = "[OPTIONS] [-- BEAM_OPTIONS]" if extra else "[OPTIONS]"
        added = app.command(
            name or function.name, help=text, context_settings=extra, epilog=epilog, options_metavar=usage
        )
        added(run)

    return decorate


def _execute(function: id2.Function[Any, Any], request: Request, flow: str) -> BaseModel | None:
    request.check()
    result: BaseModel | None = console.flow_or_function(function, request, flow)
    return result


def _request(kind: type[Request], context: typer.Context, values: dict[str, Any]) -> Request:
    """The request of the flags that were given; a value that does not fit is bad usage."""
    given = {
        name: value
        for name, value in values.items()
        if getattr(context.get_parameter_source(name), "name", "") in _GIVEN
    }
    if context.args:
        given[_AFTER_DASHES] = context.args
    try:
        return kind(**given)
    except ID2Error as error:
        raise typer.BadParameter(str(error)) from error


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
    declare = typer.Argument if note(field, "positional") else typer.Option
    flag = "" if note(field, "positional") else flag_of(name)
    # What is on by default has a flag to turn it off.
    names = [f"{flag}/--no-{flag[2:]}" if default is True else flag] if flag else []
    shown = default not in (None, [], "")
    info = declare(*names, help=_help(field, flag), show_default=shown, **_bounds(field))
    annotation: Any = Annotated[field.annotation, info]
    if default == []:
        annotation, default = Annotated[field.annotation | None, info], None  # type: ignore[operator]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Inclusive bounds, so that click refuses what is outside by the flag's name."""
    source = Settings.model_fields[note(field, "setting")] if note(field, "setting") else field
    bounds: dict[str, Any] = {}
    for bound in source.metadata:
        if isinstance(bound, Ge):
            bounds["min"] = bound.ge
        elif isinstance(bound, Le):
            bounds["max"] = bound.le
    return bounds


def _example(example: Any, flag: str) -> str:
    """An example as it is typed; an option that takes several is repeated."""
    if not isinstance(example, list):
        return str(example)
    return " ".join(f"{flag} {value}".strip() for value in example)


def _help(field: FieldInfo, flag: str) -> str:
    """Meaning, example, and what holds where the option is not given."""
    parts = [field.description or ""]
    if field.examples and field.is_required():
        parts.append(f"Example: {_example(field.examples[0], flag)}.")
    if unset := note(field, "unset"):
        parts.append(f" [default: {unset}]")
    return escape(" ".join(parts))
