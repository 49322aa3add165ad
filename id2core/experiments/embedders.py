"""Tables 2 and 9: embedders that were not trained for the task, and what platforms run today (PDQ)."""

from __future__ import annotations

import time

from id2core.experiments.closed_sets import COLUMNS, bars, described, found_by, row
from id2core.experiments.methods import Methods
from id2core.experiments.results import Result, Skipped


def table_2(methods: Methods) -> Result | Skipped:
    """Every encoder that has embedded the test, compared as it is."""
    bench = methods.bench
    names = bench.encoders()
    if not names:
        return Skipped("no other encoder has embedded the data (`id2 experiment data --encoder …`)")
    started = time.monotonic()
    raw = methods.raw()
    rows = [row(bench, name, found_by(bench.by(name), raw)) for name in names]
    rows.append(row(bench, f"VAE of {bench.seen}", found_by(bench, raw)))
    notes = [
        "The paper's models need weights from a hub: give them with `id2 experiment data --encoder NAME`."
    ]
    return Result(rows, described(bench), time.monotonic() - started, COLUMNS, bars(rows), notes)
