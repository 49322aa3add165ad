from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.runs import keys
from id2core.runs.keys import Keys


@pytest.mark.parametrize("spill_rows", [10_000, 7])
def test_rows_with_equal_keys_come_together(
    spill_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = [f"n{random.Random(i).randrange(200)}" for i in range(1000)]
    by_name: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        by_name.setdefault(name, []).append(row)
    met = []
    with Keys(spill_rows) as index:
        for start in range(0, len(names), 100):
            index.add(index.hash(names[start : start + 100]), start)
        for groups in index.groups():
            met += [rows.tolist() for rows in np.split(groups.rows, groups.starts[1:])]
            assert (groups.first <= groups.last).all() and groups.sizes.sum() == len(groups.rows)
            assert (groups.total(groups.rows >= 0) == groups.sizes).all()
            assert (groups.least(groups.rows) == groups.first).all()
            assert (groups.greatest(groups.rows) == groups.last).all()
    assert sorted(met) == sorted(by_name.values())
    assert list(tmp_path.iterdir()) == []


def test_an_index_without_rows_has_no_groups() -> None:
    with Keys() as index:
        assert list(index.groups()) == []


def test_columns_are_told_apart_and_every_index_hashes_in_its_own_way() -> None:
    rows = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("1,1:ab", "c")]
    assert len(set(keys.encode(*zip(*rows, strict=True)))) == len(rows)
    with Keys() as one, Keys() as other:
        assert (one.hash(["a"]) == one.hash(["a"])).all()
        assert (one.hash(["a"]) != other.hash(["a"])).any()


@given(
    numbers=st.lists(st.integers(0, 2**256 - 1), max_size=12),
    others=st.lists(st.one_of(st.text(max_size=3), st.text("0123456789abcdefG", min_size=64, max_size=64))),
    seed=st.randoms(),
)
def test_ids_have_one_key_in_every_batch(numbers: list[int], others: list[str], seed: random.Random) -> None:
    names = [*(f"{number:064x}" for number in numbers), *others]
    seed.shuffle(names)
    with Keys() as index:
        alone = {name: tuple(index.hash_ids(pa.chunked_array([[name]], pa.string()))[0]) for name in names}
        together = index.hash_ids(pa.chunked_array([["x"], names], pa.string()).slice(1))
    assert [tuple(key) for key in together] == [alone[name] for name in names]
    assert len(set(alone.values())) == len(alone)
