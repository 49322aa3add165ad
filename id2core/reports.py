"""The report of a scan: `summary.json` for programs and one self-contained `report.html` for people.

Everything is read in one pass per data set; kept in memory are the best scores and the pairs shown.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from id2core import datasets, images, matching, measuring, metrics, storage, tables
from id2core.calibration import Verdict
from id2core.images import Limits
from id2core.rejects import Reason, Reject
from id2core.storage import Object

GONE, CHANGED = "picture no longer available", "picture changed since the scan"
HTML, SUMMARY = "report.html", "summary.json"
SHOWN_RANKS, EXAMPLES, READ_THREADS = 3, 3, 8
SIDES: Final = {"large": 256, "small": 112}  # longest side of a thumbnail, in pixels
BIN_WIDTHS, MAX_BINS = (0.002, 0.005, 0.01, 0.02, 0.05), 40
# Rank-1 scores are told apart by what the truth says of their query.
SERIES = ("origin", "no_origin", "unknown")


@dataclass(frozen=True)
class ReportInputs:
    """Where the data of a scan are.

    Attributes:
        matches: URI of the matches data set.
        search_run: run_id of the search whose matches are reported.
        reference_embeddings, query_embeddings: URIs of the two embeddings data sets.
        reference_rejects, query_rejects: URIs of rejects data sets, where there are any.
        run: JSON-able facts of the scan: `run_id`, `config`, `seconds` (stage → s), `versions`, `transform`
            (`id` and where it is `from`), `calibration` (`verdicts.facts`).
        truth: absolute query URI → URI of its origin, or None where it has none.
        groups: absolute query URI → the group that it is also counted in.
    """

    matches: str
    search_run: str
    reference_embeddings: str
    query_embeddings: str
    reference_rejects: str | None
    query_rejects: str | None
    run: dict[str, Any]
    truth: dict[str, str | None] | None = None
    groups: dict[str, str] | None = None

    @property
    def rejects(self) -> dict[str, str | None]:
        """Side → URI of its rejects."""
        return {"reference": self.reference_rejects, "queries": self.query_rejects}

    @property
    def origins(self) -> dict[str, str]:
        """The queries of the truth that have an origin → its URI."""
        return {query: origin for query, origin in (self.truth or {}).items() if origin}


def write(inputs: ReportInputs, summary: dict[str, Any], out: str, max_pairs: int = 200) -> None:
    """Write `report.html` and then, as the sign that all is there, `summary.json` below `out`."""
    page = render(inputs, summary, max_pairs)
    storage.write_bytes(storage.join(out, HTML), page.encode())
    storage.write_bytes(storage.join(out, SUMMARY), json.dumps(summary, indent=1).encode())


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
    rejects = {side: dict(_read_rejects(uri)[0].most_common()) for side, uri in inputs.rejects.items()}
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
        **{key: reference.ids.get(key) for key in tables.IDS},
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
        found = [self._read(t) for t in _match_tables(inputs, columns) if t.num_rows]
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
        with_origin, without = (_among(first["query_uri"], uris) for uris in (self._with, self._without))
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


def _match_tables(inputs: ReportInputs, columns: list[str]) -> Iterator[pa.Table]:
    """The match files of the reported run. A query's ranks all stand in one file."""
    return datasets.iterate(inputs.matches, columns, matching.commit_of(inputs.matches, inputs.search_run))


def _among(column: pa.ChunkedArray, wanted: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(list(wanted), pa.string()))


