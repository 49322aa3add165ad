"""The whole embed job against a bare loop of its encoder over pictures that are already decoded.

Run `python -m benchmarks.embed [--photos DIR] [--count 2000] [--rounds 3] [--encoder mini]
[--transform FILE] [--source tar]`; prints one line of JSON.

The job lists, reads, hashes, decodes, encodes, writes Parquet and commits. The loop does nothing but
`encode` on uint8 batches in memory, by an encoder of the same settings and batch size in the same
process. The ratio is the job's images/s over the loop's: what is left of the encoder's speed. It covers
the job's run time once the model is in memory; the time of loading it is given beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_jobs import embed
from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.base import Encoder
from id2core.encoders.embed_job import EmbedJob
from id2core.encoders.hub import MINI
from id2core.runs.execution import Execution
from id2core.runs.progress import Counts, tally

BAR = Bar(0.93)
# The loop needs its pictures in memory (196 kB each); its speed does not depend on how many there are.
MOST_IN_MEMORY = 2000


@dataclass(frozen=True)
class Run:
    """One run of the job.

    Attributes:
        seconds: all of it.
        start_up: until the first batch was encoded: listing, plan, Beam's pipeline, the first files.
        steady: images per second between the first batch and the last.
        finish: after the last batch: the rest of the Parquet file, checks, commit.
    """

    seconds: float
    start_up: float
    steady: float
    finish: float


def timed(job: EmbedJob) -> Run:
    """Run the job; its own progress counts give the times of its first and last batch."""
    stamps: list[tuple[float, int]] = []

    def note(stage: str, counts: Counts) -> None:
        if stage == embed.STAGE and counts.completed:
            stamps.append((time.perf_counter(), counts.completed))

    stop = tally.listen(note)
    start = time.perf_counter()
    try:
        summary = embed.run(job, Execution.begin())
    finally:
        end = time.perf_counter()
        stop()
    if summary.rejected or not summary.embedded:
        raise SystemExit(f"{summary.rejected} benchmark photos were rejected")
    (first, before), (last, after) = stamps[0], stamps[-1]
    steady = (after - before) / (last - first) if after > before else 0.0
    return Run(end - start, first - start, steady, end - last)


def loop(encoder: Encoder, batches: list[NDArray[np.uint8]]) -> Callable[[], None]:
    def work() -> None:
        for batch in batches:
            encoder.encode(batch)

    return work


def jobs(source: str, outs: Path, **settings: Any) -> Callable[[], EmbedJob]:
    """Every call gives the same job with another place to write to: a run that is done does nothing."""
    made: list[EmbedJob] = []

    def make() -> EmbedJob:
        made.append(EmbedJob(source, str(outs / f"{len(made)}"), **settings))
        return made[-1]

    return make


def measure(images: Path, source: str, outs: Path, count: int, rounds: int, **settings: Any) -> None:
    make = jobs(source, outs, **settings)
    start = time.perf_counter()
    encoder, _ = make().load()
    load_seconds = time.perf_counter() - start
    pixels = common.decoded(images, min(count, MOST_IN_MEMORY), encoder.preprocess.size)
    batches = np.array_split(pixels, range(encoder.batch_size, len(pixels), encoder.batch_size))
    bare = loop(encoder, batches)
    # The warm-up is a whole run; it also leaves the job's own model in memory for the next ones.
    cold = timed(make())
    bare()
    runs: list[Run] = []
    times = common.interleaved({"job": lambda: runs.append(timed(make())), "loop": bare}, rounds)
    job_rates = [count / s for s in times["job"]]
    loop_rates = [len(pixels) / s for s in times["loop"]]
    ours, other = median(job_rates), median(loop_rates)

    def row(what: str, rates: list[float], bar: Bar | None = None) -> Row:
        ratio = common.median_ratio(rates, loop_rates)
        return Row(what, f"{median(rates):.0f} images/s", f"{other:.0f} images/s", ratio, bar)

    what = f"{count:,} photos{' of tar shards' if source.startswith(common.TAR) else ''}"
    common.report(
        "embed",
        [
            row(f"embed job, {what}, model loaded ÷ bare encoder loop", job_rates, BAR),
            row("embed job, between its first and last batch ÷ the same", [run.steady for run in runs]),
        ],
        images=count,
        encoder_id=encoder.encoder_id,
        batch_size=encoder.batch_size,
        job_images_per_second=round(ours, 1),
        loop_images_per_second=round(other, 1),
        load_seconds=round(load_seconds, 2),
        first_run_with_load_seconds=round(cold.seconds, 2),
        median_run={k: round(median(asdict(run)[k] for run in runs), 3) for k in asdict(cold)},
        decode_ms=round(decode_milliseconds(images, encoder.preprocess.size), 2),
    )


def decode_milliseconds(images: Path, size: int, count: int = 50) -> float:
    """Reading and decoding one photo on one core: what the job shares the processor with."""
    paths = common.pictures(images)[:count]
    return 1000 * common.seconds(lambda: common.decoded(images, count, size)) / len(paths)


def main() -> None:
    from tempfile import TemporaryDirectory

    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--count", type=int, default=2000, help="photos of the job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default=MINI)
    parser.add_argument("--transform", help="file of W; by default raw latents")
    common.source_option(parser)
    options = parser.parse_args()
    with (
        common.photo_source(options.photos, options.count, options.source) as (images, source),
        TemporaryDirectory(prefix="id2-bench-") as outs,
    ):
        settings = {"encoder": options.encoder, "transform": options.transform}
        measure(images, source, Path(outs), options.count, options.rounds, **settings)


if __name__ == "__main__":
    main()
