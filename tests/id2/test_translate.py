from __future__ import annotations

import json
from pathlib import Path

import pytest

from id2core.evaluation import truth_files
from id2core.runs import records
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from tests import tiny_pipelines
from tests.commands import call
from tests.conftest import run_until
from tests.drawing import draw_photos

PROMPTS = "at night\nin the snow\nmade of gold\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, photos and prompts."""
    folder = tmp_path_factory.mktemp("translate")
    tiny_pipelines.stable_diffusion(folder / "pipeline")
    draw_photos(folder / "photos", 10)
    (folder / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "prompts.txt").write_text(PROMPTS)
    return folder


@pytest.fixture(scope="module")
def home() -> dict[str, str]:
    return {"ID2_DTYPE": "float32"}


def command(out: str, *more: str) -> list[str]:
    chosen = ["--model", "pipeline", "--strength", "0.5", "--steps", "2", "--size", "32"]
    places = ["--images", "photos", "--prompts", "prompts.txt", "--out", out]
    return ["translate", *places, *chosen, "--per-image", "3", "--part-size", "2", *more]


def pictures(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "pictures").rglob("*.*")}


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_pictures_and_none_twice(
    place: Path, home: dict[str, str], id2_command: str
) -> None:
    result = call(*command("whole", "--json"), folder=place, environment=home)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["translated"], summary["rejected"], summary["pictures"]) == (10, 1, 30)
    assert "translate: 11/11 origins, 1 of them rejected" in result.stderr

    killed = place / "killed"
    run_until(killed, "_staging/files/translations/part-*", [id2_command, *command("killed")], place, home)
    assert not (killed / "translations/_SUCCESS").exists(), "it ended before it could be killed"
    again = call(*command("killed"), folder=place, environment=home)
    assert again.returncode == 0, again.stderr
    assert "10 of 11 originals translated by pipeline (30 pictures), 1 rejected" in again.stderr
    assert pictures(killed) == pictures(place / "whole") and len(pictures(killed)) == 30
    resumed, whole = (
        Dataset.open(str(place / out / "translations"))
        .read(schemas.TRANSLATIONS)
        .sort_by([("origin_uri", "ascending"), ("number", "ascending")])
        .drop(["uri", "run_id", "translated_at"])
        for out in ("killed", "whole")
    )
    assert resumed.num_rows == 30 and resumed.equals(whole)


def test_the_truth_file_names_the_origin_of_every_picture(place: Path, home: dict[str, str]) -> None:
    result = call(*command("out"), folder=place, environment=home)
    assert result.returncode == 0, result.stderr
    where = result.stdout.strip()
    assert where == str(place / "out/truth.csv")
    known = truth_files.read(where, str(place / "photos"), str(place / "out/pictures"))
    assert set(known) == {o.uri for o in storage.list_objects(str(place / "out/pictures"))}
    assert {Path(str(origin)).parent.name for origin in known.values()} == {"photos"}
    [row] = records.read(str(place / "out"))
    assert (row.flow, row.listed, row.translated, row.rejected) == ("translate", 11, 10, 1)
    assert "nothing new to do" in call(*command("out"), folder=place, environment=home).stderr


@pytest.mark.parametrize(
    ("change", "code", "hint"),
    [
        (["--strength", "1.5"], 2, "'--strength': Input should be less than or equal to 1"),
        (["--format", "gif"], 2, "'gif' is not one of"),
        (["--model", "no-such-model"], 2, "not a short name (sd2, sdxl"),
        (["--prompts", "captions"], 1, "`endpoint`"),
        (["--prompts", "endpoint"], 1, "ID2_PROMPT_BASE_URL"),
        (["--images", "nowhere"], 1, "no such folder"),
    ],
)
def test_bad_input_is_said_in_one_line(
    place: Path, home: dict[str, str], change: list[str], code: int, hint: str
) -> None:
    result = call(*command("bad", *change), folder=place, environment=home)
    assert result.returncode == code, result.stderr
    assert hint in " ".join(result.stderr.replace("│", " ").split()) and "Traceback" not in result.stderr
    assert not (place / "bad/translations").exists()


def test_help_teaches() -> None:
    result = call("translate", "--help", environment={"COLUMNS": "200", "TERM": "dumb"})
    for words in ("mini-a", "instruct-pix2pix", "captions.csv", "the paper's where it gives one", "Example"):
        assert words in result.stdout
