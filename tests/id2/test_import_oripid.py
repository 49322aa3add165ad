"""Made-up files in the published form: from there to a W, and to a bench that can be measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import id2
from id2.corpora import CorpusPair
from id2core.errors import DatasetError, ExperimentError, ReaderError, RunInProgressError, StorageError
from id2core.experiments import evaluation_sets
from id2core.experiments.evaluation_sets import EvaluationSet
from id2core.runs import leases
from id2core.runs.execution import Execution
from id2core.settings import Settings
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.training import pairs
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from tests.commands import as_json, call
from tests.drawing import scene
from tests.latent_sets import N, origins, translated

ORIGINS, EACH = 60, 2


def npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def publish(folder: Path, latents: NDArray[Any], each: int = EACH) -> None:
    """One `.npy` file a latent: T000000_0.npy the origin, T000000_1.npy and so on its translations."""
    folder.mkdir(parents=True)
    versions = [latents, *(translated(latents, seed) for seed in range(1, each + 1))]
    for number, version in enumerate(versions):
        for row, latent in enumerate(version):
            (folder / f"T{row:06d}_{number}.npy").write_bytes(npy(latent.astype(np.float32)))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """The published form with what can be wrong: one folder inside another of the same name."""
    folder = tmp_path / "sd2_d_multi_feature/sd2_d_multi_feature"
    publish(folder, origins(ORIGINS, 0))
    (folder / "T000001_2.npy").write_bytes(b"not numbers")
    (folder / "T000002_0.npy").unlink()
    for number in range(1, EACH + 1):
        (folder / f"T000003_{number}.npy").unlink()
    (folder / "mean.npy").write_bytes(npy(np.ones(N, np.float32)))
    (folder.parent / "T000004_1.npy").write_bytes(npy(np.ones(N, np.float32)))
    (folder / "README.md").write_text("features")
    return tmp_path / "sd2_d_multi_feature"


def load(features: Path, out: str) -> dict[str, Any]:
    return as_json(id2.import_oripid(features=str(features), out=out, latent_size=N))


def test_two_imports_of_one_folder_do_not_work_at_once(features: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "oripid")
    with (
        leases.held(out, str(features), Execution.begin()),
        pytest.raises(RunInProgressError, match=f"is adding {features} to {out}"),
    ):
        load(features, out)
    assert load(features, out)["resumed"] is False


def test_what_is_imported_is_trained_on_and_every_file_is_accounted_for(
    features: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "oripid")
    loaded = load(features, out)

    assert (loaded["embedded"], loaded["reasons"]) == (ORIGINS * 3 - 2, {"unsupported_format": 2})
    assert loaded["listed"] == loaded["embedded"] + loaded["rejected"]
    assert loaded["left_out"] == {
        "name_does_not_fit": 1,
        "same_name_twice": 1,
        "origin_not_there": EACH,
        "no_translation_there": 1,
    }
    assert loaded["examples"]["name_does_not_fit"].endswith("/mean.npy")
    assert (loaded["origins"], loaded["translations"]) == (ORIGINS - 2, 2 * (ORIGINS - 2) - 1)
    lost = sum(loaded["left_out"].values())
    assert loaded["embedded"] == loaded["origins"] + loaded["translations"] + lost

    trained = as_json(
        id2.train(
            embeddings=[out],
            translations=[out],
            out=str(tmp_path / "w"),
            method="closed-form",
            dimensions=32,
        )
    )
    assert trained["data"]["latents"] == loaded["origins"] + loaded["translations"]
    reached = {name: m["mean_ap"] for name, m in trained["validation"]["methods"].items()}
    assert reached["closed-form"] > reached["raw"]
    load_transform(trained["W"]).check_encoder("sd2-0123456789ab")

    before = Dataset.open(f"{out}/translations")
    again = load(features, out)
    assert again == loaded | {"resumed": True}
    assert Dataset.open(f"{out}/translations") == before
    (features / "T000003_1.npy").write_bytes(npy(np.ones(N, np.float32)))
    more = load(features, out)
    assert not more["resumed"] and more["origins"] == ORIGINS - 1


def test_rows_say_which_picture_is_of_which_and_hold_no_descriptors(features: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "oripid")
    load(features, out)
    rows = Dataset.open(f"{out}/translations").read(schemas.TRANSLATIONS).to_pylist()
    folder = features / features.name
    one = next(row for row in rows if row["uri"] == str(folder / "T000005_2.npy"))
    assert (one["origin_uri"], one["number"]) == (str(folder / "T000005_0.npy"), 2)
    latents = Dataset.open(f"{out}/embeddings").read(schemas.embeddings_schema(N, 1))
    ids = dict(zip(latents["uri"].to_pylist(), latents["image_id"].to_pylist(), strict=True))
    assert all(ids[row["uri"]] == row["image_id"] for row in rows)
    assert all(ids[row["origin_uri"]] == row["origin_id"] for row in rows)
    assert not schemas.column_to_vectors(latents["descriptor"]).any()
    for spec in ("auto", "none"):
        with pytest.raises(DatasetError, match=r"without descriptors.*--transform"):
            CorpusPair.open(f"dataset:{out}", f"dataset:{out}", None, "unused", []).row_ids(
                Settings(transform=spec)
            )


def test_interrupted_before_the_pairs_it_goes_on(features: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "oripid")
    loaded = load(features, out)
    storage.delete(f"{out}/translations/_SUCCESS")
    again = load(features, out)
    assert again | {"run_id": ""} == loaded | {"run_id": ""} and again["run_id"] != loaded["run_id"]


def test_a_folder_that_is_something_else_is_refused_with_what_to_give(tmp_path: Path) -> None:
    def refused(files: dict[str, bytes], what: str) -> None:
        folder = tmp_path / what[:5]
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        with pytest.raises(ReaderError, match=what):
            load(folder, f"{folder}-out")
        assert not (tmp_path / f"{what[:5]}-out/translations").exists()

    good = npy(np.ones(N, np.float32))
    refused(
        {"a.npy": good, "b.npy": good},
        r"none of 2 files .* that fits, for example .*/a\.npy: give .*T000000_1\.npy",
    )
    refused({"T000001_0.npy": b"", "T000001_1.npy": b"x"}, "holds a latent.*rejects")
    refused({"T000001_1.npy": good, "T000002_0.npy": good}, "no origin .* has a translation.*T000000_0")


def test_the_command_reports_what_was_left_out_and_imports_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder, out = tmp_path / "features", tmp_path / "oripid"
    folder.mkdir()
    for name in ("T000000_0", "T000000_1", "T000001_0", "T000001_20", "T000002_7", "x"):
        (folder / f"{name}.npy").write_bytes(npy(rng.standard_normal((1, 4096)).astype(np.float32)))
    arguments = ("import-oripid", "--features", folder, "--out", out)
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "2 translations of 2 origins" in result.stderr and "features: 6/6 files" in result.stderr
    assert f"1 names that do not fit, for example {folder}/x.npy" in result.stderr
    assert "1 translations without their origin" in result.stderr
    again = call(*arguments)
    assert again.returncode == 0 and "nothing new to do" in again.stderr, again.stderr
    loaded = pairs.load(
        [Dataset.open(f"{out}/embeddings")], [Dataset.open(f"{out}/translations")], tmp_path / "cache"
    )
    assert len(loaded.origin_ids) == 2 and loaded.latents.shape == (4, 4096)
    nowhere = call("import-oripid", "--features", tmp_path / "no", "--out", out, "--json")
    assert nowhere.returncode == 1 and "no such folder" in nowhere.stderr and not nowhere.stdout


# A bench of OriPID


def lay_out(oripid: Path, data: Path, **changed: str) -> dict[str, Any]:
    given = {"oripid": str(oripid), "data": str(data), "encoder": "mini"} | changed
    return as_json(id2.experiment_data(**given))


def draw(folder: Path, seeds: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        scene(seed, (48, 48)).save(folder / f"{name}.png")


@pytest.fixture
def oripid(tmp_path: Path) -> Path:
    """Eight references, three of them origins; each query is its origin over again in another file."""
    root = tmp_path / "OriPID"
    draw(root / "references/some", {f"R{i:06d}": i for i in range(8)})
    draw(root / "queries/sd2", {"R000001": 1, "R000002": 2, "R000099": 99, "notes": 5})
    draw(root / "queries/sdxl/R", {"R000002_a": 2, "R000006_b": 6})
    rng = np.random.default_rng(0)
    folder = root / "sd2_d_multi_feature"
    folder.mkdir()
    for row in range(5):
        for number in range(2):
            latent = rng.standard_normal(4096).astype(np.float32)
            (folder / f"T{row:06d}_{number}.npy").write_bytes(npy(latent))
    return root


def same_bytes_once(root: Path) -> None:
    """A query must not have the very bytes of its origin."""
    for path in (root / "queries").rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")


def test_a_downloaded_oripid_becomes_a_bench(oripid: Path, tiny_vae: str, tmp_path: Path) -> None:
    same_bytes_once(oripid)
    data = tmp_path / "bench"
    arguments = ("experiment", "data", "--oripid", oripid, "--data", data, "--encoder", tiny_vae)
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    assert "5 translations of 5 origins" in result.stderr and "3 test, 5 distractors" in result.stderr
    assert "test-sd2: 2 queries (1 name_does_not_fit, 1 origin_not_there)" in result.stderr

    bench = EvaluationSet.load(data)
    assert bench.models == ("sd2", "sdxl") and len(bench.references) == 8
    for model in bench.models:
        assert evaluation_sets.closed_set(bench.search(Transform(), model))["acc"].value == 1.0
    assert len(bench.pairs("sd2").latents) == 10

    (oripid / "references/some/R000006.png").write_bytes(b"broken")
    draw(oripid / "queries/sd2", {"R000003": 3})
    made = json.loads(call(*arguments, "--json").stdout)
    assert made["photos"] == {"test": 4, "distractors": 4}
    assert made["queries"]["test-sdxl"] == {"queries": 2, "without_reference": 1, "dropped": {}}
    again = EvaluationSet.load(data)
    assert len(again.references) == 7 and sorted(again.queries("sdxl").origins < 0) == [False, True]
    assert made["training"]["resumed"]


def test_a_missing_part_of_oripid_is_named_before_any_work(oripid: Path, tmp_path: Path) -> None:
    def refused(what: str, **changed: str) -> None:
        with pytest.raises((ReaderError, ExperimentError), match=what):
            lay_out(oripid, tmp_path / "bench", **changed)
        assert not (tmp_path / "bench/latents").exists()

    with pytest.raises(StorageError, match="nowhere: no such folder"):
        lay_out(oripid, tmp_path / "bench", features=str(tmp_path / "nowhere"))
    (oripid / "queries/sdxl").rename(tmp_path / "sdxl")
    refused("has sd2: a folder of an unseen model is missing")
    (tmp_path / "sdxl").rename(oripid / "queries/sdxl")
    (oripid / "queries/sd2").rename(oripid / "queries/stable-diffusion-2")
    refused("the folder sd2 is missing.*link")
    (tmp_path / "bench").mkdir(exist_ok=True)
    (tmp_path / "bench/bench.json").write_text('{"seen": "mini-a", "unseen": ["mini-b"]}')
    refused("other data")


@pytest.mark.slow
def test_manual_edits_are_looked_up_among_their_sources(oripid: Path, tmp_path: Path) -> None:
    same_bytes_once(oripid)
    seed = tmp_path / "seed/real_editing"
    draw(seed / "images", {"s1": 21, "t1": 21, "s2": 22, "t2": 22})
    for name in ("t1", "t2"):
        path = seed / f"images/{name}.png"
        path.write_bytes(path.read_bytes() + b"\0")
    (seed / "annotations").mkdir()
    lines = [json.dumps({"source_image": f"s{i}.png", "target_image": f"t{i}.png"}) for i in (1, 2)]
    (seed / "annotations/split_0001.jsonl").write_text("\n".join(lines))
    data = tmp_path / "bench"
    made = lay_out(oripid, data, seed_edits=str(seed.parent))
    assert made["photos"] == {"test": 3, "distractors": 7} and made["queries"]["test-manual"]["queries"] == 2
    measured = evaluation_sets.closed_set(EvaluationSet.load(data).search(Transform(), "manual"))
    assert measured["acc"].value == 1.0

    with pytest.raises(ReaderError, match=r"test-manual.*--seed-edits"):
        lay_out(oripid, data, encoder="pdq", name="pdq")
    assert len(list((data / "photos/distractors").iterdir())) == 7
    other = lay_out(oripid, data, encoder="pdq", name="pdq", seed_edits=str(seed.parent))
    assert other["training"] is None and EvaluationSet.load(data).encoders() == ["pdq"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "--photos or --oripid"),
        (["--photos", "p", "--oripid", "o"], "one of them"),
        (["--photos", "p", "--features", "f"], "go with --oripid"),
        (["--oripid", "o", "--name", "n"], "--encoder and --name together"),
        (["--oripid", "o", "--encoder", "e", "--name", "n", "--features", "f"], "leave out --features"),
    ],
)
def test_sources_that_do_not_go_together_are_bad_usage(arguments: list[str], hint: str) -> None:
    result = call("experiment", "data", "--data", "bench", *arguments)
    assert result.returncode == 2 and hint in " ".join(result.stderr.replace("│", " ").split())
