"""What a JSON file beside a model, `NAME.json`, says of its input: `size`, `mean`, and `std`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from id2core.encoders.preprocess import Preprocess
from id2core.errors import EncoderError
from id2core.store import strict_json


def file_of(path: Path) -> Path:
    """Return the file beside a model."""
    return path.with_suffix(".json")


def read(path: Path) -> dict[str, Any]:
    """Return what the file beside a model says, nothing where there is none.

    Raises:
        EncoderError: it is no JSON object.
    """
    file = file_of(path)
    if not file.is_file():
        return {}
    try:
        return strict_json.read_file(file)
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{file}: expected size, mean and std: {error}") from error


def preprocess_of(facts: Mapping[str, Any], place: object, default: Preprocess | None = None) -> Preprocess:
    """Return what must happen to pixels, by `size`, `mean`, and `std`.

    Args:
        facts: some of the three.
        place: where they are from, for messages.
        default: what they leave out; by default, 256 pixels and [−1,1].

    Raises:
        EncoderError: a value is of another kind.
    """
    default = default or Preprocess()
    try:
        r, g, b = facts.get("mean", default.mean)
        sr, sg, sb = facts.get("std", default.std)
        return Preprocess(int(facts.get("size", default.size)), (r, g, b), (sr, sg, sb))
    except (ValueError, TypeError) as error:
        raise EncoderError(f"{place}: expected size, mean and std: {error}") from error


def preprocess_beside(path: Path) -> Preprocess:
    """Return what the file beside a model says; errors as of `read` and `preprocess_of`."""
    return preprocess_of(read(path), file_of(path))
