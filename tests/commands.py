"""The `id2` command called in this process: for tests of which a new process is not the point."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel
from typer.testing import CliRunner

from flows.cli import app


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def call(
    *arguments: object, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Done:
    """Call `id2 ARGUMENTS` in a folder, with no Prefect server but that of `environment`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "ID2_"))}
    there = contextlib.chdir(folder or Path.cwd())
    with mock.patch.dict(os.environ, own | dict(environment or {}), clear=True), there:
        result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def as_json(result: BaseModel) -> dict[str, Any]:
    """A result of a function of `id2` as `--json` prints it."""
    return dict(json.loads(result.model_dump_json(by_alias=True)))
