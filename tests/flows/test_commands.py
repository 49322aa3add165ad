from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.commands import console
from id2core.store import storage
from tests.commands import call
from tests.conftest import wait_until
from tests.drawing import draw_photos

CALIBRATE = ["calibrate", "--match", "0.1", "--review", "0.5", "--also-weight", "0.5"]


def test_the_demo_finds_its_origins_and_says_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ID2_BATCH_SIZE")  # many pictures are embedded faster by the default
    reads: list[str] = []
    real = storage.read_marked

    def counted(uri: str) -> tuple[bytes, str]:
        reads.append(uri)
        return real(uri)

    monkeypatch.setattr(storage, "read_marked", counted)
    child = call("demo", "--out", tmp_path / "demo")
    assert child.returncode == 0, child.stderr
    assert "Acc " in child.stderr and "of 180 uploads with an origin" in child.stderr
    report = Path(child.stdout.strip())
    assert report == tmp_path / "demo/report.html" and report.stat().st_size > 100_000
    commits = [uri for uri in reads if uri.endswith("_SUCCESS")]
    assert 5 <= len(commits) <= 19, commits
    again = call("demo", "--out", tmp_path / "demo", "--json")
    summary = json.loads(again.stdout)
    assert summary["counts"]["references"] == 200 and summary["counts"]["queries"] == 260
    assert 0.6 < summary["accuracy"] < 0.95 and summary["accuracy_of"] == 180
    kinds = ["all with an origin", "edited copies", "edited translations", "edits", "mini-a", "mini-b"]
    assert [row["kind"] for row in summary["compared"]] == kinds
    rewritten = call("report", tmp_path / "demo", "--max-pairs", 3, "--json")
    assert json.loads(rewritten.stdout)["counts"] == summary["counts"]
    assert report.stat().st_size < 200_000


def test_embed_counts_on_stderr_and_prints_one_object_on_stdout(
    photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    options = ("--images", photos, "--out", tmp_path / "out", "--encoder", tiny_vae)
    child = call("embed", *options, "--json")
    assert child.returncode == 0, child.stderr
    summary = json.loads(child.stdout)
    assert (summary["embedded"], summary["rejected"]) == (12, 0)
    assert "embed: 12/12 images" in child.stderr
    mixed = call("embed", *options[:-1], "mini")
    assert mixed.returncode == 1
    assert "error:" in mixed.stderr and "write to another --out" in mixed.stderr
    assert "Traceback" not in mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["scan", "--reference", "/nowhere", "--queries", "/nowhere", "--out", "OUT"], 1, "no such folder"),
        (["embed", "--images", "s3://x/y", "--out", "OUT"], 1, "gs://"),
        (["embed", "--images", "PHOTOS", "--out", "OUT", "--encoder", "nothing"], 1, "short name"),
        (["scan", "--reference", "PHOTOS", "--queries", "/nowhere", "--out", "OUT"], 1, "no such folder"),
        (["embed", "--images", "PHOTOS", "--out", "/etc/hosts"], 1, "/etc/hosts"),
        (["embed", "--images", "PHOTOS"], 2, "Missing option"),
        (["embed", "--images", "a.jpg", "b.jpg", "--out", "OUT"], 2, "unexpected"),
        (
            ["embed", "--images", "PHOTOS", "--out", "OUT", "--", "--direct_num_wrokers=2"],
            2,
            "no Beam option",
        ),
        (["embed", "--images", "PHOTOS", "--out", "OUT", "--speed", "9"], 2, "No such option"),
        (["scan", "--reference", "/a", "--queries", "/b", "--out", "OUT", "--top-k", "0"], 2, "top-k"),
        (
            ["nightly", "--reference", "/nowhere", "--queries", "/a", "--out", "OUT", "--no-canary"],
            1,
            "folder",
        ),
        (["nightly", "--reference", "dataset:x", "--queries", "/a", "--out", "OUT"], 2, "a source of images"),
        (["scan", "--reference", "EMPTY", "--queries", "PHOTOS", "--out", "OUT"], 1, "is empty"),
        (["scan", "--reference", "PHOTOS", "--queries", "PHOTOS", "--out", "PHOTOS/out"], 2, "is inside"),
        (
            [*CALIBRATE, "--reference", "PHOTOS", "--queries", "PHOTOS", "--out", "OUT"],
            2,
            "leave --also-weight out",
        ),
    ],
)
def test_what_went_wrong_is_said_in_a_line_and_in_the_exit_code(
    arguments: list[str], code: int, hint: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "OUT": tmp_path / "out",
        "EMPTY": tmp_path / "empty",
        "PHOTOS/out": photos / "out",
        "PHOTOS": photos,
    }
    child = call(*(places.get(argument, argument) for argument in arguments))
    assert child.returncode == code and hint in " ".join(child.stderr.replace("│", " ").split()), child.stderr
    assert "Traceback" not in child.stderr and not child.stdout
    assert not (tmp_path / "out").exists()


