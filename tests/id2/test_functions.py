"""The door: functions of `id2` as a notebook calls them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import id2
from id2.options import flag_of, note, options_of
from id2core.errors import OptionError, StorageError
from id2core.runs.progress import Counts
from tests.drawing import draw_photos

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def folder(tmp_path: Path, tiny_vae: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `originals` and `uploads`, and a small encoder as the default."""
    draw_photos(tmp_path / "originals", 6)
    draw_photos(tmp_path / "uploads", 3, first_seed=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ID2_ENCODER", tiny_vae)
    return tmp_path


def test_the_session_of_the_readme_ends_in_matches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [session] = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(session.strip().splitlines()) <= 10
    names: dict[str, object] = {}
    exec(session, names)
    printed = capsys.readouterr().out
    assert "queries=3" in printed and printed.count("/originals/") == 5
    assert names["summary"].counts.matches == 18  # type: ignore[attr-defined]


def test_importing_id2_loads_nothing_heavy_and_names_what_there_is() -> None:
    heavy = {"torch", "apache_beam", "prefect", "pyarrow"}
    code = f"import id2, sys; print(list({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert 20 <= len(id2.__all__) <= 35 and all(getattr(id2, name) for name in id2.__all__)


def test_options_are_arguments_with_their_help() -> None:
    parameters = inspect.signature(id2.scan).parameters
    assert parameters["top_k"].default is None and parameters["reference"].default is inspect.Parameter.empty
    assert "reference: Protected originals" in (id2.scan.__doc__ or "")
    assert inspect.signature(id2.train).parameters["epochs"].default == 25


def test_progress_is_reported_to_the_callback_and_only_while_the_call_lasts(folder: Path) -> None:
    reports: list[tuple[str, Counts]] = []
    summary = id2.embed(
        images="originals", out="o", progress=lambda stage, counts: reports.append((stage, counts))
    )
    assert isinstance(summary, id2.EmbedSummary) and summary.embedded == 6
    assert {stage for stage, _ in reports} == {"embed"} and reports[-1][1].completed == 6
    count = len(reports)
    id2.embed(images="uploads", out="u")
    assert len(reports) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "originals"}, "out is missing"),
        ({"images": "originals", "out": "o", "speed": 9}, "no speed"),
        ({"images": "originals", "out": "o", "part_size": 0}, "part_size is 0"),
        ({"images": "originals", "out": "originals/o"}, "is inside --images"),
        ({"images": ["originals"], "out": "o"}, r"images is \['originals'\]: Input should be a valid string"),
        ({"images": "originals", "out": "o", "beam_arguments": ["fast"]}, "unexpected 'fast'"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        id2.embed(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "needed"),
    [(id2.scan, "also"), (id2.nightly, "also"), (id2.calibrate, "also"), (id2.judge, "also_calibration")],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_option_that_goes_with_another_is_refused_without_it(
    function: id2.Function[..., Any], needed: str
) -> None:
    """Also where it has the value that holds without it."""
    options = dict(options_of(function.request))
    required = {name: field.examples[0] for name, field in options.items() if field.is_required()}
    defaults = {"joint_calibration": "union", "also_weight": 0.5}
    alone = {name for name, field in options.items() if note(field, "needs") == needed}
    assert "joint_calibration" in alone or "joint_out" in alone
    if needed == "also":
        assert alone >= {name for name in options if name.startswith(("also_", "joint_"))}
    for name in alone:
        given = required | {name: defaults.get(name, "file")}
        with pytest.raises(OptionError, match=f"{flag_of(name)} goes with {flag_of(needed)}: give"):
            function(**given)


def test_options_are_given_by_name(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"by name: id2.report\(out=…\)"):
        id2.report("results")  # type: ignore[call-arg, arg-type]


def test_places_may_be_paths(folder: Path) -> None:
    assert id2.embed(images=Path("originals"), out=folder / "o").listed == 6  # type: ignore[arg-type,union-attr]


def test_results_below_a_linked_folder_are_not_taken_for_images(folder: Path) -> None:
    (folder / "originals/more").symlink_to(folder / "uploads")
    for _ in range(2):
        assert id2.embed(images="originals", out="uploads/o").listed == 9  # type: ignore[union-attr]


def test_results_may_lie_below_a_corpus_that_is_embedded(folder: Path) -> None:
    id2.embed(images="originals", out="corpus")
    summary = id2.scan(reference="dataset:corpus", queries="uploads", out="corpus/scan")
    assert summary.counts.references == 6


def test_a_place_that_is_not_there_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        id2.embed(images="nowhere", out="o")
    assert not (folder / "o").exists()
