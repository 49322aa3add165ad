"""Fields of a platform become rows that join by URI and generation, once each."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.sources import posts, registry
from id2core.sources.posts import EXTRA_BYTES, LEFT_OUT, PostsWriter
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.store.storage import Object
from tests.id2core.sources.test_tars import tar

OBJ = Object("/x.tar#a.jpg", "1#tar:0+1", 1)


def test_known_names_get_columns_and_the_others_json() -> None:
    made = posts.row(
        OBJ, {"post": 7, "user": "u", "time": "2026-01-02T03:04:05+02:00", "likes": 3, "a": None}
    )
    assert (made["post_id"], made["uploader"]) == ("7", "u")
    assert made["posted_at"] == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert json.loads(made["extra"]) == {"a": None, "likes": 3}


@pytest.mark.parametrize(
    "value", [1_700_000_000, 1_700_000_000_000, "2023-11-14T22:13:20", "2023-11-14T22:13:20Z"]
)
def test_times_are_read_as_platforms_write_them(value: object) -> None:
    assert posts.row(OBJ, {"timestamp": value})["posted_at"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_a_value_that_does_not_fit_its_column_is_kept_as_json() -> None:
    fields = {"time": "yesterday", "post": {"id": 1}, "uploader": "u" * 2000, "x": float("nan")}
    made = posts.row(OBJ, fields)
    assert made["posted_at"] is made["post_id"] is made["uploader"] is None
    assert json.loads(made["extra"]) == {**fields, "x": "nan"}


json_values = st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@given(st.dictionaries(st.text() | st.sampled_from(["time", "post", LEFT_OUT]), json_values))
def test_whatever_comes_fits_the_table(fields: dict[str, object]) -> None:
    made = posts.row(OBJ, fields)
    extra = made["extra"] or "{}"
    assert len(extra.encode()) <= EXTRA_BYTES and isinstance(json.loads(extra), dict)


def test_what_is_too_much_is_counted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    made = json.loads(posts.row(OBJ, {f"f{i}": "é" * 1000 for i in range(9)})["extra"])
    assert made[LEFT_OUT] == 9 - (len(made) - 1) > 0


def test_each_object_has_one_row_over_all_nights(tmp_path: Path) -> None:
    shards = tmp_path / "in"
    shards.mkdir()
    out = str(tmp_path / "queries")
    source = registry.parse(f"tar:{shards}")
    for night in range(3):
        data = [(f"{night}.jpg", b"x"), (f"{night}.json", json.dumps({"post": night}).encode())]
        (shards / f"{night}.tar").write_bytes(tar([*data, (f"{night}-without.jpg", b"y")]))
        for _ in range(2):  # repeated, it adds nothing
            writer = PostsWriter(out, source.uri, f"2026112{night}T000000-aaaaaa")
            listed = list(writer.through(source.items()))
            writer.commit()
            writer.commit()
        assert len(listed) == 2 * (night + 1)
    table = Dataset.open(f"{out}/posts").read(schemas.POSTS)
    assert sorted(table["post_id"].to_pylist()) == ["0", "1", "2"]
    objects = {(i.obj.uri, i.obj.generation) for i in source.items()}
    assert set(zip(table["uri"].to_pylist(), table["generation"].to_pylist(), strict=True)) <= objects
    assert set(table["source"].to_pylist()) == {source.uri}
    assert len(set(table["run_id"].to_pylist())) == 3
