"""Runs that are killed, disturbed, and damaged: after one more run, all is as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from id2core.encoders.preprocess import Preprocess
from id2core.reports import page
from id2core.runs import records
from id2core.runs.records import Status
from id2core.store import storage
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord
from id2core.verdicts import calibration
from tests.calibrations import tailed
from tests.drawing import scene
from tests.fork_server import ForkServer

# What differs between two runs that did the same work.
OF_A_RUN = {"run_id", "embedded_at", "scanned_at", "searched_at", "added_at", "requested_at", "segment"}
KILLED = -9
# Columns that name a row, of every data set.
GLOBBED = ["uri", "generation", "query_uri", "reference_uri", "rank", "run_id", "status", "corpus", "segment"]
GLOBBED += ["channel", "encoder_id", "query_from", "query_to"]  # of matches and ledger
GLOBBED += ["code", "model"]  # of an index
PICTURES = ["image_id", "query_id", "reference_id"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    environment = {
        "ID2_LEFTOVER_HOURS": "0",
        "ID2_PART_SIZE": "5",
        "ID2_RECORD_SECONDS": "1",
        "ID2_ENCODER": "toy:8",
        "ID2_TRANSFORM": "none",
        "ID2_CALIBRATION": "none",
        "ID2_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    with ForkServer(environment) as server:
        yield server


def draw(folder: Path, number: int, seed: int) -> None:
    scene(seed, (24, 18)).save(folder / f"p{number:02d}.png")


def images(folder: Path, first_seed: int = 0, number: int = 8) -> Path:
    """Some pictures and a file that is none."""
    folder.mkdir()
    for i in range(number):
        draw(folder, i, first_seed + i)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def rows(uri: Path) -> list[dict[str, Any]]:
    """Everything that a data set holds, but for runs and times; no row twice."""
    tables = [table.to_pylist() for table in Dataset.open(str(uri)).tables()]
    held = [{k: v for k, v in row.items() if k not in OF_A_RUN} for table in tables for row in table]
    return sorted(held, key=repr)


def globbed(folder: Path) -> list[str]:
    """Rows that a plain glob of a data set sees, vectors aside; none twice."""
    tables = [pq.ParquetFile(path).read(columns=GLOBBED) for path in folder.rglob("*.parquet")]
    held = sorted(repr(row) for table in tables for row in table.to_pylist())
    assert len(set(held)) == len(held), folder
    return held


def listed(folder: Path) -> list[str]:
    """The same rows by the commit; none where there is no commit."""
    dataset = Dataset.find(str(folder))
    tables = [dataset.read_file(file) for file in dataset.files] if dataset else []
    every = [table.select([n for n in GLOBBED if n in table.column_names]) for table in tables]
    return sorted(repr(row) for table in every for row in table.to_pylist())


def names(out: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def committed(out: Path, *datasets: str) -> set[str]:
    """What data sets consist of; of one without a commit, nothing."""
    found = {name: Dataset.find(storage.join(str(out), name)) for name in (*datasets, "runs")}
    held = {name: dataset.commit for name, dataset in found.items() if dataset}
    files = {f"{name}/{file.name}" for name, commit in held.items() for file in commit.files}
    removals = {
        str(Path(name).parent / "removals" / file.name)
        for name, commit in held.items()
        for file in commit.removals
    }
    return files | removals | {f"{name}/_SUCCESS" for name in held}


def first_searches(out: Path) -> tuple[int | None, int | None]:
    """What the last run counts of uploads that were searched for the first time: all, and with a match."""
    last = max(records.read(str(out)), key=lambda run: run.run_id)
    return last.first_searched, last.first_matched


class Case:
    """A command that is killed again and again, and what must be there after one more run."""

    datasets: tuple[str, ...] = ("embeddings", "rejects")
    extra: Set[str] = frozenset()
    # Tables whose rows depend on how many runs did the work → the column whose sum does not.
    totals: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self.server, self.folder = server, folder

    def prepare(self, out: Path) -> None:
        """Make what is there before the command; nothing by default."""

    def arguments(self, out: Path) -> list[object]:
        return ["embed", "--images", self.folder / "images", "--out", out]

    def call(self, out: Path, kill_at: int | None = None) -> int:
        return self.server.call(*self.arguments(out), kill_at=kill_at, log=out.with_suffix(".log"))

    def changes(self, out: Path) -> int:
        """Return the changes of the store that the call for `out` made, which ended by itself."""
        return self.server.changes(out.with_suffix(".log"))

    def held(self, out: Path) -> dict[str, list[str]]:
        """Return the committed rows of each data set."""
        return {name: listed(out / name) for name in self.datasets}

    def check_globs(self, out: Path, before: dict[str, list[str]]) -> None:
        """A glob sees rows of the commit before or of the present one, whenever the run was killed."""
        for name in self.datasets:
            seen = set(globbed(out / name))
            assert seen <= set(before[name]) or seen <= set(listed(out / name)), name
        run_ids = [row.split("'run_id': ")[1].split(",")[0] for row in globbed(out / "runs")]
        assert len(set(run_ids)) == len(run_ids)

    def check(self, out: Path, clean: Path) -> None:
        for name in self.datasets:
            held, expected = rows(out / name), rows(clean / name)
            if column := self.totals.get(name):
                assert sum(row[column] for row in held) == sum(row[column] for row in expected), name
            else:
                assert held == expected, name
        for name in (*self.datasets, "runs"):
            assert globbed(out / name) == listed(out / name), name
        assert names(out) == committed(out, *self.datasets) | self.extra


class FirstEmbed(Case):
    """Nothing is there."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        images(folder / "images")


