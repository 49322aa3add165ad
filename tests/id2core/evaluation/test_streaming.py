"""Measures of matches that come file by file are those of the matches as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from id2core.evaluation import metrics, streaming
from id2core.evaluation.truth_files import Truth


def matches(queries: int = 60, k: int = 4, seed: int = 0) -> tuple[pa.Table, Truth]:
    """Every third query has an origin, found at some place or not; one in five is not in the truth."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    truth: Truth = {"missing": "/r/0", "unread": None}
    for i in range(queries):
        picked = rng.choice(20, k, replace=False)
        scores = -np.sort(-rng.random(k))
        rows += [
            {
                "query_uri": f"q{i}",
                "reference_uri": f"/r/{r}",
                "reference_id": f"{r // 2}",
                "rank": j + 1,
                "score": float(scores[j]),
                "normalized_score": None,
            }
            for j, r in enumerate(picked)
        ]
        if i % 5:
            truth[f"q{i}"] = f"/r/{rng.choice(picked)}" if i % 3 == 0 else None
    # An origin whose own address was never retrieved, while a copy of it was.
    truth["q3"] = "/r/away"
    table = pa.Table.from_pylist(rows)
    return table.set_column(5, "normalized_score", pa.nulls(len(rows), pa.float32())), truth


def test_file_by_file_is_the_same_as_at_once() -> None:
    table, truth = matches()
    ids = {"/r/away": table["reference_id"][12].as_py()}
    pieces = [table.slice(start, 40) for start in range(0, table.num_rows, 40)]
    ranked = streaming.read([table.slice(0, 0), *pieces[::-1]], truth, ids)
    whole = metrics.read(table, truth, image_ids=ids)
    assert (ranked.queries, ranked.budget, ranked.counts) == (whole.queries, whole.budget, whole.counts)
    assert metrics.measure(ranked, resamples=50) == metrics.measure(whole, resamples=50)
    assert ranked.counts.without_matches == 2 and ranked.counts.not_in_truth == 12
    nothing = metrics.measure(streaming.read([], {}, {}))
    assert (nothing.accuracy.value, nothing.micro_ap.value) == (None, None)


def test_groups_are_measured_by_themselves() -> None:
    table, truth = matches()
    groups = {query: "even" if i % 2 else "odd" for i, query in enumerate(truth) if query != "missing"}
    groups |= {"unread": "unknown", "never scanned": "nowhere"}
    groups_of = streaming.by_group(streaming.read([table], truth, {}), groups)
    assert groups_of.keys() == {"even", "odd", "unknown"}
    assert groups_of["unknown"] == streaming.GroupMeasures(accuracy=None, mean_ap=None, of=0, uploads=1)
    for name in ("even", "odd"):
        part = {query: origin for query, origin in truth.items() if groups.get(query) == name}
        alone = metrics.evaluate(table, part, resamples=0)
        assert (groups_of[name].of, groups_of[name].uploads) == (alone.counts.with_origin, len(part))
        assert groups_of[name].accuracy == pytest.approx(alone.accuracy.value)
        assert groups_of[name].mean_ap == pytest.approx(alone.mean_ap.value)
