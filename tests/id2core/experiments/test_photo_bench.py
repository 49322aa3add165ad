from __future__ import annotations

from pathlib import Path

import pytest

from factory import photo_sets
from id2core.experiments import photo_bench, photo_folders
from id2core.experiments.photo_bench import DISTRACTORS, PARTS, TEST, TRAIN
from tests.drawing import scene


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty small photos, half of them named as the demo's are in the makers' folder."""
    for module, name, value in (
        (photo_folders, "HELD_OUT", 6),
        (photo_bench, "TRAIN_COUNT", 10),
        (photo_bench, "WITHOUT_ORIGIN", 3),
        (photo_bench, "SOME_COUNT", 3),
    ):
        monkeypatch.setattr(module, name, value)
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file,source,caption"]
    for i in range(60):
        name = f"{'wallpaper' if i % 2 else 'photo'}_{i}.jpg"
        scene(i, (32, 32)).save(folder / name)
        rows.append(f"{name},drawn,subject {i}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def is_demo(name: str) -> bool:
    return name.startswith(photo_sets.NEVER_TRAINED)


def test_a_file_named_like_the_demos_is_a_photo_like_any_other(photos: Path) -> None:
    roles = photo_bench.roles(photos)
    assert any(map(is_demo, roles[TRAIN])) and not all(map(is_demo, roles[DISTRACTORS]))
    once = [name for role, names in roles.items() if role not in PARTS for name in names]
    assert sorted(once) == sorted(path.name for path in photos.glob("*.jpg"))


def test_the_makers_keep_the_demo_out_of_training_also_when_laid_out_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    monkeypatch.setattr("sys.argv", ["photo_sets", "--photos", str(photos), "--data", str(data)])
    photo_sets.main()
    before = {path.relative_to(data) for path in data.rglob("*")}
    photo_bench.lay_out(photos, data)
    assert {path.relative_to(data) for path in data.rglob("*")} == before
    names = {
        role: [p.name for p in (data / "photos" / role).iterdir()] for role in (TRAIN, TEST, DISTRACTORS)
    }
    assert not any(is_demo(name.rpartition("-")[2]) for name in names[TRAIN])
    assert any(map(is_demo, names[DISTRACTORS])) and any(map(is_demo, names[TEST]))
    assert not any(map(is_demo, photo_sets.split(photos).train))
