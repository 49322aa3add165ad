from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from id2core.evaluation import truth_files
from id2core.store import datasets, schemas, storage
from tests import tiny_pipelines
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
def home(prefect_api: str) -> dict[str, str]:
    return {"PREFECT_API_URL": prefect_api, "ID2_DTYPE": "float32"}


def command(id2: str, out: str, *more: str) -> list[str]:
    chosen = ["--model", "pipeline", "--strength", "0.5", "--steps", "2", "--size", "32"]
    places = ["--images", "photos", "--prompts", "prompts.txt", "--out", out]
    return [id2, "translate", *places, *chosen, "--per-image", "3", "--part-size", "2", *more]


def run(place: Path, home: dict[str, str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=place, env=os.environ | home, capture_output=True, text=True, timeout=280, check=False
    )


def pictures(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "pictures").rglob("*.*")}


def test_killed_and_run_again_gives_the_same_pictures_and_none_twice(
    place: Path, home: dict[str, str], id2: str
) -> None:
    done = run(place, home, command(id2, "whole", "--json"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["translated"], summary["rejected"], summary["pictures"]) == (10, 1, 30)
    assert "translate: 11/11 origins, 1 of them rejected" in done.stderr

    killed = place / "killed"
    run_until(killed, "translations/part-*", command(id2, "killed"), place, home)
    assert not (killed / "translations/_SUCCESS").exists(), "it ended before it could be killed"
    again = run(place, home, command(id2, "killed"))
    assert again.returncode == 0, again.stderr
    assert "10 of 11 originals translated by pipeline into 30 pictures, 1 rejected" in again.stderr
    assert pictures(killed) == pictures(place / "whole") and len(pictures(killed)) == 30
    resumed, whole = (
        datasets.read_all(str(place / out / "translations"), schemas.TRANSLATIONS)
        .sort_by([("origin_uri", "ascending"), ("number", "ascending")])
        .drop(["uri", "run_id", "translated_at"])
        for out in ("killed", "whole")
    )
    assert resumed.num_rows == 30 and resumed.equals(whole)


def test_the_truth_file_names_the_origin_of_every_picture(
    place: Path, home: dict[str, str], id2: str
) -> None:
    done = run(place, home, command(id2, "out"))
    assert done.returncode == 0, done.stderr
    where = done.stdout.strip()
    assert where == str(place / "out/truth.csv")
    known = truth_files.read(where, str(place / "photos"), str(place / "out/pictures"))
    assert set(known) == {o.uri for o in storage.list_objects(str(place / "out/pictures"))}
    assert {Path(str(origin)).parent.name for origin in known.values()} == {"photos"}
    [row] = datasets.read_all(str(place / "out/runs"), schemas.RUNS).to_pylist()
    assert (row["flow"], row["listed"], row["translated"], row["rejected"]) == ("translate", 11, 10, 1)
    assert "nothing new to do" in run(place, home, command(id2, "out")).stderr


@pytest.mark.parametrize(
    ("change", "code", "hint"),
    [
        (["--strength", "1.5"], 2, "strength is 1.5"),
        (["--format", "gif"], 2, "choose one of jpeg, png"),
        (["--model", "no-such-model"], 2, "not a short name (sd2, sdxl"),
        (["--prompts", "captions"], 1, "`endpoint`"),
        (["--prompts", "endpoint"], 1, "ID2_PROMPT_BASE_URL"),
        (["--images", "nowhere"], 1, "no such folder"),
    ],
)
def test_bad_input_is_said_in_one_line(
    place: Path, home: dict[str, str], id2: str, change: list[str], code: int, hint: str
) -> None:
    done = run(place, home, command(id2, "bad", *change))
    assert done.returncode == code, done.stderr
    assert hint in " ".join(done.stderr.replace("│", " ").split()) and "Traceback" not in done.stderr
    assert not (place / "bad/translations").exists()


def test_help_teaches(id2: str, place: Path) -> None:
    done = run(place, {"COLUMNS": "200", "TERM": "dumb"}, [id2, "translate", "--help"])
    for words in ("mini-a", "instruct-pix2pix", "captions.csv", "the paper's where it gives one", "Example"):
        assert words in done.stdout
