"""Nights in a row with real commands: additions, removals, returns, broken files, kills, and a skipped night.

Run `python -m benchmarks.nights [--nights 30] [--seed 0] [--out DIR]`; prints one line of JSON.

Drawn pictures come and go as references (a mirror) and as uploads (a folder for each day, read again for two
days). At the end it compares `current` by plain glob with one clean scan, the pairs that were scored with the
pairs that ever stood together, and the bytes on disk with those of the files that count. Nights 3 and the
last add equally much; their work and seconds are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import duckdb

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.runs import ledger, records
from id2core.store.datasets import Dataset
from tests.drawing import scene

# What a night adds where it is compared with another.
EQUAL_UPLOADS, EQUAL_REFERENCES = 6, 2
VIEWS = Path(__file__).parent.parent / "infra/sql/duckdb.sql"
TABLES = ("matches", "verdicts", "ledger", "segments", "runs")
COMMAND = [sys.executable, "-m", "flows"]


@dataclass
class World:
    """The files of a simulated platform, and which pairs have stood together when a night ended.

    Attributes:
        root: holds `originals`, `inbox` and `away`.
        dice: draws the schedule.
        drawn: pictures drawn so far.
        met: (upload, picture) pairs.
    """

    root: Path
    dice: random.Random
    drawn: int = 0
    met: set[tuple[str, str]] = field(default_factory=set)

    def picture(self, path: Path, seed: int | None = None) -> None:
        """Draw a picture; by default one that was never drawn before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.drawn += 1
        scene(self.drawn if seed is None else seed).save(path, quality=90)

    def day(self, night: int, *, equal: bool) -> Path:
        """Let a day pass; return its folder of uploads."""
        folder = self.root / "inbox" / f"{night:02d}"
        uploads = EQUAL_UPLOADS if equal else self.dice.randint(1, 8)
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(uploads):
            copied = self.dice.random() < 0.4
            self.picture(folder / f"{i}.jpg", self.dice.randint(1, max(1, self.drawn)) if copied else None)
        originals = self.root / "originals"
        for i in range(EQUAL_REFERENCES if equal else self.dice.randint(0, 3)):
            self.picture(originals / f"{night:02d}-{i}.jpg")
        if not equal:
            self.disturb(night, folder, originals)
        return folder

    def disturb(self, night: int, folder: Path, originals: Path) -> None:
        """Remove, bring back, repeat and break some files."""
        away = self.root / "away"
        away.mkdir(exist_ok=True)
        for path in sorted(away.iterdir()):
            if self.dice.random() < 0.3:
                path.rename(originals / path.name)
        standing = sorted(originals.glob("*.jpg"))
        for path in self.dice.sample(standing, min(len(standing) - 1, self.dice.randint(0, 2))):
            path.rename(away / path.name)
        if self.dice.random() < 0.3 and standing[0].exists():
            shutil.copy(standing[0], originals / f"again-{night:02d}.jpg")
        if self.dice.random() < 0.4:
            (folder / "broken.jpg").write_bytes(self.dice.randbytes(500))

    def meet(self, out: Path) -> int:
        """Let all that is embedded meet; return how many pairs are new."""
        uploads, pictures = standing(out, "queries", "uri"), standing(out, "reference", "image_id")
        now = {(upload, picture) for upload in uploads for picture in pictures}
        new = len(now - self.met)
        self.met |= now
        return new


def standing(out: Path, corpus: str, column: str) -> set[str]:
    """Return the values of a column of a corpus."""
    tables = Dataset.open(str(out / corpus / "embeddings")).tables([column])
    return {value for table in tables for value in table[column].to_pylist()}


def arguments(world: World, out: Path, inboxes: list[Path]) -> list[str]:
    """Return the command of a night."""
    queries = [part for folder in inboxes for part in ("--queries", str(folder))]
    return [
        *(*COMMAND, "nightly", "--reference", str(world.root / "originals"), *queries, "--out", str(out)),
        *("--encoder", "pdq", "--transform", "none", "--top-k", "500", "--keep", "all"),
    ]


def run(command: list[str], kill_after: float | None = None) -> bool:
    """Run a command; with `kill_after`, kill it after so many seconds. Return whether it ended well."""
    environment = os.environ | {"ID2_LEFTOVER_HOURS": "0", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-3000:]}")
    return True


def current(out: Path) -> list[tuple[Any, ...]]:
    """Return the pairs that a dashboard sees, by plain globs."""
    with duckdb.connect() as connection:
        connection.execute(f"SET VARIABLE place = '{out}'")
        connection.execute(VIEWS.read_text())
        wanted = "query_uri, query_generation, reference_id, reference_uri, round(score, 6)"
        return connection.execute(f"SELECT {wanted} FROM id2.current ORDER BY ALL").fetchall()


