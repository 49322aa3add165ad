"""Prompts from files and captions."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.errors import PromptError
from id2core.store.rejects import Reason, Reject
from id2core.translation import prompts
from id2core.translation.prompts import PromptSource

ROWS = {
    "uri": ["a.jpg", "photos/b.jpg", "gs://x/c.jpg", "/d/photos/a.jpg", "/d/photos/e.jpg"],
    "prompt": ['Snow,  "deep"', "a city\nby night", "gold", "sand", ""],
}
BY_URI = {
    "/d/photos/a.jpg": ['Snow, "deep"', "sand"],
    "/d/photos/b.jpg": ["a city by night"],
    "gs://x/c.jpg": ["gold"],
}


def write_table(path: Path, rows: dict[str, list[Any]]) -> str:
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


def ask(source: PromptSource, uri: str = "", count: int = 20, image_id: str = "id") -> list[str] | Reject:
    return source.prompts_for(image_id, uri, b"", count)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_gives_each_image_its_own_prompts(kind: str, tmp_path: Path) -> None:
    source = prompts.load(write_table(tmp_path / f"p.{kind}", ROWS), "/d/photos", "/out")
    source = pickle.loads(pickle.dumps(source))
    assert {uri: ask(source, uri) for uri in BY_URI} == BY_URI
    assert ask(source, "/d/photos/a.jpg", count=1) == ['Snow, "deep"']
    for uri in ("/d/photos/e.jpg", "/d/photos/unknown.jpg"):
        reject = ask(source, uri)
        assert isinstance(reject, Reject) and reject.reason == Reason.NO_PROMPT


def test_lines_are_drawn_by_image_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt {i % 30}\n\n" for i in range(60)))
    source = prompts.load(str(path), "/d", "/out")
    drawn = {i: ask(source, count=5, image_id=f"image {i}") for i in range(200)}
    assert all(len(set(d)) == 5 for d in drawn.values())
    assert {p for d in drawn.values() for p in d} == {f"prompt {i}" for i in range(30)}
    assert max(Counter(d[0] for d in drawn.values()).values()) < 30
    assert ask(source, count=5, image_id="image 7") == drawn[7]
    assert ask(source, count=2, image_id="image 7") == drawn[7][:2]
    assert sorted(ask(source, count=99)) == sorted(f"prompt {i}" for i in range(30))


@pytest.mark.parametrize("place", ["photos/captions.csv", "captions.csv", "captions.parquet"])
@pytest.mark.parametrize("spec", [None, "captions"])
def test_captions_are_found_in_or_beside_the_images(spec: str | None, place: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rows = {"file": ["a.jpg", "b.jpg"], "source": [1, 2], "caption": ["a shirt", None]}
    write_table(tmp_path / place, rows)
    source = prompts.load(spec, f"{tmp_path}/photos/", "/out")
    assert ask(source, f"{tmp_path}/photos/a.jpg") == ["a shirt"]
    assert isinstance(ask(source, f"{tmp_path}/photos/b.jpg"), Reject)


def test_without_captions_the_options_are_named(tmp_path: Path) -> None:
    for spec in (None, "captions", "nothing.csv"):
        with pytest.raises(PromptError) as error:
            prompts.load(spec, str(tmp_path), "/out")
        assert all(
            word in str(error.value) for word in ("`captions`", "`endpoint`", "`empty`", "CSV", ".txt")
        )
    assert ask(prompts.load("empty", str(tmp_path), "/out")) == [""]


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("p.csv", "image,text\na,b\n", "expected uri and prompt"),
        ("p.csv", "uri,prompt\na,b,c\n", "cannot be read"),
        ("p.csv", "uri,prompt\na,\n", "holds no prompt"),
        ("p.csv", "uri,prompt\n,b\n", "names no image"),
        ("p.jsonl", '{"uri": "a", "prompt": ["b"]}\n', "cannot be read"),
        ("p.jsonl", "", "cannot be read"),
        ("p.parquet", "PAR1", "cannot be read"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.xlsx", "", "must end in"),
    ],
)
def test_a_file_that_cannot_be_understood_says_so(name: str, text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=hint):
        prompts.load(str(tmp_path / name), "/d", "/out")


def test_a_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n")
    first = prompts.load(str(path), "/d", "/out")
    path.write_text("two\n")
    second = prompts.load(str(path), "/d", "/out")
    assert first.identity != second.identity
    path.write_text("three\n")
    third = prompts.load(str(path), "/d", "/out")
    path.write_text("four\n")
    prompts._lines.cache_clear()  # what another process has not read yet
    with pytest.raises(PromptError, match="start the run again"):
        ask(third)