class ChangedEmbed(FirstEmbed):
    """A run has ended; then a file came, one was changed, and one is gone: files are written anew."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        self._before = folder / "before"
        assert self.call(self._before) == 0
        draw(folder / "images", 8, 100)
        draw(folder / "images", 2, 101)
        (folder / "images" / "p01.png").unlink()

    def prepare(self, out: Path) -> None:
        shutil.copytree(self._before, out)


class Scan(Case):
    """Nothing is there."""

    datasets = (
        "reference/embeddings",
        "reference/rejects",
        "queries/embeddings",
        "queries/rejects",
        "matches",
        "ledger",
        "segments",
    )
    references = 8
    extra = frozenset({"report.html", "summary.json"})
    # What a killed run embedded is a segment of its own.
    totals: ClassVar[Mapping[str, str]] = {"ledger": "pairs", "segments": "rows"}

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        images(folder / "references", number=self.references)
        images(folder / "uploads", first_seed=4)

    def arguments(self, out: Path) -> list[object]:
        places = ["--reference", self.folder / "references", "--queries", self.folder / "uploads"]
        return ["scan", *places, "--top-k", 2, "--out", out]


class Search(Scan):
    """All is embedded, and nothing searched."""

    totals: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        self._before = folder / "before"
        assert server.call(*self.arguments(self._before), log=folder / "before.log") == 0
        for name in ("matches", "ledger", "segments"):
            shutil.rmtree(self._before / name)

    def prepare(self, out: Path) -> None:
        shutil.copytree(self._before, out)


class IndexedSearch(Search):
    """All is embedded, and neither indexed nor searched."""

    datasets = (*Search.datasets, "reference/index")
    references = 40  # a list is trained on 39

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        shutil.rmtree(self._before / "reference/index")

    def arguments(self, out: Path) -> list[object]:
        return [*super().arguments(out), "--index", "IVF1,RaBitQ"]


class Takedown(Scan):
    """All is searched; then a reference that is an upload, too, is taken down."""

    datasets = (*Scan.datasets, "takedowns")
    totals: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        self._before = folder / "before"
        assert server.call(*self.arguments(self._before), log=folder / "before.log") == 0
        self._gone = hashlib.sha256((folder / "references" / "p05.png").read_bytes()).hexdigest()

    def prepare(self, out: Path) -> None:
        shutil.copytree(self._before, out)

    def call(self, out: Path, kill_at: int | None = None) -> int:
        arguments = ["takedown", "--out", out, "--image-id", self._gone]
        return self.server.call(*arguments, kill_at=kill_at, log=out.with_suffix(".log"))

    def check(self, out: Path, clean: Path) -> None:
        super().check(out, clean)
        for path in out.rglob("*.parquet"):
            if path.parent.name not in ("takedowns", "removals", "runs"):
                assert self._gone not in str(pq.ParquetFile(path).read(columns=PICTURES).to_pylist()), path


class TwoChannels(Scan):
    """A night by two encoders after another: an upload and a reference are new, and an upload is gone."""

    datasets = (
        *Scan.datasets,
        *(
            f"channels/pdq/{side}/{name}"
            for side in ("reference", "queries")
            for name in ("embeddings", "rejects")
        ),
    )

    def __init__(self, server: ForkServer, folder: Path) -> None:
        super().__init__(server, folder)
        tailed(0.8, 0.01, "pdq").save(str(folder / "pdq.json"))
        ids = {"encoder_id": "toy-000000000000", "preprocess_id": Preprocess(8).preprocess_id}
        first = calibration.load(str(folder / "pdq.json")).model_copy(update=ids)
        first.save(str(folder / "toy.json"))
        self._before = folder / "before"
        assert self.call(self._before) == 0, (folder / "before.log").read_text()
        self.extra = Scan.extra | {name for name in names(self._before) if name.startswith("calibrations/")}
        draw(folder / "uploads", 8, 20)
        draw(folder / "references", 9, 30)
        (folder / "uploads" / "p01.png").unlink()

    def prepare(self, out: Path) -> None:
        shutil.copytree(self._before, out)

    def arguments(self, out: Path) -> list[object]:
        _, *arguments = super().arguments(out)
        own = ["--calibration", self.folder / "toy.json", "--no-canary", "--keep", "all"]
        return ["nightly", *arguments, *own, "--also", "pdq", "--also-calibration", self.folder / "pdq.json"]

    def check(self, out: Path, clean: Path) -> None:
        super().check(out, clean)
        # The match rate of a night is that of both channels, or there is none.
        assert first_searches(out) in (first_searches(clean), (0, 0))
        # What a killed night has found is in the report of the one that resumes it.
        _, night, *_ = records.read(str(out))
        if night.status is not Status.DONE or len(records.read(str(out))) == 2:
            resumed, whole = (page.read_summary(str(place)) for place in (out, clean))
            assert resumed and whole
            assert (resumed.counts, resumed.verdicts, resumed.channels) == (
                whole.counts,
                whole.verdicts,
                whole.channels,
            )


SLOW = pytest.mark.slow


CASES = (FirstEmbed, ChangedEmbed, Scan, Search, IndexedSearch, TwoChannels, Takedown)


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (ChangedEmbed, 16),
        (TwoChannels, 90),
        (Search, 24),
        (IndexedSearch, 45),
        *(pytest.param(case, 1, marks=SLOW) for case in CASES),
    ],
)
def test_a_kill_at_any_change_of_the_store_leaves_nothing_behind(
    make: type[Case], step: int, server: ForkServer, tmp_path: Path
) -> None:
    """Killed in place of every change, or of some of them where minutes count."""
    case = make(server, tmp_path)
    clean = tmp_path / "clean"
    case.prepare(clean)
    assert case.call(clean) == 0

    def kill(number: int) -> bool:
        """Kill one run, and run again; return whether it was killed: a run may make a change less."""
        out = tmp_path / f"out{number}"
        case.prepare(out)
        before = case.held(out)
        code = case.call(out, kill_at=number)
        assert code in (KILLED, 0)
        case.check_globs(out, before)
        assert code == 0 or case.call(out) == 0, out.with_suffix(".log").read_text()
        case.check(out, clean)
        shutil.rmtree(out)
        return code == KILLED

    numbers = range(2 if step > 1 else 1, case.changes(clean) + 1, step)
    killed = sum(in_order(numbers, kill, ahead=2))
    assert killed * step > 12


def test_a_kill_loses_little_of_a_slow_part(server: ForkServer, tmp_path: Path) -> None:
    folder, out, clean, log = (tmp_path / name for name in ("images", "out", "clean", "log"))
    images(folder)
    for number in range(8, 20):
        draw(folder, number, number)
    slow = ["embed", "--images", folder, "--out", out, "--encoder", "toy:8@0.4", "--part-size", 100]
    process = server.start(*slow, log=log)
    while len(list((out / "_staging/parts").glob("*.json"))) < 2:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    assert server.wait(process) == KILLED
    assert server.call(*slow, log=log) == 0, log.read_text()
    by_run = Counter(
        r for t in Dataset.open(str(out / "embeddings")).tables() for r in t["run_id"].to_pylist()
    )
    killed, resumed = sorted(by_run)
    assert by_run[killed] >= 4 and by_run[resumed] >= 1 and by_run.total() == 20
    assert server.call("embed", "--images", folder, "--out", clean, log=log) == 0
    for name in Case.datasets:
        assert rows(out / name) == rows(clean / name)
    assert names(out) == committed(out, *Case.datasets)


class Disturbed:
    """One `--out` that is run into again and again, while its pictures change."""

    def __init__(self, server: ForkServer, folder: Path, seed: int) -> None:
        self.server, self.folder = server, folder
        self.images, self.out = images(folder / "images"), folder / "out"
        self.random = random.Random(seed)
        self.logs: list[Path] = []

    def start(self, kill: bool = False) -> int:
        kill_at = self.random.randint(1, 25) if kill else None
        arguments = ["embed", "--images", self.images, "--out", self.out]
        self.logs.append(self.folder / f"log{len(self.logs)}")
        return self.server.start(*arguments, kill_at=kill_at, log=self.logs[-1])

    def wait(self, process: int, *codes: int) -> None:
        """Wait for a run to end in one of some ways, and never in a bug."""
        code = self.server.wait(process)
        logs = [path.read_text() for path in self.logs[-2:]]
        assert code in codes and not any("Traceback" in log for log in logs), "\n".join([str(code), *logs])

    def change(self) -> None:
        """Add, change or remove a file."""
        number = self.random.randrange(12)
        path = self.images / f"p{number:02d}.png"
        if path.exists() and self.random.random() < 0.5:
            path.unlink()
        else:
            draw(self.images, number, self.random.randrange(10**6))

    def run(self) -> None:
        self.wait(self.start(), 0)
        held = [row["uri"] for name in Case.datasets for row in rows(self.out / name)]
        assert sorted(held) == sorted(str(path) for path in self.images.iterdir())

    def _files(self, name: str) -> tuple[FileRecord, ...]:
        dataset = Dataset.find(str(self.out / name))
        return dataset.files if dataset else ()

    def kill(self) -> None:
        self.wait(self.start(kill=True), KILLED, 0)

    def kill_and_damage(self) -> None:
        """Damage something that a killed run has staged."""
        self.kill()
        # A committed file may still be where it was written: its commit was killed before the moves.
        listed = {Path(name).name for name in committed(self.out, *Case.datasets)}
        staged = sorted(name for name in names(self.out) if Path(name).name not in listed | {"_SUCCESS"})
        if not staged:
            return
        path = self.out / self.random.choice(staged)
        data = bytearray(path.read_bytes())
        if data and self.random.random() < 0.5:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        else:
            del data[len(data) // 2 :]
        path.write_bytes(data)

    def two_at_once(self) -> None:
        first = self.start()
        self.change()
        second = self.start()
        self.wait(first, 0, 1)
        self.wait(second, 0, 1)

    def two_at_once_one_killed(self) -> None:
        first, second = self.start(), self.start(kill=True)
        self.wait(first, 0, 1)
        self.wait(second, KILLED, 0, 1)


FAULTS: list[Callable[[Disturbed], None]] = [
    Disturbed.run,
    Disturbed.kill,
    Disturbed.kill_and_damage,
    Disturbed.two_at_once,
    Disturbed.two_at_once_one_killed,
]


@pytest.mark.parametrize(
    ("seed", "runs"), [(1, 3), *(pytest.param(seed, 20, marks=SLOW) for seed in range(1, 12))]
)
def test_disturbed_runs_end_as_one_clean_run(
    seed: int, runs: int, server: ForkServer, tmp_path: Path
) -> None:
    disturbed = Disturbed(server, tmp_path, seed)
    for _ in range(runs):
        disturbed.change()
        disturbed.random.choice(FAULTS)(disturbed)
    disturbed.run()
    clean = tmp_path / "clean"
    assert server.call("embed", "--images", disturbed.images, "--out", clean, log=tmp_path / "log") == 0
    for name in Case.datasets:
        assert rows(disturbed.out / name) == rows(clean / name)
    assert names(disturbed.out) == committed(disturbed.out, *Case.datasets)
