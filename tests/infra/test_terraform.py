"""What Terraform would make, as far as its files say: nothing here calls a cloud."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import hcl2
import pytest

from factory import sql_views

FOLDER = sql_views.SQL.parent / "terraform"
ROLE = re.compile(r'"(roles/[\w.]+)"')
REFERENCE = re.compile(r"\b(google_\w+)\.(\w+)")


def plain(value: Any) -> Any:
    """hcl2 keeps the quotes of names and texts: without them."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if not str(key).startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.strip('"') if isinstance(value, str) else value


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[dict[str, Any]]]:
    """Kind of block → all blocks of it, in all files."""
    result: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.tf")):
        for kind, items in plain(hcl2.loads(path.read_text(encoding="utf-8"))).items():
            result.setdefault(kind, []).extend(items)
    return result


@pytest.fixture(scope="module")
def resources(blocks: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(type, name) → what a resource says."""
    return {
        (kind, name): body
        for block in blocks["resource"]
        for kind, named in block.items()
        for name, body in named.items()
    }


def text() -> str:
    lines = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.tf"))).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def test_buckets_are_private_encrypted_and_kept(resources: dict[tuple[str, str], dict[str, Any]]) -> None:
    buckets = [body for (kind, _), body in resources.items() if kind == "google_storage_bucket"]
    assert buckets
    for bucket in buckets:
        assert bucket["uniform_bucket_level_access"] is True
        assert bucket["public_access_prevention"] == "enforced" and bucket["force_destroy"] is False
        assert bucket["encryption"] and bucket["lifecycle"][0]["prevent_destroy"] is True


def test_no_account_gets_a_basic_or_an_administrators_role() -> None:
    roles = set(ROLE.findall(text()))
    assert roles and not [role for role in roles if re.search(r"/(owner|editor|viewer)$|admin", role, re.I)]
    assert not re.search(r"allUsers|allAuthenticatedUsers|service_account_key", text())


def test_no_secret_value_is_in_the_files(resources: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert ("google_secret_manager_secret", "secrets") in resources
    assert not [kind for kind, _ in resources if kind == "google_secret_manager_secret_version"]


def test_what_is_named_exists(
    blocks: dict[str, list[dict[str, Any]]], resources: dict[tuple[str, str], dict[str, Any]]
) -> None:
    variables = {name for block in blocks["variable"] for name in block}
    assert set(re.findall(r"\bvar\.(\w+)", text())) == variables
    assert all(body["description"] for block in blocks["variable"] for body in block.values())
    names = {name for block in blocks["locals"] for name in block}
    assert set(re.findall(r"\blocal\.(\w+)", text())) <= names
    assert {(kind, name) for kind, name in REFERENCE.findall(text())} <= set(resources)


def test_tables_that_may_be_empty_are_tables(blocks: dict[str, list[dict[str, Any]]]) -> None:
    tables = json.loads((sql_views.SQL / "tables.json").read_text())["tables"]
    [empty] = [block["empty_tables"] for block in blocks["variable"] if "empty_tables" in block]
    assert set(empty["default"]) < set(tables)


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
def test_terraform_finds_nothing_to_format() -> None:
    command = ["terraform", "fmt", "-check", "-diff", str(FOLDER)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
