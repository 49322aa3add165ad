"""JSON that says what a run does, read under limits: whoever can write a file may have written this one.

What Python's reader lets through and hurts later is refused by one error: deep nesting, numbers that fit no
column, NaN, a key that is there twice, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from id2core.errors import ID2Error
from id2core.store import storage

M = TypeVar("M", bound=BaseModel)
# Levels of lists and objects in each other; files of this program have five at most.
MAX_DEPTH: Final = 64
# Limit of a file beside a model, such as `config.json`.
SIDECAR_BYTES: Final = 16 << 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A text that is no JSON, or JSON that no honest file has."""


def parse(data: bytes | str, max_bytes: int = storage.CONTROL_BYTES) -> Any:
    """Return the value of a JSON text.

    Raises:
        JsonError: it is too long, no JSON, nested too deep, holds a number outside of 64 bits or not finite,
            or an object with a key twice.
    """
    if len(data) > max_bytes:
        raise JsonError(f"{len(data)} bytes, more than {max_bytes}")
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except JsonError:
        raise
    except RecursionError:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise JsonError(f"no JSON: {error}") from None
    return value


def parse_object(data: bytes | str, max_bytes: int = storage.CONTROL_BYTES) -> dict[str, Any]:
    """Return the JSON object in a text; JsonError for any other value, see `parse`."""
    value = parse(data, max_bytes)
    if not isinstance(value, dict):
        raise JsonError("no JSON object")
    return value


def read_file(path: Path, max_bytes: int = SIDECAR_BYTES) -> dict[str, Any]:
    """Return the JSON object in a local file, whose size is checked before it is read.

    Raises:
        OSError: it cannot be read.
        JsonError: see `parse`.
    """
    with path.open("rb") as file:
        return parse_object(file.read(max_bytes + 1), max_bytes)


def read_model(uri: str, model: type[M], error: type[ID2Error], mend: str) -> M | None:
    """Return what this program wrote as JSON of a model; None where there is no file.

    Args:
        uri: the file.
        model: of its content.
        error: raised, with the file's name, where it is damaged.
        mend: what to do then.
    """
    try:
        data, _ = storage.read_marked(uri)
    except FileNotFoundError:
        return None
    try:
        parse(data)
        return model.model_validate_json(data)
    except (JsonError, ValidationError) as fault:
        what = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else fault
        raise error(f"{uri} is damaged ({what}): {mend}") from None


def read_derived(uri: str, model: type[M]) -> M | None:
    """Return what a file says that can be made again; None where there is none, or none of this model.

    Args:
        uri: the file.
        model: of its content.
    """
    try:
        return model.model_validate_json(storage.read_marked(uri)[0])
    except (FileNotFoundError, ValidationError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise JsonError("a key is there twice")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise JsonError("an integer of more than 64 bits")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError("a number that is not finite")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is no number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        holders = [item for item in level if isinstance(item, dict | list)]
        if not holders:
            return
        level = [item for held in holders for item in (held.values() if isinstance(held, dict) else held)]
    raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