def stored_twice(out: Path) -> int:
    """Return how many rows of matches/ are of a pair that has another row, by plain glob."""
    key = "query_uri, query_generation, reference_id"
    question = f"SELECT count(*) - count(DISTINCT ({key})) FROM '{out}/matches/**/*.parquet'"
    return int(duckdb.sql(question).fetchall()[0][0])


def bytes_of(out: Path) -> tuple[int, int]:
    """Return the bytes on disk, and those of files that count."""
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    places = [out / name for name in TABLES]
    places += [
        out / corpus / name for corpus in ("reference", "queries") for name in ("embeddings", "rejects")
    ]
    sets = [dataset for place in places if (dataset := Dataset.find(str(place)))]
    live = sum(f.bytes for dataset in sets for f in (*dataset.files, *dataset.commit.removals))
    control = sum(path.stat().st_size for path in out.rglob("_SUCCESS"))
    return held, live + control + sum(p.stat().st_size for p in out.glob("*.*"))


def pairs_of(out: Path) -> int:
    """Return how many pairs the ledger says were scored."""
    commit = Dataset.open(str(out / "matches")).commit
    return sum(event.pairs for run_id in commit.runs for event in ledger.events_of(commit, run_id))


def simulate(nights: int, seed: int, root: Path) -> dict[str, Any]:
    """Run the nights; return what was counted."""
    world, out = World(root, random.Random(seed)), root / "out"
    for i in range(8):
        world.picture(root / "originals" / f"first-{i}.jpg")
    counted: dict[str, Any] = {"kills": 0, "skipped": 0, "nights": []}
    inboxes: list[Path] = []
    for night in range(1, nights + 1):
        equal = night in (3, nights)
        inboxes.append(world.day(night, equal=equal))
        if night == nights // 2:
            counted["skipped"] += 1
            continue
        command = arguments(world, out, inboxes[-3:])
        if not equal and night > 1 and world.dice.random() < 0.3:
            counted["kills"] += not run(command, kill_after=world.dice.uniform(2, 14))
        before = pairs_of(out) if out.exists() and Dataset.find(str(out / "matches")) else 0
        began = time.monotonic()
        run(command)
        took = time.monotonic() - began
        last = records.read(str(out))[-1]
        new, scored = world.meet(out), pairs_of(out) - before
        counted["nights"].append(
            {"night": night, "seconds": round(took, 2), "pairs": scored, "pairs_new": new}
            | {"listed": last.listed, "stages": last.seconds}
        )
        if new != scored and not counted["kills"]:
            raise SystemExit(f"night {night}: {scored} pairs were scored, {new} are new")
    clean = root / "clean"
    run(arguments(world, clean, [root / "inbox"]))
    run([*COMMAND, "nightly", *arguments(world, out, inboxes[-1:])[len(COMMAND) + 1 :]])
    held, live = bytes_of(out)
    ours, theirs = current(out), current(clean)
    return counted | {
        "pairs_scored": pairs_of(out),
        "pairs_met": len(world.met),
        "stored_twice": stored_twice(out),
        "current": len(ours),
        "current_differs": len(set(ours) ^ set(theirs)) + abs(len(ours) - len(theirs)),
        "bytes": held,
        "live_bytes": live,
    }


def main() -> None:
    """Simulate and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    root = given.out or Path(mkdtemp(prefix="id2-nights-"))
    counted = simulate(given.nights, given.seed, root)
    third, last = (next(n for n in counted["nights"] if n["night"] == k) for k in (3, given.nights))
    ratio = counted["bytes"] / counted["live_bytes"]
    scored, met = counted["pairs_scored"], counted["pairs_met"]
    current_pairs, differing = counted["current"], counted["current_differs"]
    seconds = last["seconds"], third["seconds"]
    sizes = held_mib(counted["bytes"]), held_mib(counted["live_bytes"])
    alike = 1 - differing / max(1, current_pairs)
    rows = [
        Row("pairs scored ÷ pairs that stood together", str(scored), str(met), scored / met, Bar(1, 1)),
        Row("`current` as in one clean scan", f"{differing} differ", str(current_pairs), alike, Bar(1, 1)),
        Row("bytes on disk ÷ bytes that count, grace 0", *sizes, ratio, Bar(0, 1.3)),
        Row(
            "last night ÷ third, equal additions", *(f"{s} s" for s in seconds), seconds[0] / seconds[1], None
        ),
    ]
    common.report("nights", rows, **counted)
    if given.out is None:
        shutil.rmtree(root)


def held_mib(size: int) -> str:
    """Return bytes in MiB."""
    return f"{size / 2**20:.2f} MiB"


if __name__ == "__main__":
    main()
