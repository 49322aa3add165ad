from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing of the user's is read or written, with no Prefect server."""
    folder = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ID2_"))}
    return environment | {"PREFECT_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def served(home: dict[str, str], prefect_api: str) -> dict[str, str]:
    """The same with a server: a command that starts one of its own takes seconds longer."""
    return home | {"PREFECT_API_URL": prefect_api}


def run(id2: str, home: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [id2, *map(str, arguments)]
    return subprocess.run(command, env=home, capture_output=True, text=True, timeout=280, check=False)


def test_the_demo_finds_its_origins_and_says_where_the_report_is(
    id2: str, home: dict[str, str], served: dict[str, str], tmp_path: Path
) -> None:
    done = run(id2, home, "demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "Acc " in done.stderr and "of 140 uploads with an origin" in done.stderr
    report = Path(done.stdout.strip())
    assert report == tmp_path / "demo/report.html" and report.stat().st_size > 100_000
    again = run(id2, served, "demo", "--out", tmp_path / "demo", "--json")
    summary = json.loads(again.stdout)
    assert summary["counts"]["references"] == 200 and summary["counts"]["queries"] == 200
    assert 0.6 < summary["accuracy"] < 0.95 and summary["accuracy_of"] == 140
    rewritten = run(id2, served, "report", tmp_path / "demo", "--max-pairs", 3, "--json")
    assert json.loads(rewritten.stdout)["counts"] == summary["counts"]
    assert report.stat().st_size < 200_000


def test_embed_counts_on_stderr_and_prints_one_object_on_stdout(
    id2: str, home: dict[str, str], photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    options = ("--images", photos, "--out", tmp_path / "out", "--encoder", tiny_vae)
    done = run(id2, home, "embed", *options, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["embedded"], summary["rejected"]) == (12, 0)
    assert "embed: 12/12 images" in done.stderr
    mixed = run(id2, home, "embed", *options[:-1], "mini")
    assert mixed.returncode == 1
    assert "error:" in mixed.stderr and "write to another --out" in mixed.stderr
    assert "Traceback" not in mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["scan", "--reference", "/nowhere", "--queries", "/nowhere", "--out", "OUT"], 1, "no such folder"),
        (["embed", "--images", "s3://x/y", "--out", "OUT"], 1, "gs://"),
        (["embed", "--images", "/tmp", "--out", "OUT", "--encoder", "nothing"], 1, "short name"),
        (["scan", "--reference", "/etc/hosts", "--queries", "/nowhere", "--out", "OUT"], 1, "no such folder"),
        (["embed", "--images", "/etc", "--out", "/etc/hosts"], 1, "/etc/hosts"),
        (["embed", "--images", "/tmp"], 2, "Missing option"),
        (["embed", "--images", "a.jpg", "b.jpg", "--out", "OUT"], 2, "unexpected"),
        (["embed", "--images", "/tmp", "--out", "OUT", "--", "--direct_num_wrokers=2"], 2, "no Beam option"),
        (["embed", "--images", "/tmp", "--out", "OUT", "--speed", "9"], 2, "No such option"),
        (["scan", "--reference", "/a", "--queries", "/b", "--out", "OUT", "--top-k", "0"], 2, "top-k"),
    ],
)
def test_what_went_wrong_is_said_in_a_line_and_in_the_exit_code(
    arguments: list[str], code: int, hint: str, id2: str, served: dict[str, str], tmp_path: Path
) -> None:
    done = run(id2, served, *[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert done.returncode == code and hint in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_doctor_knows_the_machine(id2: str, home: dict[str, str]) -> None:
    facts = json.loads(run(id2, home, "doctor", "--json").stdout)
    assert facts["versions"]["torch"] and facts["devices"]["cores"] == os.cpu_count()
    assert facts["hub"] == "offline by HF_HUB_OFFLINE" and facts["settings"]["encoder"] == "mini"