def _rows_of(uri: str, wanted: set[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of an embeddings or rejects data set whose `uri` is wanted."""
    for table in datasets.iterate(uri, columns) if wanted else ():
        yield from table.filter(_among(table["uri"], wanted)).select(columns).to_pylist()


def _measures(inputs: ReportInputs, firsts: _Firsts) -> dict[str, Any]:
    seen: set[str] = set()
    for uri in filter(None, (inputs.query_embeddings, inputs.query_rejects)):
        seen |= {row["uri"] for row in _rows_of(uri, set(inputs.truth or {}), ["uri"])}
    # A rejected query is not left out: an origin that an unreadable upload hides was not found, and a
    # system that rejects what it finds hard must not score better for it.
    asked = {query: origin for query, origin in (inputs.truth or {}).items() if query in seen}
    rows = _rows_of(inputs.reference_embeddings, set(filter(None, asked.values())), ["image_id", "uri"])
    # By content and not by URI: the same picture may stand at several URIs, and any of them is right.
    ids = {row["uri"]: row["image_id"] for row in rows}
    answers = measuring.read(_match_tables(inputs, measuring.COLUMNS), asked, ids)
    found = metrics.measure(answers)
    groups = measuring.by_group(answers, inputs.groups or {})
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


def _read_rejects(uri: str | None) -> tuple[Counter[str], dict[str, list[dict[str, str]]]]:
    """Of a rejects data set: reason → count, and reason → its first few rows."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for table in datasets.iterate(uri, ["uri", "reason", "detail"]) if uri else ():
        counts.update(table["reason"].to_pylist())
        for reason in table["reason"].unique().to_pylist():
            some = examples.setdefault(reason, [])
            rows = table.filter(pc.equal(table["reason"], reason)).slice(0, EXAMPLES - len(some))
            some.extend(rows.to_pylist())
    return counts, examples


def render(inputs: ReportInputs, summary: dict[str, Any], max_pairs: int = 200) -> str:
    """The page: self-contained HTML without scripts, the `max_pairs` best matches with their pictures."""
    environment = Environment(
        loader=PackageLoader("id2core"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda uri: uri.rsplit("/", 1)[-1]
    return environment.get_template(f"{HTML}.j2").render(
        summary=summary,
        pairs=_pairs(inputs, max_pairs),
        examples={side: _read_rejects(uri)[1] for side, uri in inputs.rejects.items()},
        made_with=_flat(summary["config"]),
    )


def _visible(value: Any) -> Any:
    """Text with control and direction-changing characters spelt out: a name must not disguise itself."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | None]:
    """A nested configuration as one level of dotted names."""
    found: dict[str, str | None] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str | None) else json.dumps(value)
    return found


def _pairs(inputs: ReportInputs, count: int) -> list[dict[str, Any]]:
    """The best queries with their first references, pictures and truth, as the template shows them."""
    ranked: dict[str, list[dict[str, Any]]] = {}
    for row in _best_matches(inputs, count):
        ranked.setdefault(row["query_uri"], []).append(row)
    truth = {query: (inputs.truth or {})[query] for query in ranked if query in (inputs.truth or {})}
    shown = {row["reference_uri"] for rows in ranked.values() for row in rows}
    queries = _listed(inputs.query_embeddings, set(ranked))
    references = _listed(inputs.reference_embeddings, shown.union(filter(None, truth.values())))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        uploads = dict(zip(ranked, pool.map(_thumbnail, map(queries.get, ranked)), strict=True))
        originals = dict(zip(shown, pool.map(_thumbnail, map(references.get, shown)), strict=True))
    return [
        {
            "uri": query,
            "picture": uploads[query],
            "rows": [row | {"picture": originals[row["reference_uri"]]} for row in rows],
            "truth": _against_truth(truth[query], rows[0], references) if query in truth else None,
        }
        for query, rows in ranked.items()
    ]


def _against_truth(origin: str | None, best: dict[str, Any], references: dict[str, dict[str, Any]]) -> str:
    if not origin:
        return "none"
    row = references.get(origin)
    return "hit" if row and row["image_id"] == best["reference_id"] else "miss"


def _best_matches(inputs: ReportInputs, count: int) -> list[dict[str, Any]]:
    """Rows up to rank SHOWN_RANKS of the `count` queries with the best scores, in that order.

    The normalised score decides where there is one: verdicts are drawn from it.
    """
    columns = ["query_uri", "reference_id", "reference_uri", "rank"]
    columns += ["score", "normalized_score", "verdict", "false_positive_rate"]
    kept = tables.MATCHES.empty_table().select(columns)
    for table in _match_tables(inputs, columns):
        some = table.filter(pc.less_equal(table["rank"], SHOWN_RANKS))
        kept = pa.concat_tables([kept, some.select(columns)])
        kept = kept.filter(_among(kept["query_uri"], _best_queries(kept, count)))
    place = {query: i for i, query in enumerate(_best_queries(kept, count))}
    return sorted(kept.to_pylist(), key=lambda row: (place[row["query_uri"]], row["rank"]))


def _best_queries(rows: pa.Table, count: int) -> list[str]:
    first = rows.filter(pc.equal(rows["rank"], 1))
    first = first.append_column("order", pc.coalesce(first["normalized_score"], first["score"]))
    ordered = first.sort_by([("order", "descending"), ("query_uri", "ascending")])
    return list(ordered["query_uri"].slice(0, count).to_pylist())


def _listed(uri: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """URI → what is needed to show the object."""
    columns = ["image_id", "uri", "generation", "bytes", "width", "height"]
    return {row["uri"]: row for row in _rows_of(uri, wanted, columns)}


def _thumbnail(row: dict[str, Any] | None) -> dict[str, str]:
    """A picture's `large` and `small` data URIs, or why it is `missing`. Never raises.

    Only the very version that was compared is shown: another one at its URI would mislead.
    """
    if row is None:
        return {"missing": GONE}
    data = storage.read_object(Object(row["uri"], row["generation"], row["bytes"]), row["bytes"])
    found = data if isinstance(data, Reject) else images.decode(data, SIDES["large"], Limits(len(data)))
    if isinstance(found, Reject):
        return {"missing": CHANGED if found.reason is Reason.CHANGED else GONE}
    square = Image.fromarray(found.pixels)
    return {name: _data_uri(square, row["width"], row["height"], side) for name, side in SIDES.items()}


def _data_uri(square: Image.Image, width: int, height: int, side: int) -> str:
    """The stretched picture, back in its own aspect ratio."""
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    file = io.BytesIO()
    square.resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
