"""One definition of an option gives the function's argument, the flow's parameter, the flag, and the docs.

A request holds the options of one function; each field states its meaning, unit, default, bounds and
example. `signature_of` shows them to whoever calls `id2.scan(…)`, to Prefect, and to the command line.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, JsonValue, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from id2core import settings
from id2core.errors import OptionError
from id2core.options import Options
from id2core.runs.progress import Listener
from id2core.settings import Settings
from id2core.store import names


def option(
    help: str,
    default: Any = ...,
    *,
    unset: str | None = None,
    example: Any = None,
    positional: bool = False,
    needs: str | None = None,
    **bounds: Any,
) -> Any:
    """Define an option that has no environment variable.

    Args:
        help: meaning and unit, in whole sentences.
        default: its value where it is not given; without one, it is required.
        unset: what happens where it is not given, if the default alone does not say.
        example: a value that a user might give.
        positional: True for an argument without a flag.
        needs: name of the option without which this one says nothing: `Request.check` refuses it alone. Its
            default has to be None.
        bounds: as of `pydantic.Field`: `ge`, `gt`, `le`, `lt`, `min_length`.
    """
    notes: dict[str, JsonValue] = {"unset": unset, "positional": positional, "needs": needs}
    examples = None if example is None else [example]
    return Field(default, description=help, examples=examples, json_schema_extra=notes, **bounds)


def _typed(default: object) -> str:
    """Return a default as a command line spells it."""
    return "none" if default is None else str(default)


def setting(name: str) -> Any:
    """Define an option that overrides a setting; help, bounds, default and example are the setting's."""
    field = Settings.model_fields[name]
    notes: dict[str, JsonValue] = {"setting": name, "unset": f"ID2_{name.upper()} or {_typed(field.default)}"}
    return Field(None, description=field.description, examples=field.examples, json_schema_extra=notes)


def _as_text(value: Any) -> Any:
    """Turn path objects into text, and bytes of a name that are no UTF-8 into escapes."""
    if isinstance(value, list | tuple):
        return [_as_text(item) for item in value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return names.as_text(text) if isinstance(text, str) else text


class Request(Options):
    """What is asked of one of the functions of `id2`; each kind of request has its own options.

    Attributes:
        progress: is called with a stage and its counts whenever these change.
    """

    progress: SkipJsonSchema[Listener | None] = Field(None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _take_paths(cls, data: Any) -> Any:
        return {name: _as_text(value) for name, value in data.items()} if isinstance(data, dict) else data

    def settings(self) -> Settings:
        """Return the settings that hold for this request.

        Raises:
            OptionError: a value is out of bounds, given or in the environment.
        """
        overrides = {
            name: getattr(self, name) for name, field in options_of(type(self)) if note(field, "setting")
        }
        return settings.load(**overrides)

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded; each kind of request adds its checks."""
        for name, field in options_of(type(self)):
            needed = note(field, "needs")
            if needed and getattr(self, needed) is None and getattr(self, name) is not None:
                flag, other = flag_of(name), flag_of(needed)
                raise OptionError(f"{flag} goes with {other}: give {other}, too, or leave {flag} out")
        self.settings()


class BeamRequest(Request):
    """A request whose work runs as a Beam job."""

    runner: str | None = option(
        "Beam runner: FnApiRunner (in this process), FlinkRunner, SparkRunner, DataflowRunner or "
        "PortableRunner.",
        None,
        unset="FnApiRunner",
        example="FlinkRunner",
    )
    beam_arguments: list[str] = option(
        "The runner's own options. On a command line they follow after `--`.",
        [],
        example=["--direct_running_mode=multi_processing", "--direct_num_workers=4"],
    )

    @property
    def beam(self) -> list[str]:
        """Return all arguments for Beam, the runner first."""
        return [*([f"--runner={self.runner}"] if self.runner else []), *self.beam_arguments]

    @property
    def template(self) -> str | None:
        """Return where the job is staged to start later (`--template_location=…`), else None."""
        places = [a.partition("=")[2] for a in self.beam_arguments if a.startswith("--template_location=")]
        return places[-1] if places else None

    def check(self) -> None:
        """Refuse stray words, and options that Beam does not know: it would only warn of them."""
        super().check()
        if self.beam:
            from beam_jobs import runners

            runners.check(self.beam)


class OneJobRequest(BeamRequest):
    """A request whose work is one job, with nothing behind it: the command need not wait for its end."""

    detach: bool = option(
        "Submit the job, print its id, and do not wait. Needs Dataflow or --job_endpoint. When the job has "
        "ended, run the command again without this option to see the counts.",
        False,
    )

    def check(self) -> None:
        """Refuse to leave a job that would end with the command."""
        super().check()
        if not self.detach:
            return
        if self.template:
            raise OptionError("give either --detach or --template_location")
        from beam_jobs import runners

        runners.check_outlives(self.beam)


def options_of(request: type[Options]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the options of a request by name: the required ones first, then its own, then inherited ones."""
    own = request.__annotations__
    fields = [(name, field) for name, field in request.model_fields.items() if not field.exclude]
    yield from sorted(fields, key=lambda item: (not item[1].is_required(), item[0] not in own))


def flag_of(name: str) -> str:
    """Return an option as a command line spells it."""
    return f"--{name.replace('_', '-')}"


def note(field: FieldInfo, key: str) -> Any:
    """Return what `option` or `setting` noted of a field; None where it noted nothing."""
    notes = field.json_schema_extra
    return notes.get(key) if isinstance(notes, dict) else None


def signature_of(request: type[Options]) -> inspect.Signature:
    """Return the options of a request as keyword parameters, each annotated with its `FieldInfo`."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=Annotated[field.annotation, field],
        )
        for name, field in options_of(request)
    ]
    return inspect.Signature(parameters)
