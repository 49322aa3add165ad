from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

from id2core.runs import histories
from id2core.runs.histories import UNSEARCHED
from id2core.runs.keys import Keys
from id2core.runs.ledger import Home
from id2core.store.datasets import Dataset
from tests.corpora import Corpus, image
from tests.descriptor_sets import unit


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Corpus, Dataset]:
    """A corpus of five nights in which pictures go, come back, and lie at several places."""
    dice = random.Random(1)
    corpus = Corpus(tmp_path, unit(12, 4, 1))
    for night in range(5):
        rows = {(f"/{dice.choice('abc')}/{night}/{i}", i) for i in dice.sample(range(12), 6)}
        rows |= {(f"/{dice.choice('abc')}/again/{night}/{i}", i) for i in dice.sample(range(12), 3)}
        gone = dice.sample(sorted(corpus.rows), min(3, len(corpus.rows)))
        made = corpus.change(f"n{night}", rows - corpus.rows.keys(), set(gone) - rows, together=2)
    return corpus, made


@pytest.mark.parametrize("spill_rows", [10_000, 3])
def test_each_picture_is_searched_once_from_its_first_row_with_its_whole_history(
    spill_rows: int, grown: tuple[Corpus, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "Keys", functools.partial(Keys, spill_rows))
    corpus, held = grown
    classes = histories.of_pictures(held)
    numbers = {run_id: segment.number for run_id, segment in corpus.segments.items()}
    searched: dict[str, tuple[int, str, int]] = {}
    for file in held.files:
        table = held.read_file(file, ["image_id", "uri", "run_id"])
        labels = classes.labels(file.name, table["run_id"]).tolist()
        assert set(classes.in_file[file.name].tolist()) == set(labels) - {UNSEARCHED}
        for label, picture, uri, run_id in zip(labels, *(c.to_pylist() for c in table.columns), strict=True):
            if label != UNSEARCHED:
                assert picture not in searched
                searched[picture] = numbers[run_id], uri, label
    stands: dict[str, list[tuple[int, str]]] = {}
    for (uri, i), run_id in corpus.rows.items():
        stands.setdefault(image(i), []).append((numbers[run_id], uri))
    assert {picture: row[:2] for picture, row in searched.items()} == {p: min(r) for p, r in stands.items()}
    for picture, (_, _, label) in searched.items():
        homes = {home.number for home in classes.histories[label] if home.removed_in is None}
        assert homes == {number for number, _ in stands[picture]}
    assert classes.counts.sum() == len(stands)


def test_where_an_upload_stood_before_is_in_its_history(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, unit(3, 4, 1))
    corpus.change("n1", [("/a/0", 0), ("/a/1", 1)], [])
    corpus.change("n2", [("/b/2", 2)], [("/a/0", 0)])
    held = corpus.change("n3", [("/a/0", 0)], [])
    classes = histories.of_uploads(held, [3])
    assert classes.histories[-1] == (Home(1, removed_in=2), Home(3))
    assert classes.counts.tolist() == [0, 1]
