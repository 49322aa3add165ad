"""Searches of many nights: each pair is scored once, and what stands equals one search of it all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from beam_jobs import search
from id2core.runs import ledger
from id2core.runs.execution import Execution
from id2core.search import match_rows
from id2core.search.current import CurrentMatches
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests.corpora import Corpus, search_here
from tests.descriptor_sets import IDS, unit

UPLOADS, PICTURES = 6, 5
# An example takes a second: to shrink one would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
PLACES = ("a", "b")  # folders in which a reference picture may lie
NIGHT = st.tuples(
    st.sets(st.integers(0, UPLOADS - 1)),  # uploads that appear or disappear
    st.sets(st.tuples(st.sampled_from(PLACES), st.integers(0, PICTURES - 1))),  # references that do
    st.booleans(),  # whether a search follows
    st.integers(1, 3),  # segments in a file
)


class Pairs:
    """Which pairs have stood together at a search: what must have been scored, each once."""

    def __init__(self) -> None:
        self.met: set[tuple[str, int]] = set()

    def meet(self, queries: Corpus, references: Corpus) -> int:
        """Let all that stands meet; return how many pairs are new."""
        now = {(uri, i) for uri, _ in queries.rows for _, i in references.rows}
        new = now - self.met
        self.met |= now
        return len(new)


def toggle(corpus: Corpus, run_id: str, rows: set[tuple[str, int]], together: int) -> Dataset:
    """Add the rows that do not stand, and remove those that do."""
    return corpus.change(run_id, rows - corpus.rows.keys(), rows & corpus.rows.keys(), together)


# The wanted classes of a reference file may be those of uploads in no file.
NOBODY_MEETS_A_FILE = [
    ({1, 3, 4, 5}, {("b", 1), ("a", 1), ("a", 2)}, True, 2),
    ({2, 5}, set(), False, 1),
    ({0, 1, 2, 4, 5}, set(), False, 1),
    ({1, 2}, {("a", 2)}, False, 1),
    ({0, 1, 2, 3, 4, 5}, {("a", 0)}, False, 3),
    ({1, 3, 4, 5}, {("b", 1), ("a", 1), ("a", 2)}, True, 1),
    ({0, 1, 2, 3, 4, 5}, {("b", 3), ("b", 4), ("a", 3), ("a", 4)}, False, 2),
    ({0, 1, 2, 3, 4, 5}, {("b", i) for i in (1, 2, 3)} | {("a", i) for i in (0, 1, 2, 4)}, True, 3),
]


@settings(max_examples=25, phases=PHASES, suppress_health_check=list(HealthCheck))
@example(nights=NOBODY_MEETS_A_FILE)
@given(nights=st.lists(NIGHT, min_size=2, max_size=8))
def test_every_pair_is_scored_once_whatever_comes_goes_and_returns(
    nights: list[tuple[set[int], set[tuple[str, int]], bool, int]],
) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        queries = Corpus(root / "queries", unit(UPLOADS, 8, 1))
        references = Corpus(root / "reference", unit(PICTURES, 8, 2))
        pairs, scored = Pairs(), 0
        for night, (uploads, pictures, searched, together) in enumerate(nights):
            run_id = f"night-{night:02d}"
            asked = toggle(queries, run_id, {(f"/up/{i}", i) for i in uploads}, together)
            held = toggle(references, run_id, {(f"/{place}/{i}", i) for place, i in pictures}, together)
            if not searched and night < len(nights) - 1:
                continue
            plan = match_rows.make(held, asked, str(root / "matches"), Execution.begin(), PICTURES)
            new = plan.scope.pairs if plan.scope else 0
            assert new == pairs.meet(queries, references)
            search_here(plan)
            scored += new
            again = match_rows.make(held, asked, str(root / "matches"), Execution.begin(), PICTURES)
            assert again.scope is None
        stored = Dataset.open(str(root / "matches"))
        rows = stored.read(schemas.MATCHES)
        names = ["query_uri", "query_generation", "reference_id"]
        assert rows.num_rows == scored == rows.select(names).group_by(names).aggregate([]).num_rows
        assert sum(event.pairs for event in ledger.events(stored.commit, IDS)) == scored
        assert current(stored, held, asked) == once(root, held, asked)
    finally:
        shutil.rmtree(root)


def once(root: Path, held: Dataset, asked: Dataset) -> list[tuple[str, int, str, float]]:
    """Return the matches of one search of all that stands."""
    plan = match_rows.make(held, asked, str(root / "once"), Execution.begin(), PICTURES)
    return current(search_here(plan), held, asked)


def test_the_job_searches_what_nights_add_and_nothing_else(tmp_path: Path) -> None:
    queries = Corpus(tmp_path / "queries", unit(40, 8, 1))
    references = Corpus(tmp_path / "reference", unit(30, 8, 2))
    held = references.change("n1", [(f"/a/{i}", i) for i in range(20)], [])
    for night in range(1, 4):
        uploads = range(10 * night - 10, 10 * night)
        asked = queries.change(f"n{night}", [(f"/up/{i}", i) for i in uploads], [])
        new = [(f"/{night}/{i}", i) for i in range(15 + night, 20 + 2 * night)]  # some of them stand already
        gone = [(f"/a/{night}", night)]
        result = search.run(held, asked, str(tmp_path / "matches"), Execution.begin(), 40)
        held = references.change(f"n{night + 1}", new, gone)
    assert [event.pairs for event in ledger.events(result.dataset.commit, IDS)] == [200, 230, 260]
    alone = search.run(held, asked, str(tmp_path / "alone"), Execution.begin(), 40)
    last = search.run(held, asked, str(tmp_path / "matches"), Execution.begin(), 40)
    assert current(last.dataset, held, asked) == current(alone.dataset, held, asked)


def current(matches: Dataset, held: Dataset, asked: Dataset) -> list[tuple[str, int, str, float]]:
    table: pa.Table = CurrentMatches(matches, held, asked, PICTURES).read()
    names = ("query_uri", "rank", "reference_uri", "score")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_what_a_night_found_is_read_from_its_own_files(tmp_path: Path) -> None:
    queries = Corpus(tmp_path / "queries", unit(6, 8, 1))
    references = Corpus(tmp_path / "reference", unit(4, 8, 2))
    held = references.change("n1", [(f"/a/{i}", i) for i in range(4)], [])
    runs = []
    for night in range(2):
        asked = queries.change(f"n{night}", [(f"/up/{i}", i) for i in range(3 * night, 3 * night + 3)], [])
        plan = match_rows.make(held, asked, str(tmp_path / "matches"), Execution.begin(), 2)
        stored = search_here(plan)
        runs.append((plan.execution.run_id, {file.name for file in stored.files}))
    (first, old), (second, _) = runs
    assert CurrentMatches(stored, held, asked, 2, frozenset({first})).read().num_rows == 6
    for name in old:
        (tmp_path / "matches" / name).unlink()
    found = CurrentMatches(stored, held, asked, 2, frozenset({second}))
    for _ in range(2):  # a report reads them more than once
        assert set(found.read()["query_uri"].to_pylist()) == {"/up/3", "/up/4", "/up/5"}


def test_that_all_segments_have_met_is_known_without_a_row(tmp_path: Path) -> None:
    queries = Corpus(tmp_path / "queries", unit(6, 8, 1))
    references = Corpus(tmp_path / "reference", unit(4, 8, 2))
    for night in range(3):
        held = references.change(f"n{night}", [(f"/a/{night}", night)], [("/a/0", 0)] if night == 2 else [])
        asked = queries.change(f"n{night}", [(f"/up/{night}", night)], [])
        search_here(match_rows.make(held, asked, str(tmp_path / "matches"), Execution.begin(), 5))
    asked = queries.change("n3", [], [("/up/1", 1)])
    for corpus in (held, asked):
        shutil.rmtree(corpus.uri)
    assert match_rows.make(held, asked, str(tmp_path / "matches"), Execution.begin(), 5).scope is None
