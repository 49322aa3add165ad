"""The facts of a scan: counts, scores, verdicts, and measures where the truth is known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.evaluation import metrics, streaming
from id2core.reports.inputs import ReportInputs, among, match_tables, read_rejects, rows_of
from id2core.store import datasets, schemas
from id2core.verdicts.calibration import Verdict

BIN_WIDTHS, MAX_BINS = (0.002, 0.005, 0.01, 0.02, 0.05), 40
# Rank-1 scores are told apart by what the truth says of their query.
SERIES = ("origin", "no_origin", "unknown")


def summarize(inputs: ReportInputs) -> dict[str, Any]:
    """The facts of a scan, JSON-able.

    Scores (normalized ones where there are some, as `scores_are` says) and verdicts are summed up over each
    query's best reference (rank 1). With a truth, `accuracy` is the share of the `accuracy_of` scanned
    queries with an origin whose best reference is that origin, `measures` has it and the others with their
    intervals (`metrics.Evaluation`), `groups` those of each group, `verdicts_of` the verdicts of queries with
    and without origin; `truth_not_scanned` counts the queries of the truth that this scan never saw.

    Raises:
        DatasetError: a data set is incomplete or damaged.
    """
    reference = datasets.require_commit(inputs.reference_embeddings)
    query = datasets.require_commit(inputs.query_embeddings)
    rejects = {side: dict(read_rejects(uri)[0].most_common()) for side, uri in inputs.rejects.items()}
    firsts = _Firsts(inputs)
    summary: dict[str, Any] = {
        "run_id": inputs.run.get("run_id", ""),
        "scanned_at": firsts.scanned_at or datasets.require_commit(inputs.matches).committed_at,
        "counts": {
            "references": reference.rows,
            "queries": query.rows,
            "reference_rejects": sum(rejects["reference"].values()),
            "query_rejects": sum(rejects["queries"].values()),
            "queries_with_match": len(firsts.scores),
            "matches": firsts.rows,
        },
        "rejects": rejects,
        "verdicts": firsts.verdicts_of(*SERIES),
        "scores_are": firsts.column,
        **{key: reference.ids.get(key) for key in schemas.IDS},
        "index_id": firsts.index_id,
        "top_k": inputs.run.get("config", {}).get("top_k", firsts.last_rank),
        "score_quantiles": _quantiles(firsts.scores),
        "histogram": _histogram(firsts, ("all",) if inputs.truth is None else SERIES),
        **{key: inputs.run.get(key, {}) for key in ("versions", "seconds", "config")},
        **{key: inputs.run.get(key) for key in ("transform", "calibration")},
        "inputs": {k: v for k, v in vars(inputs).items() if k not in ("run", "truth", "groups")},
    }
    if inputs.truth is not None:
        summary |= {f"{name}_scores": _quantiles(firsts.of(name)) for name in SERIES[:2]}
        summary |= {"verdicts_of": {name: firsts.verdicts_of(name) for name in SERIES[:2]}}
        summary |= _measures(inputs, firsts)
    return summary


class _Firsts:
    """What one pass over the matches leaves: each query's best score, and facts of the run.

    Attributes:
        scores: float32[q], rank-1 scores.
        series: int8[q], an index into SERIES for each.
        column: of the matches, that the scores are from.
        verdicts: (name of a series, or of a group preceded by `group:`; verdict) → queries.
    """

    def __init__(self, inputs: ReportInputs) -> None:
        self.scores, self.series = np.empty(0, np.float32), np.empty(0, np.int8)
        self.column = "score"
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self._groups = inputs.groups or {}
        self.rows, self.last_rank = 0, None
        self.index_id, self.scanned_at = None, None
        self._with = list(inputs.origins)
        self._without = list(set(inputs.truth or {}) - set(inputs.origins))
        columns = ["query_uri", "score", "normalized_score", "verdict", "rank", "index_id", "scanned_at"]
        found = [self._read(t) for t in match_tables(inputs, columns) if t.num_rows]
        if found:
            self.scores, self.series = (np.concatenate(parts) for parts in zip(*found, strict=True))

    def _read(self, table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        self.rows += table.num_rows
        self.last_rank = max(self.last_rank or 0, pc.max(table["rank"]).as_py())
        self.index_id = table["index_id"][0].as_py()
        self.scanned_at = table["scanned_at"][0].as_py().isoformat(timespec="seconds")
        first = table.filter(pc.equal(table["rank"], 1))
        if first["normalized_score"].null_count < first.num_rows:
            self.column = "normalized_score"
        with_origin, without = (among(first["query_uri"], uris) for uris in (self._with, self._without))
        series = np.select([with_origin.to_numpy(), without.to_numpy()], [0, 1], 2)
        if first["verdict"].null_count < first.num_rows:
            self._count(first["query_uri"].to_pylist(), first["verdict"].to_pylist(), series)
        return first[self.column].to_numpy(), series.astype(np.int8)

    def _count(self, queries: list[str], verdicts: list[str], series: NDArray[np.integer[Any]]) -> None:
        self.verdicts.update(zip([SERIES[i] for i in series], verdicts, strict=True))
        pairs = zip(map(self._groups.get, queries), verdicts, strict=True)
        self.verdicts.update((f"group:{group}", verdict) for group, verdict in pairs if group)

    def verdicts_of(self, *names: str) -> dict[str, int]:
        """How many queries of some series or group have which verdict; empty where none has any."""
        counts = {v.value: sum(self.verdicts[name, v] for name in names) for v in Verdict}
        return counts if self.verdicts else {}

    def of(self, name: str) -> NDArray[np.float32]:
        """The scores of one of SERIES, or of `all`."""
        return self.scores if name == "all" else self.scores[self.series == SERIES.index(name)]


def _measures(inputs: ReportInputs, firsts: _Firsts) -> dict[str, Any]:
    seen: set[str] = set()
    for uri in filter(None, (inputs.query_embeddings, inputs.query_rejects)):
        seen |= {row["uri"] for row in rows_of(uri, set(inputs.truth or {}), ["uri"])}
    # A rejected query is not left out: an origin that an unreadable upload hides was not found, and a
    # system that rejects what it finds hard must not score better for it.
    asked = {query: origin for query, origin in (inputs.truth or {}).items() if query in seen}
    rows = rows_of(inputs.reference_embeddings, set(filter(None, asked.values())), ["image_id", "uri"])
    # By content and not by URI: the same picture may stand at several URIs, and any of them is right.
    ids = {row["uri"]: row["image_id"] for row in rows}
    answers = streaming.read(match_tables(inputs, streaming.COLUMNS), asked, ids)
    found = metrics.measure(answers)
    groups = streaming.by_group(answers, inputs.groups or {})
    verdicts = {name: {"verdicts": firsts.verdicts_of(f"group:{name}")} for name in groups}
    return {
        "accuracy": found.accuracy.value,
        "accuracy_of": found.counts.with_origin,
        "measures": found.to_dict(),
        "groups": {name: group | verdicts[name] for name, group in groups.items()},
        "truth_not_scanned": len(inputs.truth or {}) - len(seen),
    }


def _quantiles(scores: NDArray[np.float32]) -> dict[str, float | int | None]:
    """Count, extremes and the 5, 50 and 95 % quantiles; None for what no score gives."""
    at = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "max": 100}
    found = np.percentile(scores, list(at.values())) if scores.size else [None] * len(at)
    values = [None if v is None else round(float(v), 6) for v in found]
    return {"n": len(scores), **dict(zip(at, values, strict=True))}


def _histogram(firsts: _Firsts, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Counts per series in bins of equal `width` from `low` up; None without scores."""
    if not firsts.scores.size:
        return None
    low = min(np.floor(firsts.scores.min() * 20) / 20, 0.95)
    high = min(max(np.ceil(firsts.scores.max() * 20) / 20, low + 0.05), 1.0)
    width = next(w for w in BIN_WIDTHS if (high - low) / w < MAX_BINS + 0.5)
    edges = np.linspace(low, high, round((high - low) / width) + 1)
    # Rounding can lift a cosine a little above 1.
    parts = {name: np.clip(firsts.of(name), low, high) for name in names}
    series = {name: np.histogram(part, edges)[0].tolist() for name, part in parts.items() if part.size}
    return {"low": round(float(low), 3), "width": width, "series": series}
