"""Peak memory of the embed job at two corpus sizes: it must not grow with the corpus.

Run `python -m benchmarks.memory [--photos DIR] [--sizes 2000 20000] [--rounds 1] [--encoder pool]
[--source tar]`; prints one line of JSON.

Every run is a process of its own, which reports the peak of its resident memory. The default encoder,
`pool`, is a TorchScript file made on the fly that averages 8×8 blocks (3,072 numbers an image): the
memory in question is that of the stream around the encoder, and it makes 20,000 images quick. `mini`
and every other encoder work, too. The bigger corpus repeats the photos under other names; the job reads
and decodes every name.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.embed_job import EmbedJob

BAR = Bar(0.9, 1.1)
POOL = "pool"


def peak_mebibytes() -> float:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def make_pool(folder: Path) -> str:
    """A TorchScript encoder that costs next to nothing."""
    import torch

    path = folder / f"{POOL}.pt"
    pool = torch.jit.trace(torch.nn.AvgPool2d(8), torch.zeros(1, 3, 256, 256))  # type: ignore[no-untyped-call]
    pool.save(str(path))
    return str(path)


def child(source: str, encoder: str) -> None:
    """One run of the job; prints the peak of this process."""
    from beam_jobs import embed
    from id2core.runs.execution import Execution

    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name)
        spec = make_pool(folder) if encoder == POOL else encoder
        job = EmbedJob(source, str(folder / "out"), encoder=spec)
        seconds = common.seconds(lambda: embed.run(job, Execution.begin()))
    print(json.dumps({"mebibytes": peak_mebibytes(), "seconds": seconds}))


def run(source: str, encoder: str) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", source, "--encoder", encoder]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(child.stdout.splitlines()[-1]))


def measure(photos: Path | None, sizes: list[int], rounds: int, encoder: str, kind: str) -> None:
    peaks: dict[int, list[float]] = {size: [] for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            with common.photo_source(photos, size, kind) as (_, source):
                figures = run(source, encoder)
            peaks[size].append(figures["mebibytes"])
            times[size].append(figures["seconds"])
    small, large = min(sizes), max(sizes)
    what = f"peak memory of the embed job (`{encoder}`, {kind}), {large:,} ÷ {small:,} images"
    shown = {size: f"{median(values):,.0f} MiB" for size, values in peaks.items()}
    ratio = common.median_ratio(peaks[large], peaks[small])
    common.report(
        "memory",
        [Row(what, shown[large], shown[small], ratio, BAR)],
        encoder=encoder,
        peak_mebibytes={size: round(median(values), 1) for size, values in peaks.items()},
        seconds={size: round(median(values), 1) for size, values in times.items()},
    )


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--encoder", default=POOL)
    parser.add_argument("--child", metavar="SOURCE", help="run the job once, in this process")
    common.source_option(parser)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.encoder)
    else:
        measure(options.photos, options.sizes, options.rounds, options.encoder, options.source)


if __name__ == "__main__":
    main()
