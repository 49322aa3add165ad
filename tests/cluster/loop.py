"""Every fault of a cluster, many times: how often a row was wrong, which must be never.

Run `python -m tests.cluster.loop [--times 10] [--seconds 7200] [--seed 0]` as root, with FLINK_JOB_SERVER
(`make cluster-faults`). A fault strikes at the middle of the work, and up to a few seconds later by chance.
Prints a line for each trial and one of JSON at the end, and exits with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.cluster import trials
from tests.cluster.flink import FlinkCluster, libraries, required
from tests.cluster.trials import FAULTS, IN_FLIGHT, PARTS, Fault, Work
from tests.fork_server import ForkServer

# How much later than at the middle a fault may strike.
LATER_SECONDS = 4.0


def later(fault: Fault, seconds: float) -> Fault:
    """Return a fault that waits first."""

    def strike(cluster: FlinkCluster, run: trials.Run) -> None:
        time.sleep(seconds)
        fault(cluster, run)

    return strike


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    jar = required()
    folder = Path(tempfile.mkdtemp(prefix="id2-faults-"))
    chance = random.Random(given.seed)
    with (
        ForkServer({"ID2_CALIBRATION": "none"}) as server,
        FlinkCluster.started(folder, libraries(), jar) as cluster,
    ):
        counts = loop(cluster, server, folder, given.times, given.seconds, chance)
    print(json.dumps(counts))
    if counts["wrong_rows"] or counts["complaints"]:
        return 1
    shutil.rmtree(folder)
    return 0


def loop(
    cluster: FlinkCluster,
    server: ForkServer,
    folder: Path,
    times: int,
    seconds: float,
    chance: random.Random,
) -> dict[str, int]:
    """Run trials until each fault had its times, or the seconds are over; return what was seen."""
    works = [trials.embedding(folder), trials.searching(folder)]
    for work in works:
        run = work.start(server, folder / f"{work.name}-alone")
        assert run.wait() == 0, run.log.read_text()
    deadline, counts = time.monotonic() + seconds, Counter[str]()
    for number, (fault, work) in enumerate(list(itertools.product(FAULTS, works)) * times):
        if time.monotonic() > deadline:
            break
        out = folder / f"{number}-{work.name}-{fault.__name__}"
        began, delay = time.monotonic(), chance.uniform(0, LATER_SECONDS)
        outcome = trials.attempt(cluster, server, work, later(fault, delay), out)
        counts.update(_counted(work, outcome))
        print(
            f"{out.name}: {outcome.codes} equal={outcome.is_equal} written={outcome.written} "
            f"{time.monotonic() - began:.0f} s {' '.join(outcome.complaints)}",
            flush=True,
        )
        if outcome.is_equal and not outcome.complaints:
            shutil.rmtree(out)
    return {name: counts[name] for name in ("trials", "wrong_rows", "complaints", "parts_made_again")}


def _counted(work: Work, outcome: trials.Outcome) -> dict[str, int]:
    again = outcome.written - PARTS if work.counts_parts else 0
    return {
        "trials": 1,
        "wrong_rows": int(not outcome.is_equal),
        "complaints": len(outcome.complaints) + int(again > IN_FLIGHT),
        "parts_made_again": again,
    }


if __name__ == "__main__":
    sys.exit(main())
