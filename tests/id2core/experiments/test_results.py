"""What experiments write: Parquet as measured, Markdown as read, plots that do not change by themselves."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from id2core import environment
from id2core.errors import PlotError
from id2core.evaluation.metrics import Measure
from id2core.experiments import plots, results
from id2core.experiments.plots import Bars, Histograms, Lines, Panels
from id2core.experiments.results import Column, Provenance, Result, Skipped
from id2core.experiments.theory import Spread

MACHINE = {"cpu": "A CPU", "cores": 2, "memory_gib": 7.5, "gpus": [], "encoder_device": "cpu"}
PROVENANCE = Provenance("2026-01-02", "commit 0123456789ab", MACHINE, {"torch": "2"})
ROWS: list[dict[str, Any]] = [
    {"kind": "ours", "method": "W", "map": Measure(0.8884, 0.879, 0.896), "pairs": 12345},
    {"kind": "ours", "method": "raw | latents", "map": Measure(0.5), "pairs": 7, "seconds": 0.00123},
]
COLUMNS = (
    Column("kind", merge=True),
    Column("method", "Method"),
    Column("map", "mAP, %", percent=True),
    Column("pairs"),
    Column("seconds"),
)


def result(**more: Any) -> Result:
    given: dict[str, Any] = {"rows": ROWS, "columns": COLUMNS, "data": "12 pictures.", "seconds": 600, **more}
    return Result(**given)


def written(outcome: Result | Skipped, folder: Path) -> str:
    return results.write(outcome, "t3", "Table 3: transforms", folder, PROVENANCE)


def table_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_result_becomes_three_files(tmp_path: Path) -> None:
    bars = Bars(["W", "raw"], {"mAP": [88.8, 50.0]}, "mAP, %")
    outcome = result(plot=bars, notes=["Not the paper's data."], facts={"seed": 3})
    text = written(outcome, tmp_path / "new")
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {"t3.md", "t3.png", "t3.parquet"}
    assert text == (tmp_path / "new/t3.md").read_text()
    assert table_of(text) == [
        "| kind | Method | mAP, % | pairs | seconds |",
        "|---|---|---:|---:|---:|",
        "| ours | W | 88.8 ± 0.9 | 12,345 | – |",
        "|  | raw \\| latents | 50.0 | 7 | 0.00123 |",
    ]
    for part in (
        "# Table 3: transforms\n",
        "![Table 3: transforms](t3.png)",
        "12 pictures.",
        "- Not the paper's data.",
        "± is half of the 95% interval",
        "Measured 2026-01-02, commit 0123456789ab, A CPU, 2 cores, 7.5 GiB, no GPU, device cpu, in 10 min.",
    ):
        assert part in text
    table = pq.read_table(tmp_path / "new/t3.parquet")
    assert table["map_low"].to_pylist() == [0.879, None] and table["map"].to_pylist() == [0.8884, 0.5]
    facts = json.loads(table.schema.metadata[b"id2.experiment"])
    assert facts["name"] == "t3" and facts["title"] == "Table 3: transforms"
    assert facts["facts"] == {"seed": 3} and facts["data"] == "12 pictures." and facts["seconds"] == 600


def test_figures_are_rounded_to_what_they_are_worth(tmp_path: Path) -> None:
    spread = Spread(10, 0.99579012, 0.0000372, ())
    rows = [{"cosine": spread, "many": 123456.7, "few": 1.6e-10, "none": float("nan"), "on": True}]
    text = written(result(rows=rows, columns=()), tmp_path)
    assert table_of(text)[::2] == [
        "| cosine | many | few | none | on |",
        "| 0.995790 ± 0.000037 | 123,457 | 1.6e-10 | – | yes |",
    ]
    assert "± is the standard deviation" in text
    given = pa.table({"x": [1.23456]})
    text = written(result(rows=given, columns=[Column("x", digits=4)]), tmp_path)
    assert table_of(text)[2:] == ["| 1.2346 |"]


def test_what_cannot_be_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'acc'"):
        result(columns=[Column("acc")])
    with pytest.raises(ValueError, match="no rows"):
        result(rows=[], columns=())
    with pytest.raises(ValueError, match="cannot name files"):
        results.write(result(), "../t3", "", tmp_path, PROVENANCE)


def test_a_skip_says_why_and_never_replaces_figures(tmp_path: Path) -> None:
    skipped = Skipped("SSCD's weights are not there.")
    head = "# Table 3: transforms\n\n"
    assert written(skipped, tmp_path) == f"{head}Not run here: SSCD's weights are not there.\n"
    measured = written(result(), tmp_path)
    assert written(skipped, tmp_path) == measured == (tmp_path / "t3.md").read_text()


def test_all_experiments_stand_on_one_page_with_links_that_lead_somewhere(tmp_path: Path) -> None:
    folder, page = tmp_path / "docs/results", tmp_path / "docs/results.md"
    written(result(plot=Bars(["a"], {"mAP": [1.0]}, "mAP")), folder)
    results.write(Skipped("no hub"), "t4", "Table 4: VAEs", folder)
    order = {"t4": "Table 4: VAEs", "t3": "Table 3", "f7": "Figure 7: attacks"}
    text = results.collect(folder, order, page)
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == ["# Results", "## Table 4: VAEs", "## Table 3: transforms", "## Figure 7: attacks"]
    assert "Not run here: no hub." in text
    assert "Not run here: `id2 experiment f7` was not started." in text
    assert "1 of 3 experiments have run here. Missing: `t4`, `f7`." in text
    for link in ("results/t3.png", "results/t3.parquet"):
        assert f"]({link})" in text and (page.parent / link).is_file()
    # A plot that an experiment no longer has does not stay behind.
    written(result(), folder)
    assert not (folder / "t3.png").exists()


def test_without_matplotlib_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = written(result(plot=Bars(["a"], {"mAP": [1.0]}, "mAP")), tmp_path)
    assert "id2[experiments]" in text and ".png" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"t3.md", "t3.parquet"}


def test_plots_are_the_same_bytes_and_show_their_values() -> None:
    x = np.linspace(0, 1, 50).tolist()
    kinds: list[tuple[plots.Plot, plots.Plot]] = [
        (Bars(["a", "b"], {"s": [1.0, None]}, "y"), Bars(["a", "b"], {"s": [1.0, 2.0]}, "y")),
        (
            Bars([f"method {i}" for i in range(20)], {"s": x[:20], "t": x[:20]}, "y"),
            Bars([f"method {i}" for i in range(20)], {"s": x[:20], "t": x[:20]}, "y", {"s": [0.0] * 20}),
        ),
        (
            Lines([64, 128], {"s": [1.0, 2.0]}, "x", "y", {"s": [0.5, 1.5]}, {"s": [1.5, 2.5]}),
            Lines(["64", "128"], {"s": [1.0, None]}, "x", "y"),
        ),
        (Histograms({"true": x, "false": x[:20]}, "score"), Histograms({"true": x, "false": []}, "score")),
    ]
    drawn = []
    for first, second in kinds:
        drawn += [plots.draw(first, "title"), plots.draw(second, "title")]
        assert plots.draw(first, "title") == drawn[-2]
    drawn.append(plots.draw(Panels({"a": kinds[2][0], "b": kinds[2][0], "c": kinds[2][0]}), "title"))
    assert len(set(drawn)) == len(drawn)
    for png in drawn:
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG" and image.width == 1050
        assert "Software" not in image.info and "Creation Time" not in image.info


def test_plots_of_nothing_are_refused() -> None:
    with pytest.raises(PlotError, match="3 values for 2 places"):
        Bars(["a", "b"], {"s": [1.0, 2.0, 3.0]}, "y")
    for empty in (lambda: Bars([], {"s": []}, "y"), lambda: Histograms({"s": []}, "x")):
        with pytest.raises(PlotError, match="nothing to plot"):
            empty()


def test_the_code_is_named_by_its_own_checkout_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
        command = ("git", "-C", str(tmp_path), *who, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment.commit(tmp_path).startswith("version ")
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert environment.commit(tmp_path) == f"commit {git('rev-parse', '--short=12', 'HEAD')}"
    (tmp_path / "file").write_text("2")
    assert environment.commit(tmp_path).endswith(", changed since")
    (tmp_path / "inner").mkdir()
    assert environment.commit(tmp_path / "inner").startswith("version ")
    assert str(Provenance.here()).count(environment.commit()) == 1
