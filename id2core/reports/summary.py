"""The facts of a scan: counts, scores, verdicts, and measures where the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.evaluation import metrics, streaming
from id2core.evaluation.truth_files import Truth
from id2core.reports import strongest
from id2core.reports.facts import GroupFacts, Histogram, Quantiles, ScanCounts, ScanSummary
from id2core.reports.inputs import ReportInputs, among, count_rejects, match_tables, rows_of
from id2core.search import looks
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.verdicts.calibration import Verdict

BIN_WIDTHS, MAX_BINS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1), 40
ROUNDING = 1e-5  # can lift a cosine so far above 1
# Rank-1 scores are grouped by what the truth says of their query.
SERIES = ("origin", "no_origin", "unknown")


def summarize(inputs: ReportInputs) -> ScanSummary:
    """Return the facts of a scan; with a truth, its measures too.

    Raises:
        DatasetError: a data set is incomplete or damaged.
    """
    reference, query = inputs.reference_embeddings, inputs.query_embeddings
    rejects = {side: dict(count_rejects(r).most_common()) for side, r in inputs.rejects.items()}
    best = _Rank1Stats(inputs)
    return ScanSummary(
        **dict(inputs.run),
        scanned_at=best.scanned_at or inputs.matches.commit.committed_at,
        counts=ScanCounts(
            references=reference.rows,
            queries=query.rows,
            reference_rejects=sum(rejects["reference"].values()),
            query_rejects=sum(rejects["queries"].values()),
            queries_with_match=best.uploads,
            matches=best.rows,
        ),
        rejects=rejects,
        verdicts=_with_unstored(best.verdicts_of(*SERIES), inputs, inputs.query_corpora),
        verdict_reasons=dict(best.reasons),
        views=dict(best.views.most_common()),
        channels={
            name: _with_unstored(counts, inputs, [corpus])
            for (name, counts), corpus in zip(
                best.verdicts_by_channel().items(), inputs.query_corpora, strict=False
            )
        },
        scores_are=best.column,
        **{key: reference.ids.get(key) for key in schemas.ROW_IDS},
        index_id=best.index_id,
        top_k=inputs.run.config.top_k,
        score_quantiles=_quantiles(best.scores),
        histogram=_histogram(best, ("all",) if inputs.truth is None else SERIES),
        inputs=inputs.places,
        **(_measures(inputs, best) if inputs.truth is not None else {}),
    )


class _Rank1Stats:
    """Each query's best score, and facts of the run, from one pass over the matches.

    Attributes:
        uploads: how many have a match in any channel.
        scores: float32[q], rank-1 scores of the first channel.
        series: int8[q], an index into SERIES for each.
        column: of the matches, that the scores are from.
        reasons: reason of a verdict that is not the score → queries.
        views: view → queries that scored best under it.
        verdicts: (name of a series, or of a group preceded by `group:`; verdict) → queries.
        channel_verdicts: (channel, verdict of its best reference) → queries.
    """

    def __init__(self, inputs: ReportInputs) -> None:
        self.scores, self.series = np.empty(0, np.float32), np.empty(0, np.int8)
        self.column = "score"
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.channel_verdicts: Counter[tuple[str, str]] = Counter()
        self.uploads = 0
        self._channels = inputs.channel_names
        self._groups = inputs.groups or {}
        self.rows, self.last_rank = 0, None
        self.index_id, self.scanned_at = None, None
        self._with = list(inputs.origins)
        self._without = list(set(inputs.truth or {}) - set(inputs.origins))
        columns = ["query_uri", "score", "normalized_score", "verdict", "rank", "index_id", "scanned_at"]
        columns += ["verdict_reason", "view", "channel", "query_generation"]
        scored = [self._read(t) for t in match_tables(inputs, columns) if t.num_rows]
        if scored:
            self.scores, self.series = (np.concatenate(parts) for parts in zip(*scored, strict=True))

    def _read(self, table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        self.rows += table.num_rows
        self.last_rank = max(self.last_rank or 0, pc.max(table["rank"]).as_py())
        self.scanned_at = table["scanned_at"][0].as_py().isoformat(timespec="seconds")
        every = table.filter(pc.equal(table["rank"], 1))
        first = strongest.best(every, self._channels)
        self.uploads += first.num_rows
        self.views.update(pc.fill_null(first["view"], looks.WHOLE).to_pylist())
        if first["verdict"].null_count < first.num_rows:
            self.reasons.update(first["verdict_reason"].drop_null().to_pylist())
            self._count(first["query_uri"].to_pylist(), first["verdict"].to_pylist(), self._series(first))
        if len(self._channels) > 1:
            pairs = zip(strongest.named(every).to_pylist(), every["verdict"].to_pylist(), strict=True)
            self.channel_verdicts.update(pairs)
            first = strongest.of_channel(every, self._channels[0])
        if first.num_rows:
            self.index_id = first["index_id"][0].as_py()
        if first["normalized_score"].null_count < first.num_rows:
            self.column = "normalized_score"
        return first[self.column].to_numpy(), self._series(first).astype(np.int8)

    def _series(self, first: pa.Table) -> NDArray[np.integer[Any]]:
        """Return an index into SERIES for each row."""
        with_origin, without = (among(first["query_uri"], uris) for uris in (self._with, self._without))
        return np.select([with_origin.to_numpy(), without.to_numpy()], [0, 1], 2)

    def _count(self, queries: list[str], verdicts: list[str], series: NDArray[np.integer[Any]]) -> None:
        self.verdicts.update(zip([SERIES[i] for i in series], verdicts, strict=True))
        pairs = zip(map(self._groups.get, queries), verdicts, strict=True)
        self.verdicts.update((f"group:{group}", verdict) for group, verdict in pairs if group)

    def verdicts_of(self, *names: str) -> dict[str, int]:
        """Count the queries of some series or groups by verdict; empty where nothing was judged."""
        counts = {v.value: sum(self.verdicts[name, v] for name in names) for v in Verdict}
        return counts if self.verdicts else {}

    def verdicts_by_channel(self) -> dict[str, dict[str, int]]:
        """Count the queries by channel and verdict; empty where there is one channel."""
        if len(self._channels) == 1:
            return {}
        return {name: {v.value: self.channel_verdicts[name, v] for v in Verdict} for name in self._channels}

    def of(self, name: str) -> NDArray[np.float32]:
        """Return the rank-1 scores of one of SERIES, or of `all`."""
        return self.scores if name == "all" else self.scores[self.series == SERIES.index(name)]


def _with_unstored(
    counts: dict[str, int], inputs: ReportInputs, corpora: Sequence[Dataset]
) -> dict[str, int]:
    """Return verdict → queries of some channels, with `none` for queries of which no pair was stored.

    A night counts its own pairs alone: it compares some queries with all references, others with new ones.
    """
    if inputs.only_run or not (inputs.run.calibration or inputs.run.joint):
        return counts
    judged = {verdict.value: counts.get(verdict, 0) for verdict in Verdict}
    judged[Verdict.NONE] += max(_uploads(corpora) - sum(judged.values()), 0)
    return judged


def _uploads(corpora: Sequence[Dataset]) -> int:
    """Count the pictures that are in any of some corpora: one channel may reject what another takes."""
    if len(corpora) == 1:
        return corpora[0].rows
    uris = [chunk for corpus in corpora for table in corpus.tables(["uri"]) for chunk in table["uri"].chunks]
    return int(pc.count_distinct(pa.chunked_array(uris, pa.string())).as_py())


def _measures(inputs: ReportInputs, best: _Rank1Stats) -> dict[str, Any]:
    """Return the fields of the summary that a truth adds."""
    truth = inputs.truth or {}
    # A rejected query is not left out: an origin that an unreadable upload hides was not found, and a
    # system that rejects what it finds hard must not score better for it.
    seen: set[str] = set()
    for dataset in filter(None, (*inputs.query_corpora, *inputs.query_rejects_of_channels)):
        for rows in rows_of(dataset, set(truth), ["uri"]):
            seen.update(rows["uri"].to_pylist())
    asked = {query: origin for query, origin in truth.items() if query in seen}
    # By content and not by URI, because the same picture may be at several URIs, and any of them is right.
    ids: dict[str, str] = {}
    for corpus in inputs.reference_corpora:
        for rows in rows_of(corpus, set(filter(None, asked.values())), ["image_id", "uri"]):
            ids.update(zip(rows["uri"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
    names = inputs.channel_names
    answers = {name: streaming.read(_of_channel(inputs, name), asked, ids) for name in names}
    measures = {name: metrics.measure(own) for name, own in answers.items()}
    first = measures[names[0]]
    groups = streaming.by_group(answers[names[0]], inputs.groups or {})
    return {
        "accuracy": first.accuracy.value,
        "accuracy_of": first.counts.with_origin,
        "measures": first,
        "channel_measures": measures if len(names) > 1 else {},
        "origins_found": _origins_found(inputs, asked, ids) if len(names) > 1 else {},
        "groups": {
            name: GroupFacts(**dict(group), verdicts=best.verdicts_of(f"group:{name}"))
            for name, group in groups.items()
        },
        "truth_not_scanned": len(truth) - len(seen),
        "truth_origins_not_held": sum(1 for origin in asked.values() if origin and origin not in ids),
        "origin_scores": _quantiles(best.of("origin")),
        "no_origin_scores": _quantiles(best.of("no_origin")),
        "verdicts_of": {name: best.verdicts_of(name) for name in SERIES[:2]},
    }


def _of_channel(inputs: ReportInputs, name: str) -> Iterator[pa.Table]:
    """Read the matches of a channel that measures are made from."""
    for table in match_tables(inputs, [*streaming.COLUMNS, "channel"]):
        yield strongest.of_channel(table, name) if inputs.channels else table


def _origins_found(inputs: ReportInputs, truth: Truth, ids: dict[str, str]) -> dict[str, int]:
    """Count the queries whose origin is best in a channel, by the strongest verdict that it gets there."""
    origins = {query: ids[origin] for query, origin in truth.items() if origin and origin in ids}
    queries, pictures = (pa.array(list(names), pa.string()) for names in (origins, origins.values()))
    counts: Counter[str] = Counter()
    for table in match_tables(inputs, [*strongest.COLUMNS, "rank", "reference_id"]):
        first = table.filter(pc.equal(table["rank"], 1))
        origin = pictures.take(pc.index_in(first["query_uri"], value_set=queries).combine_chunks())
        right = first.filter(pc.fill_null(pc.equal(first["reference_id"], origin), False))
        if right.num_rows:
            counts.update(strongest.best(right, inputs.channel_names)["verdict"].to_pylist())
    return {verdict.value: counts[verdict] for verdict in Verdict}


def _quantiles(scores: NDArray[np.float32]) -> Quantiles:
    at = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "max": 100}
    quantiles = np.percentile(scores, list(at.values())) if scores.size else [None] * len(at)
    values = [None if value is None else round(float(value), 6) for value in quantiles]
    return Quantiles(n=len(scores), **dict(zip(at, values, strict=True)))


def _histogram(best: _Rank1Stats, names: tuple[str, ...]) -> Histogram | None:
    """Return counts of rank-1 scores per bin and series; None without scores."""
    if not best.scores.size:
        return None
    low = min(np.floor(best.scores.min() * 20) / 20, 0.95)
    high = max(np.ceil((best.scores.max() - ROUNDING) * 20) / 20, low + 0.05)
    width = next(w for w in BIN_WIDTHS if (high - low) / w < MAX_BINS + 0.5)
    edges = np.linspace(low, high, round((high - low) / width) + 1)
    parts = {name: np.clip(best.of(name), low, high) for name in names}
    series = {name: np.histogram(part, edges)[0].tolist() for name, part in parts.items() if part.size}
    return Histogram(low=round(float(low), 3), width=width, series=series)
