from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beam_jobs import index
from id2core.errors import DatasetError, RecallError, SearchError, StoreUnavailableError
from id2core.runs import codes
from id2core.runs.codes import IndexFacts
from id2core.runs.execution import Execution
from id2core.search import coded, compressed, index_building, index_strings, indexes, looks, shards, viewed
from id2core.search.coded import CodedReferences
from id2core.search.looks import Looks
from id2core.store import datasets
from id2core.store.datasets import Dataset, FileRecord
from tests.descriptor_sets import unit, write_embeddings

STRING = "RR32,IVF8,RaBitQ"
MEMORY = 64 << 20


def coded_references(
    folder: Path, rows: int = 2000, string: str = STRING, recall: float = 0.5
) -> CodedReferences:
    references = write_embeddings(folder / "embeddings", unit(rows, 32, 0), 5, "r")
    return make(references, string, recall)


def make(references: Dataset, string: str = STRING, recall: float = 0.5) -> CodedReferences:
    coding = codes.plan(references, string, Execution.begin())
    index.run(index.Wanted(coding, recall, MEMORY))
    return CodedReferences(references, Dataset.open(coding.uri))


@pytest.mark.parametrize(
    "string",
    [
        "IVF16,RaBitQ",
        "RR24,IVF16,RaBitQ",
        "PCAR24,IVF16,RaBitQ",
        "IVF16,PQ8x4",
        "OPQ2_8,IVF16,PQ2x4",
        "RR24,IVF300,PQ8np",
    ],
)
def test_sizes_by_formula_are_those_of_faiss(string: str) -> None:
    form = index_strings.parse(string)
    trained = compressed.train(form, unit(12_000, 32, 0))
    assert abs(len(trained.data) / form.model_bytes(32) - 1) < 0.15  # names and numbers of FAISS beside it
    made = trained.encode(unit(7, 32, 1))
    assert made.shape == (7, form.stored_bytes(32))
    bare = faiss.index_factory(32, string, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.extract_index_ivf(bare)
    assert inner.code_size == form.code_bytes(32)


@given(st.text(max_size=20) | st.from_regex(r"\A(RR\d{1,4},)?IVF\d{1,6},(PQ\d{1,3}(x4|np)?|RaBitQ)\Z"))
@example("IVF0,RaBitQ")
@example("IVF65537,RaBitQ")
@example("OPQ8_32,IVF4,PQ16x4")
@example("RR0,IVF4,RaBitQ")
@example("IVF٣,RaBitQ")
@example("IVF4,PQ0x4")
def test_a_string_is_an_index_or_refused(string: str) -> None:
    try:
        form = index_strings.parse(string)
    except SearchError as error:
        assert string in str(error) or repr(string) in str(error)
        return
    assert form.text == string and string.isascii() and 0 < form.lists <= 2**16


def test_what_cannot_be_built_is_refused_before_anything_is_read() -> None:
    check = index_strings.parse("RR32,IVF1024,RaBitQ").check
    with pytest.raises(SearchError, match="39,936 references or more, and there are 39,935"):
        check(32, 39_935, MEMORY)
    with pytest.raises(SearchError, match=r"descriptors have 31 numbers.* Take RR… to 31 numbers or fewer"):
        check(31, 10**6, MEMORY)
    with pytest.raises(SearchError, match="a worker may take 8: take fewer lists"):
        check(32, 10**6, 8 << 20)
    check(32, 39_936, MEMORY)
    with pytest.raises(SearchError, match="share out 32 numbers evenly"):
        index_strings.parse("IVF16,PQ5x4").check(32, 10**6, MEMORY)


@pytest.mark.parametrize(
    ("string", "references", "advice"),
    [
        ("IVF64,RaBitQ", 1000, "take at most 25 lists, or flat"),
        ("IVF1,RaBitQ", 38, "take flat"),
        ("IVF1,PQ8np", 1000, "trained on 9,984 references or more.*take RaBitQ or PQ…x4, or flat"),
        ("IVF1024,PQ8x4", 1000, "take at most 25 lists, or flat"),
        ("IVF1,PQ8x4", 600, "take RaBitQ, or flat"),
        ("PCAR64,IVF1,RaBitQ", 50, "trained on 64 references or more.*take the rotation RR…, or flat"),
    ],
)
def test_advice_against_too_few_references_would_help(string: str, references: int, advice: str) -> None:
    with pytest.raises(SearchError, match=f"there are {references:,}: .*{advice}|{advice}"):
        index_strings.parse(string).check(64, references, MEMORY)


def test_a_search_by_codes_finds_most_of_the_best_with_exact_scores(tmp_path: Path) -> None:
    found = coded_references(tmp_path, recall=0.9)
    facts, references = found.facts, found.references
    assert facts.recall_10 is not None and 0.9 <= facts.recall_10 <= 1 and facts.rows == 2000
    queries = unit(40, 32, 1)
    exact = shards.load(references, references.files).search(queries, 10).to_pylist()
    by_codes = coded.load(found, references.files).search(queries, 10).to_pylist()
    assert len(exact) == len(by_codes) == 400
    scores = {(row["query_row"], row["reference_id"]): row for row in exact}
    hits = [row for row in by_codes if (row["query_row"], row["reference_id"]) in scores]
    assert len(hits) >= 0.85 * len(exact)
    assert all(row == scores[row["query_row"], row["reference_id"]] for row in hits)  # to the last bit
    assert [row["query_row"] for row in by_codes] == sorted(row["query_row"] for row in by_codes)


def test_few_candidates_are_scored_without_reading_files_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, queries = coded_references(tmp_path), unit(2, 32, 1)
    shard = coded.load(found, found.references.files)
    monkeypatch.setattr(coded, "_ROWS_READ", 1)
    read_once = shard.search(queries, 10)
    monkeypatch.setattr(coded, "_MOST_NAMED", 0)
    assert len(read_once) == 20 and shard.search(queries, 10).equals(read_once)


def test_all_lists_and_candidates_give_the_exact_search_also_among_some_rows(tmp_path: Path) -> None:
    found = coded_references(tmp_path, 400, "IVF2,RaBitQ", 0.1)
    whole = found.facts.model_copy(update={"probes": 2, "depth": 400})
    runs = found.index.runs | {found.index.run_id: whole.model_dump()}
    found = replace(found, index=replace(found.index, commit=replace(found.index.commit, runs=runs)))
    references = found.references
    exact, by_codes = shards.load(references, references.files), coded.load(found, references.files)
    queries = np.concatenate([unit(5, 32, 1), unit(400, 32, 0)[[3, 3]]])
    for k in (1, 7, 400, 900):
        assert by_codes.search(queries, k).equals(exact.search(queries, k))
    rows = np.flatnonzero(np.arange(400) % 3 == 1)
    some = by_codes.among(rows)
    assert len(some) == len(rows) and some.search(queries, 9).equals(exact.among(rows).search(queries, 9))
    assert not by_codes.search(queries[:0], 3).num_rows


@pytest.mark.parametrize("string", ["RR32,IVF8,RaBitQ", "IVF8,PQ8x4", "IVF8,PQ8np"])
def test_queries_that_are_searched_apart_find_what_they_find_together(
    string: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressed.train(index_strings.parse(string), unit(12_000, 32, 0))
    index, queries = model.over([model.encode(unit(900, 32, 1))]), unit(50, 32, 2)
    together = index.search(queries, 20, 4)
    monkeypatch.setattr(compressed, "_TABLES", 7 * 4 * 32 * 4)  # seven queries at once
    scores, rows = index.search(queries, 20, 4)
    np.testing.assert_allclose(scores, together[0], atol=0.01)  # codes of queries round differently
    assert (rows == together[1]).mean() > 0.9


def test_files_are_encoded_once_and_those_that_went_lose_their_codes(tmp_path: Path) -> None:
    first = coded_references(tmp_path)
    grown = write_embeddings(tmp_path / "embeddings", unit(2400, 32, 0), 6, "r")
    with pytest.raises(SearchError, match="lacks codes of 1 file "):
        CodedReferences(grown, first.index).check()
    second = make(grown)
    second.check()
    kept = {file.name for file in first.index.files}
    assert kept < {file.name for file in second.index.files} and len(second.index.files) == 7
    assert second.facts.rows == 2400 and second.facts.corpus_rows == 2000  # a quarter more is measured anew
    fewer = replace(grown, commit=replace(grown.commit, files=grown.files[1:]))
    assert codes.forget(fewer, Execution.begin()) == 1
    third = Dataset.open(second.index.uri)
    CodedReferences(fewer, third).check()
    assert codes.facts_of(third).rows == 2000
    gone = second.index.files[0] if second.index.files[0] not in third.files else None
    on_disk = {path.name for path in tmp_path.rglob("codes-*")}
    assert on_disk == {file.name for file in third.files if file.name.startswith("codes-")}, gone


def test_codes_of_other_descriptors_and_damage_are_refused(tmp_path: Path) -> None:
    found = coded_references(tmp_path)
    other = write_embeddings(tmp_path / "other" / "embeddings", unit(2000, 32, 9), 5, "r")
    with pytest.raises(SearchError, match="id2 index"):
        CodedReferences(other, found.index).check()
    ids = found.references.ids | {"transform_id": "another"}
    renamed = replace(found.references, commit=replace(found.references.commit, ids=ids))
    with pytest.raises(SearchError, match="id2 index"):
        CodedReferences(renamed, found.index).check()
    with pytest.raises(SearchError, match="no index 'nothing'"):
        indexes.check_name("nothing")
    for name in ("codes-", "model-"):
        path = next(Path(found.index.uri).glob(f"{name}*"))
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(DatasetError, match="damaged"):
            coded.load(CodedReferences(found.references, found.index), found.references.files)
        path.write_bytes(data)


FORMS = ("RR24,IVF16,RaBitQ", "PCAR24,IVF16,RaBitQ", "OPQ4_16,IVF16,PQ4x4", "IVF16,PQ8np")


@cache
def forged(string: str, dimension: int = 32) -> bytes:
    """The bytes of a trained FAISS index of any string."""
    made = faiss.index_factory(dimension, string, faiss.METRIC_INNER_PRODUCT)
    made.train(unit(1000, dimension, 0))
    return faiss.serialize_index(made).tobytes()


@pytest.mark.parametrize("string", FORMS)
def test_a_model_that_was_read_encodes_as_the_one_that_was_trained(string: str) -> None:
    form, rows = index_strings.parse(string), unit(50, 32, 1)
    trained = compressed.train(form, unit(1000, 32, 0))
    assert (compressed.load(form, 32, trained.data).encode(rows) == trained.encode(rows)).all()


@pytest.mark.parametrize(
    ("string", "other", "dimension"),
    [
        ("RR24,IVF16,RaBitQ", "RR24,IVF15,RaBitQ", 32),
        ("RR24,IVF16,RaBitQ", "RR16,IVF16,RaBitQ", 32),
        ("RR24,IVF16,RaBitQ", "RR24,IVF16,RaBitQ", 48),
        ("RR24,IVF16,RaBitQ", "IVF16,RaBitQ", 24),
        ("RR24,IVF16,RaBitQ", "RR24,RR24,IVF16,RaBitQ", 32),
        ("RR24,IVF16,RaBitQ", "RR24,IVF16,Flat", 32),
        ("RR24,IVF16,RaBitQ", "RR24,Flat", 32),
        ("RR24,IVF16,RaBitQ", "PCAR24,IVF16,RaBitQ", 32),
        ("OPQ4_16,IVF16,PQ4x4", "OPQ4_8,IVF16,PQ4x4np", 32),
        ("OPQ4_16,IVF16,PQ4x4", "OPQ4_16,IVF16,PQ8x4np", 32),
        ("IVF16,PQ7x4", "IVF16,PQ8x4np", 56),  # of as many bytes
        ("IVF16,PQ8np", "IVF16,PQ4np", 32),
        ("IVF16,PQ8x4", "IVF16_HNSW8,PQ8x4np", 32),
        ("IVF16,PQ8x4", "IVF16,PQ8x4fs", 32),
    ],
)
def test_a_model_of_another_index_is_refused(string: str, other: str, dimension: int) -> None:
    form = index_strings.parse(string)
    with pytest.raises(DatasetError, match="run id2 index --anew"):
        compressed.load(form, 56 if form.groups == 7 else 32, forged(other, dimension))


def with_nan(step: Any) -> None:
    matrix = faiss.vector_to_array(step.A)
    matrix[7] = np.nan
    faiss.copy_array_to_vector(matrix, step.A)


def with_wide_rows(step: Any) -> None:
    step.d_in = 48
    faiss.copy_array_to_vector(np.ones(48 * 24, np.float32), step.A)


@pytest.mark.parametrize("change", [with_nan, with_wide_rows])
def test_a_rotation_that_is_none_of_the_string_is_refused(change: Callable[[Any], None]) -> None:
    whole = faiss.deserialize_index(np.frombuffer(forged("RR24,IVF16,RaBitQ"), np.uint8))
    change(faiss.downcast_VectorTransform(whole.chain.at(0)))
    with pytest.raises(DatasetError, match="run id2 index --anew"):
        compressed.load(index_strings.parse("RR24,IVF16,RaBitQ"), 32, faiss.serialize_index(whole).tobytes())


@given(st.sampled_from(FORMS), st.integers(0, 300), st.sampled_from([0, 1, 2**20, 2**31, 2**40, 2**63]))
def test_a_model_whose_sizes_were_changed_is_refused_or_works(string: str, place: int, size: int) -> None:
    data = bytearray(forged(string if string.endswith(("np", "Q")) else f"{string}np"))
    data[place : place + 8] = size.to_bytes(8, "little")
    form = index_strings.parse(string)
    try:
        model = compressed.load(form, 32, bytes(data))
    except DatasetError:
        return
    made = model.encode(unit(40, 32, 1))
    assert made.shape == (40, form.stored_bytes(32))
    assert model.over([made]).search(unit(3, 32, 2), 5, 4)[1].max() < 40


def test_codes_of_no_list_are_refused() -> None:
    model = compressed.train(index_strings.parse("IVF16,PQ8x4"), unit(1000, 32, 0))
    made = model.encode(unit(9, 32, 1)).copy()
    made[3] = 255
    with pytest.raises(DatasetError, match="run id2 index --anew"):
        model.over([made])


def test_an_index_that_finds_too_few_is_not_committed(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "embeddings", unit(30_000, 32, 0), 3, "r")
    with pytest.raises(SearchError, match=r"finds \d\d\.\d% of the 10 best .* asks for 1: take longer"):
        make(references, "IVF16,PQ2x4", 1.0)
    assert Dataset.find_own(str(tmp_path / "index")) is None
    sample = index_building.sample(references, 1000)
    assert 900 <= len(sample) <= 1100 and len(np.unique(sample, axis=0)) == len(sample)


def change(corpus: Dataset, files: tuple[FileRecord, ...]) -> Dataset:
    """Commit that a corpus has these files."""
    changed = datasets.replace_commit(corpus.uri, replace(corpus.commit, files=files), corpus)
    assert changed
    return changed


def test_a_takedown_while_an_index_is_built_costs_it_the_codes_of_what_went_alone(tmp_path: Path) -> None:
    grown = write_embeddings(tmp_path / "embeddings", unit(2400, 32, 0), 6, "r")
    coding = codes.plan(grown, STRING, Execution.begin())
    record = index_building.train(coding, MEMORY)
    model = compressed.load(index_strings.parse(STRING), 32, codes.read_model(coding.uri, record))
    made = {file.name: index_building.encode(coding, file, record, model) for file in grown.files}
    codes.forget(grown, Execution.begin())  # a takedown of another picture
    fewer = change(grown, grown.files[1:])
    codes.forget(fewer, Execution.begin())
    assert len(list(tmp_path.rglob("codes-*"))) == 5
    with pytest.raises(StoreUnavailableError, match="references were removed"):
        index_building.commit(coding, record, made, 0.5, MEMORY)
    # The same between this check and the commit: the commit loses what went.
    files = codes.files_of(coding, record, made)
    committed = codes.commit(coding, record, files, IndexFacts(probes=8, depth=100))
    assert made[grown.files[0].name] not in committed.files and len(committed.files) == 6
    found = CodedReferences(fewer, committed)
    found.check()
    assert len(coded.load(found, fewer.files).search(unit(3, 32, 1), 5)) == 15


def test_codes_that_were_never_committed_go_with_their_pictures(tmp_path: Path) -> None:
    corpus = write_embeddings(tmp_path / "embeddings", unit(2000, 32, 0), 5, "r")
    with pytest.raises(RecallError):
        make(corpus, "IVF8,PQ2x4", 1.0)
    assert len(list(tmp_path.rglob("codes-*"))) == len(list((tmp_path / "_staging" / "parts").glob("*"))) - 1
    codes.forget(change(corpus, corpus.files[2:]), Execution.begin())
    assert len(list(tmp_path.rglob("codes-*"))) == 3
    assert len(list((tmp_path / "_staging" / "parts").glob("*"))) == 4


def test_the_recall_is_measured_again_when_references_were_replaced(tmp_path: Path) -> None:
    first = coded_references(tmp_path)
    grown = write_embeddings(tmp_path / "embeddings", unit(2400, 32, 0), 6, "r")
    more = make(grown).facts
    assert (more.recall_10, more.encoded_since) == (first.facts.recall_10, 400)
    others = write_embeddings(tmp_path / "embeddings", unit(2400, 32, 7), 6, "o")
    anew = make(others).facts
    assert (anew.encoded_since, anew.corpus_rows) == (0, 2400) and anew.recall_10 != more.recall_10


def test_a_damaged_index_is_mended_by_training_it_anew(tmp_path: Path) -> None:
    found = coded_references(tmp_path)
    for name in ("codes-", "model-"):
        path = next(Path(found.index.uri).glob(f"{name}*"))
        path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(DatasetError, match="run id2 index --anew"):
        coded.load(found, found.references.files)
    coding = codes.plan(found.references, STRING, Execution.begin(), anew=True)
    index.run(index.Wanted(coding, 0.5, MEMORY))
    mended = CodedReferences(found.references, Dataset.open(coding.uri))
    assert not {file.name for file in mended.index.files} & {file.name for file in found.index.files}
    assert len(coded.load(mended, found.references.files).search(unit(3, 32, 1), 5)) == 15


def test_whichever_copy_of_a_picture_is_found_is_no_miss(tmp_path: Path) -> None:
    copies = np.repeat(unit(100, 32, 0), 20, axis=0)
    found = make(write_embeddings(tmp_path / "embeddings", copies, 5, "r"), "IVF4,PQ8x4", 0.95)
    assert found.facts.recall_1 is not None and found.facts.recall_1 >= 0.95


def test_a_search_by_codes_takes_the_best_look_at_an_upload(tmp_path: Path) -> None:
    held = coded_references(tmp_path)
    shard = coded.load(held, held.references.files)
    vectors = shards.load(held.references, held.references.files).descriptors
    ids = shards.load(held.references, held.references.files).ids["image_id"].to_pylist()
    inside = vectors[[3, 7]]
    asked = Looks(
        uploads=2,
        owners=np.array([0, 1, 1]),
        names=np.array([0, 0, looks.LOOKS.index("inset")]),
        costs=np.array([0, 0.2, 0], np.float32),
        slopes=np.ones(3),
        descriptors=np.concatenate([inside, vectors[[7]]]),
        latents=None,
        bits=None,
        moved=(),
    )

    found = viewed.search_coded(shard, asked, 5)

    assert found["query_row"].to_pylist() == [0] * 5 + [1] * 5
    best = found.slice(0, 1).to_pylist() + found.slice(5, 1).to_pylist()
    assert [(row["reference_id"], row["view"]) for row in best] == [(ids[3], "whole"), (ids[7], "inset")]
    assert [row["score"] for row in best] == pytest.approx([1, 1], abs=1e-5)
    pairs = list(zip(found["query_row"].to_pylist(), found["reference_uri"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs))
