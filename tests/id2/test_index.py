"""A compressed index through the door: built once, kept up by scans and takedowns, refused if it is stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import id2
from id2.indexing import Indexer
from id2core.encoders.registry import load_encoder
from id2core.errors import DatasetError, OptionError, RecallError, SearchError
from id2core.runs import checkup
from id2core.runs.execution import Execution
from id2core.settings import Settings
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.transforms.linear import Transform
from tests.descriptor_sets import unit, write_embeddings
from tests.drawing import draw_photos

STRING = "RR128,IVF2,RaBitQ"


def scan(folder: Path, index: str, out: str = "out", **given: Any) -> id2.ScanSummary:
    places = {"reference": str(folder / "originals"), "queries": str(folder / "uploads")} | given
    return id2.scan(**places, out=str(folder / out), encoder="pdq", calibration="none", index=index, top_k=3)


def pairs(out: Path) -> dict[tuple[str, str], float]:
    tables = [pq.read_table(path) for path in out.glob("matches/**/*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    return {(Path(r["query_uri"]).name, Path(r["reference_uri"]).name): r["score"] for r in rows}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_photos(folder / "originals", 90)
    draw_photos(folder / "uploads", 6)
    return folder


@pytest.fixture(scope="module")
def indexed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `--out` of `id2 embed`, with an index."""
    out = tmp_path_factory.mktemp("indexed") / "out"
    id2.embed(images=str(pictures / "originals"), out=str(out), encoder="pdq")
    id2.index(out=str(out), index=STRING)
    return out


