"""Every job on the cluster: all data sets are those of one process, but for run ids and times."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster import trials
from tests.cluster.flink import FlinkCluster
from tests.cluster.spark import SparkEngine
from tests.drawing import draw_photos
from tests.fork_server import ForkServer

pytestmark = pytest.mark.cluster
DEMO = Path(__file__).parents[2] / "id2core/data/demo"
PDQ = ["--encoder", "pdq", "--transform", "none"]


class Pair:
    """Two `--out`s: one process's, and an engine's."""

    def __init__(self, server: ForkServer, folder: Path, runner: list[str]) -> None:
        self._server, self._folder, self._runner = server, folder, runner

    def out(self, name: str, engine: str = "alone") -> Path:
        return self._folder / f"{name}-{engine}"

    def run(self, name: str, *arguments: object) -> Path:
        """Run a command in both places and compare; return the `--out` of one process."""
        for engine, runner in (("alone", []), ("engine", self._runner)):
            out = self.out(name, engine)
            log = self._folder / f"{name}-{engine}.log"
            assert self._server.call(*arguments, "--out", out, *runner, log=log) == 0, log.read_text()
        alone = trials.everything(self.out(name))
        assert alone == trials.everything(self.out(name, "engine"))
        assert alone
        return self.out(name)


@pytest.fixture(scope="module")
def pair(cluster: FlinkCluster, server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(server, tmp_path_factory.mktemp("pair"), trials.on(cluster.arguments))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some originals of the demo, and a file that is none."""
    folder = tmp_path_factory.mktemp("originals") / "originals"
    folder.mkdir()
    for picture in sorted((DEMO / "references").iterdir())[:2]:
        shutil.copy(picture, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


@pytest.fixture(scope="module")
def translated(pair: Pair, originals: Path) -> Path:
    options = ["--model", "mini-a", "--prompts", "empty", "--steps", 2, "--part-size", 1]
    return pair.run("translate", "translate", "--images", originals, *options)


@pytest.fixture(scope="module")
def scanned(pair: Pair, originals: Path, translated: Path) -> Path:
    uploads = translated / "pictures"
    places = ["--reference", originals, "--queries", uploads]
    return pair.run("scan", "scan", *places, "--calibration", "auto")


def test_translations(translated: Path) -> None:
    assert len(trials.content(translated / "translations")) == 2


def test_a_scan_with_verdicts(scanned: Path) -> None:
    assert all("'verdict': None" not in row for row in trials.content(scanned / "matches"))


def test_a_reprojection(pair: Pair, scanned: Path) -> None:
    pair.run("scan", "reproject", "--transform", "none")
    assert list((scanned / "reprojected").rglob("*.parquet"))


def test_two_nights(pair: Pair, cluster: FlinkCluster, tmp_path: Path) -> None:
    originals = draw_photos(tmp_path / "originals", 12)
    draw_photos(tmp_path / "1", 9, first_seed=6)
    draw_photos(tmp_path / "2", 7, first_seed=12)
    # References and uploads are embedded by one job; the second night has a source more, and a back-scan.
    for nights, jobs in ((["1"], 2), (["1", "2"], 4)):
        before = len(cluster.jobs())
        queries = [word for night in nights for word in ("--queries", tmp_path / night)]
        pair.run("nightly", "nightly", "--reference", originals, *queries, *PDQ, "--no-canary")
        assert len(cluster.jobs()) - before == jobs
        draw_photos(originals, 2, first_seed=20)


def test_a_scan_on_spark(server: ForkServer, spark: SparkEngine, tmp_path: Path) -> None:
    corpora = {name: draw_photos(tmp_path / name, 12, first_seed=8 * i) for i, name in enumerate("ab")}
    places = ["--reference", corpora["a"], "--queries", corpora["b"]]
    pair = Pair(server, tmp_path, trials.on(spark.arguments))
    pair.run("embed", "embed", "--images", corpora["a"], *PDQ, "--part-size", 3)
    pair.run("scan", "scan", *places, *PDQ)
