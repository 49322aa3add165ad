"""What a command costs before it works: a wrong path, and a scan with nothing to do, against `id2 --help`.

Run `python -m benchmarks.startup [--rounds 5]`; prints one line of JSON. Every side is a process of its own,
in turn. Nothing to do: images that an earlier scan embedded and searched, and the data sets that it left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import common
from benchmarks.common import Bar, Row

WRONG_PATH, NOTHING_TO_DO = Bar(0.0, 3.0), Bar(0.0, 8.0)
PICTURES = 20


def command(*arguments: str, code: int = 0) -> Callable[[], None]:
    """A command as a process; another exit code than `code` ends the benchmark."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}

    def work() -> None:
        process = subprocess.run(
            [sys.executable, "-m", "flows", *arguments], env=environment, capture_output=True, text=True
        )
        if process.returncode != code:
            raise SystemExit(f"{' '.join(arguments)} exited with {process.returncode}: {process.stderr}")

    return work


def measure(folder: Path, rounds: int) -> None:
    images, out = str(folder / "images"), str(folder / "out")
    scan = ("scan", "--reference", images, "--queries", images, "--out", out)
    embedded = ("--reference", f"dataset:{out}/reference", "--queries", f"dataset:{out}/queries")
    again = ("scan", *embedded, "--out", f"{out}-2")
    command(*scan)()
    command(*again)()
    sides = {
        "help": command("--help"),
        "wrong path": command("scan", "--reference", "/nowhere", "--queries", images, "--out", out, code=1),
        "images": command(*scan),
        "data sets": command(*again),
    }
    times = common.interleaved(sides, rounds)
    rows = [
        ("`id2 scan` with a wrong path ÷ `id2 --help`", "wrong path", WRONG_PATH),
        ("`id2 scan` of images, nothing to do ÷ `id2 --help`", "images", NOTHING_TO_DO),
        ("`id2 scan` of data sets, nothing to do ÷ `id2 --help`", "data sets", NOTHING_TO_DO),
    ]
    shown = {name: f"{median(seconds):.2f} s" for name, seconds in times.items()}
    common.report(
        "startup",
        [
            Row(what, shown[name], shown["help"], common.median_ratio(times[name], times["help"]), bar)
            for what, name, bar in rows
        ],
        seconds={name: round(median(seconds), 3) for name, seconds in times.items()},
    )


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        common.photo_folder(options.photos, PICTURES) as images,
        TemporaryDirectory(prefix="id2-bench-") as name,
    ):
        (Path(name) / "images").symlink_to(images)
        measure(Path(name), options.rounds)


if __name__ == "__main__":
    main()
