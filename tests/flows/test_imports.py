"""Made-up files in the published form: from there to a W, and to a bench that can be measured."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from flows import cli, experiment, imports, scan, train
from id2core.errors import DatasetError, ExperimentError, ReaderError
from id2core.experiments import evaluation_sets as benches
from id2core.experiments.evaluation_sets import Bench
from id2core.settings import Settings
from id2core.store import datasets, schemas, storage
from id2core.training import pairs
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
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


def test_what_is_imported_is_trained_on_and_every_file_is_accounted_for(
    features: Path, tmp_path: Path, prefect_api: str
) -> None:
    out = str(tmp_path / "oripid")
    found = imports.import_oripid(str(features), out, latent_size=N)

    assert (found["embedded"], found["reasons"]) == (ORIGINS * 3 - 2, {"unsupported_format": 2})
    assert found["listed"] == found["embedded"] + found["rejected"]
    assert found["left_out"] == {
        "name_does_not_fit": 1,
        "same_name_twice": 1,
        "origin_not_there": EACH,
        "no_translation_there": 1,
    }
    assert found["examples"]["name_does_not_fit"].endswith("/mean.npy")
    assert (found["origins"], found["translations"]) == (ORIGINS - 2, 2 * (ORIGINS - 2) - 1)
    lost = sum(found["left_out"].values())
    assert found["embedded"] == found["origins"] + found["translations"] + lost

    trained = train.train([out], [out], str(tmp_path / "w"), "closed-form", {"dimensions": 32})
    assert trained["data"]["latents"] == found["origins"] + found["translations"]
    reached = {name: m["mean_ap"] for name, m in trained["validation"]["methods"].items()}
    assert reached["closed-form"] > reached["raw"]
    load_transform(trained["W"]).check_encoder("sd2-0123456789ab")

    before = datasets.require_commit(f"{out}/translations")
    again = imports.import_oripid(str(features), out, latent_size=N)
    assert again == found | {"resumed": True}
    assert datasets.require_commit(f"{out}/translations") == before
    (features / "T000003_1.npy").write_bytes(npy(np.ones(N, np.float32)))
    more = imports.import_oripid(str(features), out, latent_size=N)
    assert not more["resumed"] and more["origins"] == ORIGINS - 1


def test_rows_say_which_picture_is_of_which_and_hold_no_descriptors(
    features: Path, tmp_path: Path, prefect_api: str
) -> None:
    out = str(tmp_path / "oripid")
    imports.import_oripid(str(features), out, latent_size=N)
    rows = datasets.read_all(f"{out}/translations", schemas.TRANSLATIONS).to_pylist()
    folder = features / features.name
    one = next(row for row in rows if row["uri"] == str(folder / "T000005_2.npy"))
    assert (one["origin_uri"], one["number"]) == (str(folder / "T000005_0.npy"), 2)
    latents = datasets.read_all(f"{out}/embeddings", schemas.embeddings_schema(N, 1))
    ids = dict(zip(latents["uri"].to_pylist(), latents["image_id"].to_pylist(), strict=True))
    assert all(ids[row["uri"]] == row["image_id"] for row in rows)
    assert all(ids[row["origin_uri"]] == row["origin_id"] for row in rows)
    assert not schemas.column_to_vectors(latents["descriptor"]).any()
    for spec in ("auto", "none"):
        with pytest.raises(DatasetError, match=r"without descriptors.*--transform"):
            scan.scores_of(out, out, Settings(transform=spec))


def test_interrupted_before_the_pairs_it_goes_on(features: Path, tmp_path: Path, prefect_api: str) -> None:
    out = str(tmp_path / "oripid")
    found = imports.import_oripid(str(features), out, latent_size=N)
    storage.delete(f"{out}/translations/_SUCCESS")
    assert imports.import_oripid(str(features), out, latent_size=N) == found


def test_a_folder_that_is_something_else_is_refused_with_what_to_give(
    tmp_path: Path, prefect_api: str
) -> None:
    def refused(files: dict[str, bytes], what: str) -> None:
        folder = tmp_path / what[:5]
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        with pytest.raises(ReaderError, match=what):
            imports.import_oripid(str(folder), f"{folder}-out", latent_size=N)
        assert not (tmp_path / f"{what[:5]}-out/translations").exists()

    good = npy(np.ones(N, np.float32))
    refused(
        {"a.npy": good, "b.npy": good},
        r"none of 2 files .* that fits, for example .*/a\.npy: give .*T000000_1\.npy",
    )
    refused({"T000001_0.npy": b"", "T000001_1.npy": b"x"}, "holds a latent.*rejects")
    refused({"T000001_1.npy": good, "T000002_0.npy": good}, "no origin .* has a translation.*T000000_0")


def run(id2: str, api: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PREFECT_API_URL": api, "OMP_NUM_THREADS": "1"}
    command = [id2, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_the_command_tells_what_was_left_out_and_imports_once(
    id2: str, tmp_path: Path, prefect_api: str
) -> None:
    rng = np.random.default_rng(0)
    folder, out = tmp_path / "features", tmp_path / "oripid"
    folder.mkdir()
    for name in ("T000000_0", "T000000_1", "T000001_0", "T000001_20", "T000002_7", "x"):
        (folder / f"{name}.npy").write_bytes(npy(rng.standard_normal((1, 4096)).astype(np.float32)))
    arguments = ("import-oripid", "--features", folder, "--out", out)
    done = run(id2, prefect_api, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "2 translations of 2 origins" in done.stderr and "features: 6/6 files" in done.stderr
    assert f"1 names that do not fit, for example {folder}/x.npy" in done.stderr
    assert "1 translations without their origin" in done.stderr
    again = run(id2, prefect_api, *arguments)
    assert again.returncode == 0 and "nothing new to do" in again.stderr, again.stderr
    found = pairs.load([f"{out}/embeddings"], [f"{out}/translations"], tmp_path / "cache")
    assert len(found.origin_ids) == 2 and found.latents.shape == (4, 4096)
    nowhere = run(id2, prefect_api, "import-oripid", "--features", tmp_path / "no", "--out", out, "--json")
    assert nowhere.returncode == 1 and "no such folder" in nowhere.stderr and not nowhere.stdout


# A bench of OriPID


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


def test_a_downloaded_oripid_becomes_a_bench(
    oripid: Path, tmp_path: Path, prefect_api: str, id2: str
) -> None:
    same_bytes_once(oripid)
    data = tmp_path / "bench"
    arguments = ("experiment", "data", "--oripid", oripid, "--data", data, "--encoder", "mini")
    done = run(id2, prefect_api, *arguments)
    assert done.returncode == 0, done.stderr
    assert "5 translations of 5 origins" in done.stderr and "3 test, 5 distractors" in done.stderr
    assert "test-sd2: 2 queries (1 name_does_not_fit, 1 origin_not_there)" in done.stderr

    bench = Bench.load(data)
    assert bench.models == ("sd2", "sdxl") and len(bench.references) == 8
    for model in bench.models:
        assert benches.closed_set(bench.find(Transform(), model))["acc"].value == 1.0
    assert len(bench.pairs("sd2").latents) == 10

    (oripid / "references/some/R000006.png").write_bytes(b"broken")
    draw(oripid / "queries/sd2", {"R000003": 3})
    made = json.loads(run(id2, prefect_api, *arguments, "--json").stdout)
    assert made["photos"] == {"test": 4, "distractors": 4}
    assert made["queries"]["test-sdxl"] == {"queries": 2, "without_reference": 1, "dropped": {}}
    again = Bench.load(data)
    assert len(again.references) == 7 and sorted(again.queries("sdxl").origins < 0) == [False, True]
    assert made["training"]["resumed"]


def test_a_missing_part_of_oripid_is_named_before_any_work(
    oripid: Path, tmp_path: Path, prefect_api: str
) -> None:
    def refused(what: str, **changed: str) -> None:
        with pytest.raises((ReaderError, ExperimentError), match=what):
            experiment.make_oripid_data(str(oripid), str(tmp_path / "bench"), "mini", **changed)
        assert not (tmp_path / "bench/latents").exists()

    refused("nowhere: no such folder.*--features", features=str(tmp_path / "nowhere"))
    (oripid / "queries/sdxl").rename(tmp_path / "sdxl")
    refused("has sd2: a folder of an unseen model is missing")
    (tmp_path / "sdxl").rename(oripid / "queries/sdxl")
    (oripid / "queries/sd2").rename(oripid / "queries/stable-diffusion-2")
    refused("the folder sd2 is missing.*link")
    (tmp_path / "bench").mkdir(exist_ok=True)
    (tmp_path / "bench/bench.json").write_text('{"seen": "mini-a", "unseen": ["mini-b"]}')
    refused("other data")


def test_manual_edits_are_looked_up_among_their_sources(
    oripid: Path, tmp_path: Path, prefect_api: str
) -> None:
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
    made = experiment.make_oripid_data(str(oripid), str(data), "mini", seed_edits=str(seed.parent))
    assert made["photos"] == {"test": 3, "distractors": 7} and made["queries"]["test-manual"]["queries"] == 2
    assert benches.closed_set(Bench.load(data).find(Transform(), "manual"))["acc"].value == 1.0

    with pytest.raises(ReaderError, match=r"test-manual.*--seed-edits"):
        experiment.make_oripid_data(str(oripid), str(data), "pdq", "pdq")
    assert len(list((data / "photos/distractors").iterdir())) == 7
    other = experiment.make_oripid_data(str(oripid), str(data), "pdq", "pdq", seed_edits=str(seed.parent))
    assert other["training"] is None and Bench.load(data).encoders() == ["pdq"]


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
    told = CliRunner().invoke(cli.app, ["experiment", "data", "--data", "bench", *arguments])
    assert told.exit_code == 2 and hint in " ".join(told.output.replace("│", " ").split())
