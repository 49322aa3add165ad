"""An index is made and searched by worker processes as by one process. A run takes what another has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_jobs import index, search
from id2core.errors import SearchError
from id2core.runs import codes
from id2core.runs.execution import Execution
from id2core.search import index_building, match_rows
from id2core.search.coded import CodedReferences
from id2core.store import schemas
from id2core.store.datasets import Dataset
from tests.descriptor_sets import unit, write_embeddings

STRING = "RR32,IVF8,RaBitQ"
MEMORY = 64 << 20
WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def wanted(corpus: Dataset, recall: float = 0.5) -> index.Wanted:
    return index.Wanted(codes.plan(corpus, STRING, Execution.begin()), recall, MEMORY)


def scan(folder: Path, beam: list[str]) -> list[dict[str, object]]:
    references = write_embeddings(folder / "reference" / "embeddings", unit(2000, 32, 0), 4, "r")
    queries = write_embeddings(folder / "queries", unit(30, 32, 1), 2, "q")
    index.run(wanted(references), beam)
    coded = CodedReferences(references, Dataset.open(str(folder / "reference" / "index")))
    out = str(folder / "matches")
    plan = match_rows.make(references, queries, out, Execution.begin(), 5, index=STRING, coded=coded)
    found = search.run_planned(plan, beam).read(schemas.MATCHES)
    assert found["index_id"].unique().to_pylist() == [coded.index_id]
    columns = ["query_uri", "rank", "reference_uri", "score", "index_id"]
    return list(
        found.select(columns).sort_by([("query_uri", "ascending"), ("rank", "ascending")]).to_pylist()
    )


def test_worker_processes_find_what_one_process_finds(tmp_path: Path) -> None:
    here = scan(tmp_path / "here", [])
    assert len(here) == 150 and scan(tmp_path / "workers", WORKERS) == here


def test_a_run_takes_the_model_and_codes_that_another_has_left(tmp_path: Path) -> None:
    corpus = write_embeddings(tmp_path / "embeddings", unit(2000, 32, 0), 4, "r")
    with pytest.raises(SearchError, match=r"--index-recall asks for 1:"):
        index.run(wanted(corpus, 1.0))  # it has trained and encoded by then
    left = {path.name for path in (tmp_path / "_staging").rglob("*-*.parquet")}
    assert len(left) == 5 and not (tmp_path / "index" / "_SUCCESS").exists()
    index.run(wanted(corpus))
    made = Dataset.open(str(tmp_path / "index"))
    assert {file.name for file in made.files} == left
    assert not list((tmp_path / "_staging" / "parts").glob("*")), "records go after the commit"
    facts = codes.facts_of(made)
    assert (facts.rows, facts.measured_rows, facts.trained_on) == (2000, 2000, 2000)
    assert index_building.check(codes.plan(corpus, STRING, Execution.begin()), 0).lists == 8
