"""Options as frozen models: a field states its meaning, unit, default and bounds, and nothing repeats them.

Flags, flow parameters and the tables of the documentation follow from the fields. The modules that define
options import no torch, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, get_args

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from id2core.errors import ID2Error, OptionError


class Options(BaseModel):
    """Options that are checked together when they are given.

    A wrong value raises `error` with one readable line, here and in models that hold this one.

    Attributes:
        error: the exception for a wrong value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    error: ClassVar[type[ID2Error]] = OptionError

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some options changed, checked like a new one."""
        return self.model_validate(self.model_dump(exclude_unset=True) | changes)

    def check_together(self) -> None:
        """Raise `self.error` where options, each valid, exclude one another; a hook."""

    @model_validator(mode="wrap")
    @classmethod
    def _raise_one_line(cls, data: Any, validate: Callable[[Any], Self]) -> Self:
        try:
            options = validate(data)
        except ValidationError as error:
            raise cls.error("; ".join(_line(cls, fault) for fault in error.errors())) from error
        options.check_together()
        return options


def _line(options: type[BaseModel], fault: ErrorDetails) -> str:
    """Return one fault that pydantic found as "NAME is VALUE: choose …"."""
    if not fault["loc"]:
        return str(fault["msg"])
    name = str(fault["loc"][0])
    field = options.model_fields.get(name)
    if field is None:
        known = [name for name, field in options.model_fields.items() if not field.exclude]
        return f"there is no {name}: choose from {', '.join(known)}"
    if fault["type"] == "missing":
        return f"{name} is missing"
    value = fault["input"]
    valid = valid_values(field)
    return f"{name} is {value!r}: " + (f"choose {valid}" if valid else str(fault["msg"]))


def valid_values(field: FieldInfo) -> str:
    """Return what a field accepts in words, such as `1 or more, or None`; empty where nothing limits it."""
    kinds = get_args(field.annotation)
    literals = [str(kind) for kind in kinds if isinstance(kind, str)]
    text = ", ".join(literals) or _hint(field) or _range(field.metadata)
    return f"{text}, or None" if text and type(None) in kinds else text


def _hint(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("hint", "")) if isinstance(extra, dict) else ""


def _range(bounds: list[Any]) -> str:
    words = []
    for bound in bounds:
        match bound:
            case Ge(ge):
                words.append(f"{ge} or more")
            case Gt(gt):
                words.append(f"above {gt}")
            case Le(le):
                words.append(f"to {le}")
            case Lt(lt):
                words.append(f"below {lt}")
            case MultipleOf(number):
                words.append(f"a multiple of {number}")
            case _:
                pass
    return ", ".join(words)
