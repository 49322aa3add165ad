"""Damaged picture files through the decoder: each must end as a picture or as a reject, and at low cost.

Run `python -m benchmarks.fuzz [--count 2000] [--first 0]`; prints one line of JSON, and exits with 1 where
a decoder crashed or a file had no outcome. Files are named by their seeds: `--first N --count 1` repeats one.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.encoders.decoder_pool import DecoderPool
from id2core.encoders.images import Decoded
from tests.mutations import mutated

SIZE = 64


class Outcome(NamedTuple):
    seed: int
    name: str
    result: str
    detail: str
    seconds: float


def measure(first: int, count: int) -> None:
    pool = DecoderPool()

    def decode(seed: int) -> Outcome:
        name, data = mutated(seed)
        start = time.perf_counter()
        result = pool.decode(data, SIZE)
        seconds = time.perf_counter() - start
        if isinstance(result, Decoded):
            assert result.pixels.shape == (SIZE, SIZE, 3)
            return Outcome(seed, name, "decoded", "", seconds)
        return Outcome(seed, name, str(result.reason), result.detail, seconds)

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(decode, range(first, first + count)))
    pool.close()
    crashes = [outcome._asdict() for outcome in outcomes if "crashed" in outcome.detail]
    share = round(len(outcomes) / count, 3) if not crashes else 0.0
    common.report(
        "fuzz",
        [Row("damaged files with one outcome ÷ all", str(len(outcomes)), str(count), share, Bar(1, 1))],
        outcomes=dict(Counter(outcome.result for outcome in outcomes).most_common()),
        crashes=crashes,
        slowest=max(outcomes, key=lambda outcome: outcome.seconds)._asdict(),
    )
    if crashes:
        raise SystemExit(1)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--count", type=int, default=2000, help="files")
    parser.add_argument("--first", type=int, default=0, help="seed of the first file")
    options = parser.parse_args()
    measure(options.first, options.count)


if __name__ == "__main__":
    main()
