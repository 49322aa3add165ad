"""Tables 2 and 9: embedders that were not trained for the task, and what platforms run today (PDQ)."""

from __future__ import annotations

import time

from id2core.experiments.closed_sets import COLUMNS, bars, described, row, search_by_model
from id2core.experiments.declaration import experiment
from id2core.experiments.methods import Methods
from id2core.experiments.results import Result, Skipped


@experiment("t2", "Tables 2 and 9: embedders that were not trained for the task", place=30)
def table_2(methods: Methods) -> Result | Skipped:
    """Measure Tables 2 and 9: every encoder that has embedded the test, without a W."""
    data = methods.data
    names = data.encoders()
    if not names:
        return Skipped("no other encoder has embedded the data (`id2 experiment data --encoder …`)")
    started = time.monotonic()
    raw = methods.raw()
    rows = [row(data, name, search_by_model(data.by(name), raw)) for name in names]
    rows.append(row(data, f"VAE of {data.seen}", search_by_model(data, raw)))
    notes = ["The paper's models need weights from a hub. Add one with `id2 experiment data --encoder NAME`."]
    return Result(rows, described(data), time.monotonic() - started, COLUMNS, bars(rows), notes)
