from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from id2core.errors import DatasetError, StoreUnavailableError, TransformError
from id2core.runs.execution import Execution
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, FileRecord
from id2core.transforms import reprojection
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows
from id2core.transforms.reprojection import Reprojection
from tests import inset_columns, latent_sets
from tests.kills import is_killed


@pytest.fixture
def corpus(tmp_path: Path) -> Dataset:
    latents = latent_sets.origins(120, 1)
    uri = latent_sets.write_embeddings(tmp_path / "out/reference/embeddings", latents, "r", files=3)
    latent_sets.good_w().save(tmp_path / "w.safetensors")
    return Dataset.open(uri)


def plan(corpus: Dataset) -> Reprojection:
    """The work for the corpus as it is now, with the W beside its place."""
    out = Path(corpus.uri).parents[1]
    w = latent_sets.good_w()
    place = reprojection.place_beside(str(out), "reference", w.transform_id)
    spec = str(out.parent / "w.safetensors")
    return reprojection.plan(Dataset.open(corpus.uri), place, spec, Execution.begin())


def project_all(work: Reprojection) -> Dataset:
    transform = work.load()
    made = [(file.name, reprojection.project(work, file, transform)) for file in work.todo]
    return reprojection.commit(work, made)


def descriptors(dataset: Dataset) -> np.ndarray:
    """float32[n,m] in the order of the URIs."""
    rows = pa.concat_tables(dataset.tables(["uri", "descriptor"])).sort_by("uri")
    return schemas.column_to_vectors(rows["descriptor"])


