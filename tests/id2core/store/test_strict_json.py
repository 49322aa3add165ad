from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.store import strict_json
from id2core.store.strict_json import JsonError

HOSTILE = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep and whole": "[" * 500 + "]" * 500,
    "a little too deep": "[" * 66 + "]" * 66,
    "a huge integer": "1" * 5000,
    "an integer of 65 bits": str(1 << 64),
    "NaN": "NaN",
    "infinity": "[Infinity]",
    "infinity by its exponent": "1e999",
    "a key twice": '{"a": 1, "a": 2}',
    "half a surrogate": r'"\ud800"',
    "cut": '{"a": [1, 2',
    "nothing": "",
    "two values": "{} {}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_no_honest_file_has_is_one_error(text: str) -> None:
    with pytest.raises(JsonError):
        strict_json.parse(text)


@pytest.mark.parametrize("data", [b'"\xff"', "{}".encode("utf-16"), b"\xef\xbb\xbf{}"])
def test_only_utf_8_is_read(data: bytes) -> None:
    with pytest.raises(JsonError):
        strict_json.parse(data)


def test_a_large_text_is_refused_by_its_size(tmp_path: Path) -> None:
    with pytest.raises(JsonError, match="more than 3"):
        strict_json.parse(b"1234", max_bytes=3)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(JsonError, match="more than"):
        strict_json.read_file(tmp_path / "config.json")


def test_another_value_than_an_object_is_refused() -> None:
    with pytest.raises(JsonError, match="no JSON object"):
        strict_json.parse_object("[]")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values)
def test_honest_json_is_read_as_it_was_written(value: object) -> None:
    text = json.dumps(value)
    if "Infinity" not in text:
        assert strict_json.parse(text) == value