def test_a_rate_that_is_none_but_for_rounding_is_shown_as_0() -> None:
    assert console.interval(0.95, 2.7e-304, 0.03654) == "95% interval 0% to 3.65%"
    assert [console.percent(share) for share in (1e-6, 0.02, 1)] == ["0.0001%", "2%", "100%"]


def test_a_bug_and_a_mistake_are_shown_differently(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from id2.jobs import embed

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("not the user's fault")

    monkeypatch.setattr(embed, "recorded", broken)
    child = call("embed", "--images", photos, "--out", tmp_path / "out")
    assert child.returncode == 1 and "ValueError: not the user's fault (ID2_DEBUG=1 shows the traceback)" in (
        " ".join(child.stderr.split())
    )
    with pytest.raises(ValueError, match="fault"):
        call("embed", "--images", photos, "--out", tmp_path / "out", environment={"ID2_DEBUG": "1"})


def test_an_interrupted_command_says_how_to_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from id2.jobs import embed

    def interrupted(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as Beam does
            raise RuntimeError("KeyboardInterrupt [while running 'EmbedParts/Make']") from error

    monkeypatch.setattr(embed, "embed_images", interrupted)
    child = call("embed", "--images", photos, "--out", tmp_path / "out")
    assert child.returncode == 130 and "run the same command again" in child.stderr
    assert "Traceback" not in child.stderr and "error" not in child.stderr


def test_version_is_that_of_the_package() -> None:
    assert call("--version").stdout == f"id2 {importlib.metadata.version('id2')}\n"


def test_doctor_shows_a_wrong_setting() -> None:
    child = call("doctor", environment={"ID2_TOP_K": "none"})
    assert child.returncode == 0 and "ID2_TOP_K is 'none'" in child.stdout


def test_a_prefect_server_that_does_not_answer_is_named(
    photos: Path, tmp_path: Path, id2_command: str
) -> None:
    server = "http://127.0.0.1:9/api"
    child = subprocess.run(
        [id2_command, "embed", "--images", photos, "--out", tmp_path / "out"],
        env=os.environ | {"PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 1 and f"no Prefect server answers at PREFECT_API_URL={server}" in child.stderr


def test_doctor_knows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(call("doctor", "--json").stdout)
    assert facts["versions"]["torch"] and facts["devices"]["cores"] == os.cpu_count()
    assert facts["hub"] == "offline by HF_HUB_OFFLINE" and facts["settings"]["encoder"] == "mini"


WITHOUT = """
import sys
from tests.commands import call
for arguments in {commands!r}:
    child = call(*arguments)
    assert child.returncode == 0, (arguments, child.stderr)
    loaded = {modules!r} & set(sys.modules)
    assert not loaded, (arguments, loaded)
"""


def test_what_needs_no_torch_beam_or_prefect_loads_none(tiny_vae: str, tmp_path: Path) -> None:
    draw_photos(tmp_path / "references", 6)
    draw_photos(tmp_path / "uploads", 3, first_seed=2)
    places = ["--reference", str(tmp_path / "references"), "--queries", str(tmp_path / "uploads")]
    out = str(tmp_path / "out")
    images = ["scan", *places, "--out", out, "--encoder", tiny_vae]
    assert call(*images).returncode == 0
    sides = ["--reference", f"dataset:{out}/reference", "--queries", f"dataset:{out}/queries"]
    data_sets = ["scan", *sides, "--out", str(tmp_path / "again")]
    assert call(*data_sets).returncode == 0
    embed = ["embed", "--images", places[1], "--out", str(tmp_path / "id2"), "--encoder", tiny_vae]
    assert call(*embed).returncode == 0
    commands = [data_sets, images, embed, ["report", out], ["doctor"]]
    code = WITHOUT.format(commands=commands, modules={"torch", "apache_beam", "prefect", "diffusers"})
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]


REFUSED = """
import sys
from tests.commands import call
for arguments, hint in {cases!r}:
    child = call(*arguments)
    assert child.returncode != 0 and hint in " ".join(child.stderr.split()), (arguments, child.stderr)
loaded = {{"torch", "apache_beam", "prefect", "diffusers"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_what_is_missing_is_refused_before_torch_or_beam_is_loaded(photos: Path, tmp_path: Path) -> None:
    images, out = str(photos), str(tmp_path / "out")
    translate = ["translate", "--images", images, "--model", "mini-a", "--out", out]
    train = ["train", "--embeddings", images, "--translations", images, "--out", out]
    cases = [
        ([*translate, "--prompts", f"{out}.txt"], "no such file"),
        (translate, "no captions at"),
        ([*translate, "--prompts", "endpoint"], "set ID2_PROMPT_BASE_URL"),
        (train, "has no _SUCCESS"),
        (["finetune", "--originals", images, "--translations", images, "--out", out], "has no _SUCCESS"),
        (["experiment", "t3", "--data", images, "--out", out], "has no bench.json"),
        (["report", images], "has no _SUCCESS"),
        (["scan", "--reference", images, "--queries", f"{out}/none", "--out", out], "no such folder"),
    ]
    code = REFUSED.format(cases=cases)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]


def test_a_scan_without_readable_references_warns_and_says_what_to_write(
    photos: Path, tmp_path: Path
) -> None:
    references = tmp_path / "made"
    (references / "embeddings").mkdir(parents=True)
    (references / "embeddings/_SUCCESS").write_text("{}")
    (tmp_path / "truth.csv").write_text("query_uri,reference_uri\nnot-there.jpg,\n")
    given = ("--reference", references, "--queries", photos, "--truth", tmp_path / "truth.csv")
    options = ("--encoder", "pdq", "--transform", "none", "--out", tmp_path / "out")
    for _ in range(2):  # the second time, Beam has set up logging
        child = call("scan", *given, *options)
        assert child.returncode == 0, child.stderr
        assert child.stderr.count("has a file embeddings/_SUCCESS") == 1
        assert f"warning: {references} has a file" in child.stderr
        assert f"write dataset:{references}. Otherwise" in child.stderr
        assert "1 files rejected (1 not_an_image)" in child.stderr
        assert "warning: no reference could be read" in child.stderr
        assert "calibration: none" in child.stderr
        assert "no Acc: the truth file names no upload of this scan" in child.stderr
        assert "names 1 upload that is not among the uploads" in child.stderr


def test_ctrl_c_before_a_command_runs_shows_no_traceback(tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    slow = f"import pathlib, time\npathlib.Path({str(loading)!r}).touch()\ntime.sleep(600)\n"
    (tmp_path / "typer.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "doctor"],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(loading.exists, 600, "the import")
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (None, b"")
    assert process.returncode == -signal.SIGINT