def test_a_file_that_is_recorded_is_not_projected_again(
    corpus: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = plan(corpus)
    transform = work.load()
    first = reprojection.project(work, work.todo[0], transform)
    again = plan(corpus)
    monkeypatch.setattr(type(transform), "apply", lambda *_: pytest.fail("projected again"))
    assert reprojection.project(again, again.todo[0], transform) == first


def test_a_record_whose_file_is_not_whole_counts_for_nothing(corpus: Dataset) -> None:
    work = plan(corpus)
    first = reprojection.project(work, work.todo[0], work.load())
    [staged] = Path(work.place).rglob(first.name)
    staged.write_bytes(staged.read_bytes()[:-1])
    beside = project_all(plan(corpus))
    want = latent_sets.good_w().apply(latent_sets.origins(120, 1))
    assert np.array_equal(descriptors(beside), want)


def test_a_switch_that_is_killed_at_any_change_of_the_store_is_completed_by_the_next(
    corpus: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_all(plan(corpus))
    want = latent_sets.good_w().apply(latent_sets.origins(120, 1))
    for number in count(1):
        is_killed(number, lambda: reprojection.put_in_use(plan(corpus)), monkeypatch)
        held = Dataset.open(corpus.uri)
        if is_new := held.ids["transform_id"] == latent_sets.good_w().transform_id:
            break
        assert held.commit == corpus.commit
    assert (number > 4, is_new) == (True, True)
    assert np.array_equal(descriptors(held), want)
    datasets.settle(str(Path(corpus.uri).parent))
    assert {path.name for path in Path(corpus.uri).glob("*.parquet")} == {file.name for file in held.files}


def test_rows_that_another_run_made_of_the_same_pictures_are_projected_again(corpus: Dataset) -> None:
    project_all(plan(corpus))
    again: list[FileRecord] = []
    for file in corpus.files:
        table = corpus.read_file(file, ["image_id", "uri", "run_id", "latent"])
        table = schemas.completed(table, schemas.embeddings_schema(latent_sets.N, 1), None, len(table))
        runs = pa.repeat(pa.scalar("later", pa.string()), len(table))
        table = table.set_column(table.schema.get_field_index("run_id"), "run_id", runs)
        again.append(datasets.write_file(corpus.uri, file.key, [table], table.schema))
    assert [file.key for file in again] == [file.key for file in corpus.files]
    datasets.replace_commit(corpus.uri, replace(corpus.commit, files=tuple(again)), corpus)
    beside = project_all(plan(corpus))
    made = [run for table in beside.tables(["run_id"]) for run in table["run_id"].unique().to_pylist()]
    assert made == ["later"] * 3


def test_a_switch_that_was_given_up_leaves_no_rejects_with_the_ids_of_the_other_transform(
    corpus: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(Path(corpus.uri).with_name("rejects"))
    datasets.write_commit(uri, Commit("rejects", "r", corpus.ids))
    project_all(plan(corpus))
    is_mixed = False
    for number in count(1):
        is_killed(number, lambda: reprojection.put_in_use(plan(corpus)), monkeypatch)
        held = Dataset.open(corpus.uri)
        if held.ids != corpus.ids:
            break
        is_mixed |= Dataset.open(uri).ids != held.ids
        reprojection.match_rejects(held, Execution.begin())
        assert Dataset.open(uri).ids == held.ids
    assert (is_mixed, Dataset.open(uri).ids) == (True, held.ids)


def test_what_is_gone_or_damaged_beside_a_corpus_is_not_put_in_use(corpus: Dataset) -> None:
    [first, *_] = project_all(plan(corpus)).files
    work = plan(corpus)
    path = Path(work.uri, first.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="--drop"):
        reprojection.put_in_use(work)
    path.unlink()
    with pytest.raises(DatasetError, match="--drop"):
        reprojection.put_in_use(work)
    assert work.beside
    datasets.replace_commit(work.uri, work.beside.commit, work.beside)
    with pytest.raises(StoreUnavailableError, match="run again"):
        reprojection.put_in_use(work)
    assert Dataset.open(corpus.uri).commit == corpus.commit


def test_a_corpus_that_changed_meanwhile_is_not_switched(corpus: Dataset) -> None:
    with pytest.raises(DatasetError, match="does not have the rows"):
        reprojection.put_in_use(plan(corpus))
    project_all(plan(corpus))
    work = plan(corpus)
    rejects = str(Path(corpus.uri).with_name("rejects"))
    datasets.write_commit(rejects, Commit("rejects", "r", corpus.ids))
    datasets.replace_commit(corpus.uri, corpus.commit, corpus)
    with pytest.raises(StoreUnavailableError, match="run again"):
        reprojection.put_in_use(work)
    assert Dataset.open(rejects).ids == corpus.ids


def test_latents_that_are_gone_and_another_w_are_refused(corpus: Dataset, tmp_path: Path) -> None:
    w = latent_sets.good_w()
    bare = latent_sets.write_descriptors(tmp_path / "bare/embeddings", latent_sets.origins(4, 1), "b", w)
    with pytest.raises(DatasetError, match="holds no latents"):
        reprojection.plan(Dataset.open(bare), str(tmp_path / "beside"), "none", Execution.begin())
    work = plan(corpus)
    larger = Transform(np.ones((latent_sets.N + 1, 2), np.float32), w.metadata)
    larger.save(tmp_path / "larger.safetensors")
    with pytest.raises(TransformError, match="takes latents of"):
        reprojection.plan(corpus, work.place, str(tmp_path / "larger.safetensors"), Execution.begin())
    (tmp_path / "w.safetensors").unlink()
    Transform(np.ones((latent_sets.N, 2), np.float32), w.metadata).save(tmp_path / "w.safetensors")
    with pytest.raises(TransformError, match="planned with"):
        work.load()


def closed_form(n: int, m: int, seed: int) -> Transform:
    """A W that gives rows for other views than the whole."""
    weights = np.random.default_rng(seed).standard_normal((n, m)).astype(np.float32)
    return Transform(weights, {"encoder_id": latent_sets.IDS["encoder_id"], "method": "closed form"})


def test_crops_and_detail_are_made_of_the_latents_and_insets_stay(tmp_path: Path) -> None:
    n, rows = 256, 30
    latents = np.random.default_rng(1).standard_normal((rows, n)).astype(np.float16)
    uri = latent_sets.write_embeddings(tmp_path / "out/reference/embeddings", latents, "r", files=2)
    insets = inset_columns.draw(rows, n)["insets"]
    before = latent_sets.with_columns(uri, {"insets": insets}, earlier=1)  # its first file lacks the columns
    first = before.files[0].rows
    expected_insets = [None] * first + insets.to_pylist()[first:]

    for m in (200, 20):  # columns of a W: enough for crops, and too few
        w = closed_form(n, m, seed=m)
        w.save(tmp_path / "w.safetensors")
        place = reprojection.place_beside(str(tmp_path / "out"), "reference", w.transform_id)
        spec = str(tmp_path / "w.safetensors")
        work = reprojection.plan(before, place, spec, Execution.begin())
        table = pa.concat_tables(project_all(work).tables()).sort_by("uri")
        assert table["insets"].to_pylist() == expected_insets
        if m == 20:
            assert ReferenceRows.of(w, n) is None
            assert table["crops"].null_count == table["detail"].null_count == rows
        elif made := ReferenceRows.of(w, n):
            crops, detail = made(latents)
            assert table["crops"].to_pylist() == [row.tobytes() for row in crops]
            assert table["detail"].to_pylist() == [row.tobytes() for row in detail]
        else:
            pytest.fail("this W gives rows")
