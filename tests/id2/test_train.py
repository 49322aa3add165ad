from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import id2
from flows import progress
from id2core.errors import ClosedFormError, GradientError, OptionError, PairsError, StorageError, TrainError
from id2core.runs import records
from id2core.runs.progress import into_tally
from id2core.transforms.files import load_transform
from tests.commands import call
from tests.conftest import run_until
from tests.latent_sets import origins, translated, write_embeddings, write_translations

ORIGINS, EACH = 200, 3
SMALL = {"dimensions": 32, "batch": 64, "epochs": 4, "iterations": 25, "lr": 3e-2, "ema": 0.99} | {
    "validation_share": 0.3
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with latents of originals and of their translations, and what is a translation of what."""
    folder = tmp_path_factory.mktemp("train")
    known = origins(ORIGINS, 0)
    write_embeddings(folder / "originals", known, "o")
    again = np.concatenate([translated(known, seed, much=8) for seed in range(1, EACH + 1)])
    write_embeddings(folder / "translated/embeddings", again, "t")
    pairs = [(f"t{i:06d}", f"o{i % ORIGINS:06d}") for i in range(EACH * ORIGINS)]
    write_translations(folder / "made/translations", [*pairs, ("nowhere", "o000001")])
    return folder


def arguments(out: str, method: str, **recipe: object) -> list[str]:
    """As an operator gives them: two data sets by the `--out` that they stand in."""
    chosen = SMALL | recipe if method != "closed-form" else {"dimensions": 32, "validation_share": 0.3}
    options = [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--embeddings", "originals", "--embeddings", "translated", "--translations", "made"]
    return ["train", *data, "--out", out, "--method", method, "--cache", "cache", *options]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run processes of their own: two of torchrun, or one that is killed."""
    return subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_both_methods_beat_raw_latents_and_again_does_nothing(place: Path) -> None:
    result = call(*arguments("both", "both"), "--json", folder=place)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    reached = {name: m["mean_ap"] for name, m in report["validation"]["methods"].items()}
    assert set(reached) == {"raw", "closed-form", "both"}
    assert reached["both"] >= reached["closed-form"] > reached["raw"] + 0.05
    assert report["data"]["origins"] == ORIGINS and report["data"]["latents"] == ORIGINS * (1 + EACH)
    assert report["data"]["left_out"]["translations_without_latent"] == 1
    assert "training: 100/100 steps" in result.stderr and report["seconds"]["both"] > 0
    w = load_transform(report["W"])
    assert w.transform_id == report["transform_id"] and report["W"] == str(place / "both/W.safetensors")
    assert w.metadata["encoder_id"] == "e-1" and w.metadata["recipe"]["init"] != "random"
    assert w.cohort and len(w.cohort.descriptors) == ORIGINS and w.cohort.crops is None
    [row] = records.read(str(place / "both"))
    assert (row.flow, row.status, row.listed) == ("train", "done", 800) and row.versions["torch"]
    assert row.run_id == report["run_id"]

    before = (place / "both/report.json").stat().st_mtime_ns
    again = call(*arguments("both", "both"), folder=place)
    assert again.returncode == 0 and "nothing new to do" in again.stderr, again.stderr
    assert again.stdout.strip() == report["W"]
    assert (place / "both/report.json").stat().st_mtime_ns == before
    other = call(*arguments("both", "both", lr=1e-3, seed=5), folder=place)
    assert other.returncode == 1 and "other lr, seed" in other.stderr, other.stderr


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_w(place: Path, id2_command: str) -> None:
    whole = run(place, [id2_command, *arguments("whole", "gradient", iterations=200), "--json"])
    assert whole.returncode == 0, whole.stderr
    command = [id2_command, *arguments("killed", "gradient", iterations=200)]
    run_until(place / "killed", "gradient/checkpoint.pt", command, place, ENVIRONMENT)
    assert not (place / "killed/report.json").exists(), "it ended before it could be killed"
    resumed = run(place, [*command, "--json"])
    assert resumed.returncode == 0, resumed.stderr
    assert [row.status for row in records.read(str(place / "killed"))] == ["killed", "done"]
    assert json.loads(resumed.stdout)["transform_id"] == json.loads(whole.stdout)["transform_id"]


@pytest.mark.slow
def test_under_torchrun_one_process_reports_and_writes(place: Path, id2_command: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone"]
    command = [
        *torchrun,
        "--nproc-per-node",
        "2",
        id2_command,
        *arguments("two", "both"),
        "--device",
        "cpu",
        "--json",
    ]
    result = run(place, command)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["validation"]["methods"]["both"]["mean_ap"] > 0.9
    assert load_transform(report["W"]).transform_id == report["transform_id"]
    again = run(place, command)
    assert again.returncode == 0 and json.loads(again.stdout)["resumed"], again.stderr


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"translations": "originals"}, PairsError, "holds embeddings"),
        ({"embeddings": "nothing"}, StorageError, "nothing: no such folder"),
        ({"embeddings": "originals"}, PairsError, "no origin has a latent as well as a translation"),
        ({"dimensions": 65}, ClosedFormError, "m is 65"),
        ({"epochs": 3}, OptionError, "epochs: not for the closed form"),
        ({"speed": 3}, GradientError, "no speed"),
        ({"out": "gs://bucket/w"}, TrainError, "local folder"),
        ({"method": "both", "head": "mlp-2"}, OptionError, "not mlp-2"),
        ({"method": "gradient", "shrinkage": 1.0}, OptionError, "closed-form or both"),
    ],
)
def test_what_cannot_be_trained_is_said(
    change: dict[str, object], error: type[Exception], message: str, place: Path, tmp_path: Path
) -> None:
    given = {"embeddings": "originals", "translations": "made/translations", "out": tmp_path / "w"} | change
    data = {name: [str(place / str(given.pop(name)))] for name in ("embeddings", "translations")}
    if "embeddings" not in change:
        data["embeddings"].append(str(place / "translated/embeddings"))
    given = {"method": "closed-form"} | given | {"out": str(given["out"])}
    with pytest.raises(error, match=message):
        id2.train(**data, **given)


def test_bad_usage_is_refused_before_any_work(place: Path) -> None:
    result = call(*arguments("bad", "gradient", head="mlp-9"), folder=place)
    assert result.returncode == 2 and "mlp-9" in result.stderr and "Traceback" not in result.stderr


def test_progress_says_when_it_will_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=200)
    report = into_tally()
    with progress.shown(console):
        report("training", 600, 1000)  # a resumed run: these were not done in no time
        for step in (601, 602):
            clock.now += 0.05
            report("training", step, 1000)
        report("training", 1000, 1000)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "training: 600/1000 steps"
    assert lines[2].startswith("training: 602/1000 steps, ")
    assert lines[2].endswith("eta 20 s") and "eta" not in lines[-1]
    assert progress._duration(80) == "80 s" and progress._duration(720) == "12 min"
    assert progress._duration(4 * 3600) == "4.0 h"
