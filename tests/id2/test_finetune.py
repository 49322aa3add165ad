from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

import id2
from id2core.encoders.registry import load_encoder
from id2core.errors import FinetuneError
from id2core.runs import records
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.training.pictures import TrainingPictures, find_pictures
from tests.commands import Done, as_json, call
from tests.drawing import scene
from tests.tiny_backbones import saved

ORIGINS = 6
SMALL = {"batch": 8, "per_class": 2, "steps": 4, "warmup": 1, "lr": 1e-3}


def picture(path: Path, seed: int, side: int) -> str:
    """Draw one; its SHA-256."""
    file = io.BytesIO()
    scene(seed, (side, side)).save(file, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Originals, two of each name, and an output of `id2 translate`; both have moved since."""
    originals, translated = tmp_path / "originals", tmp_path / "translated"
    rows = []
    for seed in range(ORIGINS):
        name = f"{'ab'[seed % 2]}/{seed // 2}.jpg"
        origin_id = picture(originals / name, seed, 64)
        picture(translated / f"pictures/0{seed}/{seed}-0.jpeg", seed, 60)
        origin = {"origin_id": origin_id, "origin_uri": f"/before/originals/{name}"}
        row = {"image_id": f"t-{seed}", "uri": f"/before/translated/pictures/0{seed}/{seed}-0.jpeg"}
        rows.append(row | origin)
    place = str(translated / "translations")
    table = pa.Table.from_pylist(rows, schemas.TRANSLATIONS)
    record = datasets.write_file(place, "made", [table], schemas.TRANSLATIONS)
    datasets.write_commit(place, datasets.Commit("translations", "made", {}, (record,)))
    return originals, translated


def find(originals: Path, translated: Path) -> TrainingPictures:
    return find_pictures(str(originals), [Dataset.open(str(translated / "translations"))])


def test_a_backbone_is_trained_on_folders_that_have_moved(folders: tuple[Path, Path], tmp_path: Path) -> None:
    originals, translated = folders
    (originals / "a/0.jpg").unlink()
    (translated / "pictures/01/1-0.jpeg").unlink()
    recipe = {"backbone": str(saved("vit", tmp_path / "tiny")), **SMALL}

    report = as_json(
        id2.finetune(
            originals=str(originals),
            translations=[str(translated)],
            out=str(tmp_path / "out"),
            device="cpu",
            **recipe,
        )
    )

    assert (report["pictures"], report["origins"]) == (8, 4)
    assert report["left_out"] == {"origins": 1, "translations": 1}
    assert load_encoder(report["encoder"]).encoder_id.startswith("tiny-cosface-")
    facts = json.loads(Path(report["report"]).read_text())
    assert facts["seconds"] > 0 and facts["recipe"]["steps"] == 4
    assert [(run.flow, run.listed) for run in records.read(str(tmp_path / "out"))] == [("finetune", 8)]


def test_an_original_of_the_same_name_is_not_taken_for_another(folders: tuple[Path, Path]) -> None:
    originals, translated = folders
    links = find(originals / "a", translated)
    assert sorted(links.origins.values()) == [str(originals / f"a/{i}.jpg") for i in range(3)]
    assert sorted(links.translations) == [str(translated / f"pictures/0{i}/{i}-0.jpeg") for i in (0, 2, 4)]
    assert (
        links.missing_origins == {f"/before/originals/b/{i}.jpg" for i in range(3)}
        and not links.missing_translations
    )
    hashes = {hashlib.sha256(Path(uri).read_bytes()).hexdigest(): uri for uri in links.origins.values()}
    assert links.origins == hashes


def test_where_no_origin_is_there_it_says_which_were(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"6 origins.*/before/originals/a/0.jpg"):
        find(folders[1], folders[1])


def test_where_no_translation_is_there_it_says_so(folders: tuple[Path, Path]) -> None:
    originals, translated = folders
    for path in (translated / "pictures").rglob("*.jpeg"):
        path.unlink()
    with pytest.raises(FinetuneError, match=r"6 translations.*pictures/00/0-0.jpeg"):
        find(originals, translated)


def test_the_command_trains_from_random_weights_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    def run(*extra: str) -> Done:
        places = ("--originals", folders[0], "--translations", folders[1], "--out", tmp_path / "out")
        sizes = ("--batch", "8", "--steps", "2", "--warmup", "1")
        return call("finetune", *places, "--backbone", "resnet-scratch", *sizes, *extra)

    first, again = run("--per-class", "2"), run("--per-class", "2")
    assert first.returncode == 0, first.stderr
    assert "12 pictures of 6 origins" in first.stderr
    folder = first.stdout.strip()
    assert folder == again.stdout.strip() and folder.endswith("out/resnet-scratch-cosface")
    assert load_encoder(folder).latent_size == 256
    assert [run.status for run in records.read(str(tmp_path / "out"))] == ["done", "done"]
    assert run("--per-class", "3").returncode == 2
