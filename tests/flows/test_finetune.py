from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from flows import finetune as flow
from id2core import datasets, encoders, tables
from id2core.training.finetune import FinetuneError
from tests.drawing import scene
from tests.id2core.test_backbones import saved

ORIGINS = 6
SMALL = {"batch": 8, "per_class": 2, "steps": 4, "warmup": 1, "lr": 1e-3}


def picture(path: Path, seed: int, side: int) -> str:
    file = io.BytesIO()
    scene(seed, (side, side)).save(file, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return str(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Originals and an output of `id2 translate`, both moved since it was written."""
    originals, translated = tmp_path / "originals", tmp_path / "translated"
    rows = []
    for seed in range(ORIGINS):
        picture(originals / f"sub/{seed}.jpg", seed, 64)
        picture(translated / f"pictures/0{seed}/{seed}-0.jpeg", seed, 60)
        origin = {"origin_id": f"id-{seed}", "origin_uri": f"/before/originals/sub/{seed}.jpg"}
        row = {"image_id": f"t-{seed}", "uri": f"/before/translated/pictures/0{seed}/{seed}-0.jpeg"}
        rows.append(row | origin)
    place = str(translated / "translations")
    table = pa.Table.from_pylist(rows, tables.TRANSLATIONS)
    record = datasets.write_file(place, "made", [table], tables.TRANSLATIONS)
    datasets.write_commit(place, datasets.Commit("translations", "made", {}, (record,)))
    return originals, translated


def test_a_backbone_is_trained_on_folders_that_have_moved(
    folders: tuple[Path, Path], tmp_path: Path, prefect_api: str
) -> None:
    originals, translated = folders
    (originals / "sub/5.jpg").unlink()
    recipe = {"backbone": str(saved("vit", tmp_path / "tiny")), **SMALL}

    report = flow.finetune(str(originals), [str(translated)], str(tmp_path / "out"), recipe, "cpu")

    assert (report["pictures"], report["origins"], report["left_out"]) == (10, 5, 1)
    assert encoders.load(report["encoder"]).encoder_id.startswith("tiny-cosface-")
    facts = json.loads(Path(report["report"]).read_text())
    assert facts["seconds"] > 0 and facts["recipe"]["steps"] == 4


def test_where_no_origin_is_there_it_says_which_were(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"6 origins.*/before/originals/sub/0.jpg"):
        flow.find(str(folders[1]), [str(folders[1])])


def test_the_command_trains_from_random_weights_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path, prefect_api: str
) -> None:
    def run(*extra: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "flows.cli", "finetune", "--originals", str(folders[0])]
        words += [
            "--translations",
            str(folders[1]),
            "--backbone",
            "resnet-scratch",
            "--out",
            str(tmp_path / "out"),
        ]
        words += ["--batch", "8", "--steps", "2", "--warmup", "1", *extra]
        environment = os.environ | {"PREFECT_API_URL": prefect_api}
        return subprocess.run(words, capture_output=True, text=True, env=environment)

    first, again = run("--per-class", "2"), run("--per-class", "2")
    assert first.returncode == 0, first.stderr
    assert "12 pictures of 6 origins" in first.stderr
    folder = first.stdout.strip()
    assert folder == again.stdout.strip() and folder.endswith("out/resnet-scratch-cosface")
    assert encoders.load(folder).latent_size == 256
    other = run("--per-class", "4")
    assert other.returncode == 1 and "choose another --out" in other.stderr
    assert run("--per-class", "3").returncode == 2
