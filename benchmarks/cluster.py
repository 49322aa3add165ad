"""What Flink costs beside one process: an embed, and a scan of new uploads against a finished corpus.

Run `python -m benchmarks.cluster [--count 800] [--uploads 60] [--rounds 3]` as root, after
`make test-cluster` has installed Flink, with FLINK_JOB_SERVER; prints one line of JSON. The cluster is that
of `make test-cluster`: two hosts in network namespaces, one worker of one thread each, on this machine. Its
workers start as they do elsewhere. Pictures are drawn. Every side is a command in a process of its own, with
start-up, in turn. A small scan comes first, because a cluster that has just started compiles its code.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import common
from benchmarks.common import Bar, Row
from benchmarks.startup import command
from tests.cluster import trials
from tests.cluster.flink import FlinkCluster, libraries, required

EMBED, SCAN = Bar(0.0, 1.4), Bar(0.0, 2.0)


def measure(cluster: FlinkCluster, folder: Path, photos: Path, uploads: Path, rounds: int) -> None:
    number = itertools.count()
    runners = {"one process": [], "Flink": trials.on(cluster.arguments)}

    def side(runner: Sequence[str], *arguments: str) -> Callable[[], None]:
        return lambda: command(*arguments, "--out", str(folder / f"out-{next(number)}"), *runner)()

    def sides(*arguments: str) -> dict[str, Callable[[], None]]:
        return {name: side(runner, *arguments) for name, runner in runners.items()}

    corpus = folder / "corpus"
    warm = ["scan", "--reference", str(uploads), "--queries", str(uploads)]
    side(runners["Flink"], *warm, "--encoder", "pdq", "--transform", "none")()
    command("embed", "--images", str(photos), "--out", str(corpus))()
    works = [
        (f"`id2 embed` of {len(list(photos.iterdir()))} photos", EMBED, ["embed", "--images", str(photos)]),
        (
            f"`id2 scan` of {len(list(uploads.iterdir()))} uploads against a finished corpus of them",
            SCAN,
            ["scan", "--reference", f"dataset:{corpus}", "--queries", str(uploads)],
        ),
    ]
    rows, figures = [], {}
    for what, bar, arguments in works:
        times = common.interleaved(sides(*arguments), rounds)
        figures[arguments[0]] = times
        print(arguments[0], times, file=sys.stderr, flush=True)
        shown = {name: f"{median(seconds):.1f} s" for name, seconds in times.items()}
        ratio = common.median_ratio(times["Flink"], times["one process"])
        rows.append(Row(f"{what}, Flink ÷ one process", shown["Flink"], shown["one process"], ratio, bar))
    common.report("cluster", rows, seconds=figures)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--count", type=int, default=800, help="photos of the corpus")
    parser.add_argument("--uploads", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    jar = required()
    with (
        common.photo_folder(None, options.count) as photos,
        common.photo_folder(None, options.uploads) as uploads,
        TemporaryDirectory(prefix="id2-bench-") as name,
        FlinkCluster.started(Path(name, "flink"), libraries(), jar, preloads=False) as cluster,
    ):
        measure(cluster, Path(name), photos, uploads, options.rounds)


if __name__ == "__main__":
    main()