def test_scans_by_an_index_follow_their_references(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan(pictures, STRING, str(tmp_path / "coded"))
    scan(pictures, "flat", str(tmp_path / "flat"))
    coded, exact = pairs(tmp_path / "coded"), pairs(tmp_path / "flat")
    shared = coded.keys() & exact.keys()
    assert len(shared) >= 0.8 * len(exact) and all(coded[pair] == exact[pair] for pair in shared)
    assert all((f"p{i:04d}.jpg", f"p{i:04d}.jpg") in coded for i in range(6))  # copies are found
    report = id2.index(out=str(tmp_path / "coded"), index=STRING)
    assert (report.rows, report.encoded, report.code_bytes) == (90, 0, 16 + 8 + 1)
    assert report.recall_10 is not None and report.recall_10 >= 0.95
    tables = [pq.read_table(path) for path in (tmp_path / "coded").glob("matches/**/*.parquet")]
    [index_id] = {name for table in tables for name in table["index_id"].to_pylist()}
    assert index_id.startswith(f"{STRING}@")
    assert not checkup.check(str(tmp_path / "coded")).findings
    with caplog.at_level("WARNING", "id2"):
        scan(pictures, "flat", str(tmp_path / "coded"))
    assert f"were by {STRING}, which misses some pairs" in caplog.text
    assert pairs(tmp_path / "coded") == coded


def test_a_takedown_removes_the_codes_of_a_picture(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan(pictures, STRING, str(out))
    index = Dataset.open(str(out / "reference" / "index"))
    before = {path.name for path in out.rglob("codes-*")}
    id2.takedown(out=str(out), uri=[str(pictures / "originals" / "p0003.jpg")])
    after = Dataset.open(index.uri)
    assert not before & {path.name for path in out.rglob("codes-*")} and len(after.files) == 1
    report = id2.index(out=str(out), index=STRING)
    assert (report.rows, report.encoded) == (89, 89)


def test_a_model_that_finds_too_few_by_now_is_trained_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = write_embeddings(tmp_path / "embeddings", unit(30_000, 32, 0), 3, "r")
    settings = Settings(index="IVF16,PQ2x4", index_recall=0.1)
    first = Indexer(settings, Execution.begin(), []).make(corpus)
    more = settings.model_copy(update={"index_recall": 1.0})
    with caplog.at_level("WARNING", "id2"), pytest.raises(RecallError):
        Indexer(more, Execution.begin(), []).make(corpus)
    assert "A new model is trained" in caplog.text
    assert Indexer(settings, Execution.begin(), []).find(corpus).index.files == first.index.files


def test_references_of_another_out_need_an_index_that_is_current(pictures: Path, tmp_path: Path) -> None:
    corpus = str(tmp_path / "corpus")
    id2.embed(images=str(pictures / "originals"), out=corpus, encoder="pdq")
    given = {"reference": f"dataset:{corpus}"}
    with pytest.raises(SearchError, match="run id2 index --index"):
        scan(pictures, STRING, str(tmp_path / "out"), **given)
    made = id2.index(out=corpus, index=STRING)
    assert made.encoded == 90 and made.place == f"{corpus}/index"
    scan(pictures, STRING, str(tmp_path / "out"), **given)
    assert len(pairs(tmp_path / "out")) == 18


def test_another_w_gets_an_index_of_its_own_and_the_switch_leaves_none_beside(
    pictures: Path, indexed: Path, tmp_path: Path
) -> None:
    out, w = shutil.copytree(indexed, tmp_path / "out"), str(tmp_path / "w.safetensors")
    encoder = load_encoder("pdq")
    weights = np.random.default_rng(0).standard_normal((encoder.latent_size, 160)).astype(np.float32)
    Transform(weights, {"encoder_id": encoder.encoder_id}).save(w)
    [beside] = [corpus.place for corpus in id2.reproject(out=str(out), transform=w).corpora]
    scan(pictures, STRING, str(out), reference=f"dataset:{beside}", transform=w)
    assert list(Path(beside, "index").iterdir()) and not id2.doctor(out=str(out)).findings
    id2.reproject(out=str(out), transform=w, switch=True)
    assert not [path for path in (out / "reprojected").rglob("*") if path.is_file()]
    [finding] = id2.doctor(out=str(out)).findings
    assert "lacks codes of 1 file" in finding.detail
    assert id2.index(out=str(out), index=STRING).encoded == 90
    assert not id2.doctor(out=str(out)).findings


def recommit(index: Dataset, **changed: Any) -> None:
    """Change what the commit of an index says."""
    assert datasets.replace_commit(index.uri, replace(index.commit, **changed), index)


def with_other_facts(index: Dataset) -> None:
    recommit(index, runs={index.run_id: {"probes": 10**9}})


def with_other_ids(index: Dataset) -> None:
    recommit(index, ids=index.ids | {"transform_id": "another"})


def with_another_string(index: Dataset) -> None:
    recommit(index, ids=index.ids | {"index": "RR128,IVF3,RaBitQ"})


def without_codes(index: Dataset) -> None:
    recommit(index, files=tuple(file for file in index.files if file.name.startswith("model-")))


def with_codes_of_no_list(index: Dataset) -> None:
    [model] = [file for file in index.files if file.name.startswith("model-")]
    [codes] = [file for file in index.files if file != model]
    table = index.read_file(codes)
    forged = pa.table({"code": pa.array([b"?" * 25] * len(table), pa.binary()), "model": table["model"]})
    written = datasets.write_file(index.uri, codes.key, [forged.cast(schemas.INDEX)], schemas.INDEX)
    recommit(index, files=(model, written))


def with_a_file_cut(index: Dataset) -> None:
    path = Path(index.uri, index.files[0].name)
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("change", "fault", "mend"),
    [
        (with_other_facts, "index", "--anew"),
        (with_another_string, "index", "RR128,IVF3,RaBitQ --anew"),
        (with_codes_of_no_list, "index", "--anew"),
        (with_a_file_cut, "file", "--anew"),
        (with_other_ids, "index", f"id2 index --index {STRING} with"),
        (without_codes, "index", f"id2 index --index {STRING} with"),
    ],
)
def test_a_doctor_finds_what_a_search_would_refuse_and_says_what_mends_it(
    change: Callable[[Dataset], None], fault: str, mend: str, indexed: Path, tmp_path: Path
) -> None:
    out = str(shutil.copytree(indexed, tmp_path / "out"))
    assert not id2.doctor(out=out).findings
    change(Dataset.open(f"{out}/index"))
    [finding] = id2.doctor(out=out).findings
    assert finding.fault == fault and mend in finding.mend, finding
    with pytest.raises((DatasetError, SearchError)):
        id2.scan(
            reference=f"dataset:{out}",
            queries=f"dataset:{out}",
            out=str(tmp_path / "scan"),
            index=STRING,
            calibration="none",
        )
    id2.index(out=out, index=STRING, anew="--anew" in mend)
    assert not id2.doctor(out=out).findings


def test_what_is_no_index_is_refused_at_once(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="flat needs no index"):
        id2.index(out=str(tmp_path), index="flat")
    with pytest.raises(OptionError, match="no index 'IVF4,Flat'"):
        scan(pictures, "IVF4,Flat", str(tmp_path / "out"))
    for string, reason in (
        ("RR400,IVF2,RaBitQ", "descriptors have 256"),
        ("IVF2,PQ7x4", "7 groups"),
        ("IVF65536,RaBitQ", "MiB, and a worker may take 1,024"),
    ):
        with pytest.raises(SearchError, match=reason):
            scan(pictures, string, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SearchError, match="39,936 references or more, and there are 90"):
        scan(pictures, "IVF1024,RaBitQ", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "matches").exists()


def test_references_that_were_given_are_refused_before_uploads_are_embedded(
    pictures: Path, indexed: Path, tmp_path: Path
) -> None:
    given = {"reference": f"dataset:{indexed}"}
    corpus = shutil.copytree(indexed, tmp_path / "corpus", ignore=shutil.ignore_patterns("index"))
    with pytest.raises(SearchError, match="has no index: run id2 index"):
        scan(pictures, STRING, str(tmp_path / "out"), reference=f"dataset:{corpus}")
    with pytest.raises(SearchError, match="39,936 references or more, and there are 90"):
        scan(pictures, "IVF1024,RaBitQ", str(corpus), reference=f"dataset:{corpus}")
    assert not (tmp_path / "out").exists() and not (corpus / "queries").exists()
    scan(pictures, STRING, str(tmp_path / "out"), **given)
